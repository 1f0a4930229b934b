"""Modular arithmetic: every pair once, an exact share in training, the right answer, and nothing left to chance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import FillIn, ModularArithmetic, NextToken
from grok.errors import BadInput

PYTHON = {"add": int.__add__, "subtract": int.__sub__, "multiply": int.__mul__}

regimes = st.builds(
    ModularArithmetic,
    operation=st.sampled_from(list(PYTHON)),
    modulus=st.integers(3, 19),
    train_share=st.floats(0.1, 0.9),
    seed=st.integers(0, 10**6),
    encoding=st.sampled_from([None, NextToken(vocab="gpt2", pad=10), FillIn()]),
)
few = settings(deadline=None, max_examples=20)


def pairs(split):
    return list(zip(split.truth["a"].tolist(), split.truth["b"].tolist(), strict=True))


@few
@given(regimes)
def test_the_splits_partition_all_pairs_and_the_share_is_exact(regime):
    p, train, test = regime.modulus, regime.splits["train"], regime.splits["test"]
    assert sorted(pairs(train) + pairs(test)) == [(a, b) for a in range(p) for b in range(p)]
    assert len(train) == round(regime.train_share * p**2)
    assert regime.generated.train.rows == len(train)
    assert torch.equal(regime.generated.train.table.inputs, train.inputs)


@few
@given(regimes)
def test_answers_prompts_and_labels(regime):
    p, token = regime.modulus, regime.encoding.token
    for split in regime.splits.values():
        right = torch.tensor([PYTHON[regime.operation](a, b) % p for a, b in pairs(split)])
        assert torch.equal(split.targets[:, 0], token(right))
        assert split.mask[:, 0].all()
        prompt = torch.stack([split.truth["a"], split.truth["b"], torch.full_like(right, p)], 1)
        assert torch.equal(split.inputs[:, :3], token(prompt))
        assert split.positions[:3] == ("a", "b", "=")
        assert torch.equal(split.labels, token(torch.arange(p)))
        assert int(split.inputs.max()) < regime.task.tokens
        assert split.inputs.shape[1] == regime.task.positions
    assert regime.floor("test") == 1 / p


def test_the_default_layout():
    regime = ModularArithmetic(modulus=7)
    split = regime.splits["test"]
    assert split.inputs.shape == (49 - 15, 3)
    assert (split.at == 2).all()
    assert regime.task.tokens == regime.task.outputs == 9
    assert regime.tokens(torch.tensor([0, 6, 7, 8, 9])) == ["0", "6", "=", "</a>", "<|9|>"]


@few
@given(st.integers(0, 10**6), st.sampled_from(list(PYTHON)))
def test_the_split_depends_on_its_seed_only(seed, operation):
    one = ModularArithmetic(operation, modulus=13, seed=seed)
    same = ModularArithmetic("add", modulus=13, seed=seed + 1, split_seed=seed)
    other = ModularArithmetic(operation, modulus=13, seed=seed, split_seed=seed + 1)
    assert torch.equal(one.membership(), same.membership())
    assert not torch.equal(one.membership(), other.membership())
    first, again = (regime.generated.train for regime in (one, ModularArithmetic(operation, modulus=13, seed=seed)))
    assert torch.equal(first.order(0, 3), again.order(0, 3))
    assert not torch.equal(first.order(0, 3), same.generated.train.order(0, 3))


def test_a_smaller_share_is_part_of_a_larger_one_and_is_random():
    small, large = (ModularArithmetic(modulus=97, train_share=share).membership() for share in (0.2, 0.5))
    assert int(small.sum()) == round(0.2 * 97**2)
    assert not (small & ~large).any()
    per_number = small.view(97, 97).double().sum(1)
    assert abs(per_number.mean() - 0.2 * 97) < 0.1
    assert 0.5 < per_number.var() / per_number.mean() < 1.5  # binomial: 0.8


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        ModularArithmetic(operation="divide", modulus=1, train_share=1.0, batch=0)
    assert [problem.key for problem in error.value.problems] == ["operation", "modulus", "train_share", "batch"]


def test_a_split_without_queries_is_refused():
    with pytest.raises(BadInput, match="train: no query"):
        ModularArithmetic(modulus=3, train_share=0.01).setup()
