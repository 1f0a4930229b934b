"""Prefixes that queries share give the answers and gradients that every query gives by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.models import LoopedTransformer
from grok.models.prefixes import PrefixTree, answers_sharing_prefixes
from grok.task import Task

TASK = Task(positions=4, outputs=5, tokens=5)


def make(**options) -> LoopedTransformer:
    torch.manual_seed(0)
    return LoopedTransformer(**{"task": TASK, "width": 16, "layers": 2, "loops": 2, "heads": 2, **options}).double()


queries = st.integers(1, 9).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=length, max_size=length)
)


@settings(deadline=None, max_examples=60)
@given(queries)
def test_a_tree_holds_every_prefix_once_and_nothing_else(rows):
    inputs = torch.tensor(rows)
    tree = PrefixTree.of(inputs, 5)
    shared = {tuple(row[: place + 1]) for row in rows for place in range(3)}
    assert len(tree) == len(shared) + len(rows)  # at the last position every query has a row of its own
    for query, row in zip(rows, tree.rows.tolist(), strict=True):
        for place, index in enumerate(row):
            ancestors = tree.ancestors[index].tolist()
            assert ancestors == row[: place + 1] + [-1] * (3 - place) or place < 3
            assert [int(tree.tokens[one]) for one in ancestors if one >= 0] == query[: place + 1]
            assert [int(tree.places[one]) for one in ancestors if one >= 0] == list(range(place + 1))


VARIANTS = [
    {},
    {"layers": 1, "loops": 1},
    {"mlp": "none"},
    {"mlp": "swiglu", "norm": "rms", "bias": False},
    {"positions": "none", "activation": "relu"},
    {"positions": "rope"},
    {"re_embed": True},
    {"tied": False},
]


@pytest.mark.parametrize("few_keys", [8, 0], ids=["elementwise", "fused"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_answers_and_gradients_are_those_of_single_queries(options, few_keys, monkeypatch):
    monkeypatch.setattr("grok.models.layers._FEW_KEYS", few_keys)
    model = make(**options)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(5, (40, 4), generator=generator)
    at = torch.randint(4, (40, 2), generator=generator)
    tree = PrefixTree.of(inputs, 5)
    assert len(tree) < 0.7 * inputs.numel()
    results = []
    for answers in (model(inputs, at=at), answers_sharing_prefixes(model, tree, at)):
        model.zero_grad()
        answers.square().sum().backward()
        results.append([answers.detach(), *(weight.grad.clone() for weight in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-11, atol=1e-11)


def test_models_in_which_a_position_depends_on_more_than_its_prefix_do_not_share():
    assert make().shares_prefixes
    assert not make(causal=False).shares_prefixes
    dropping = make(dropout=0.1)
    assert not dropping.shares_prefixes
    assert dropping.eval().shares_prefixes
