"""Two-token entities: unique ordered pairs, the facts and queries of `TwoHopComposition`, and two right tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.circuits import cosine_lens, linear_probes, logit_lens
from grok.data import FillIn, NextToken, TwoHopComposition, TwoTokenComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer

SMALL = {"entities": 40, "relations": 12, "out_degree": 6, "phi": 2.0, "ood": 0.1, "iid": 0.1}
ENCODINGS = [NextToken(), NextToken("gpt2", 10, True), FillIn()]


@st.composite
def sizes(draw):
    """Entities and a multiplicity that fits: a divisor whose square is not larger."""
    multiplicity = draw(st.integers(1, 12))
    return multiplicity * draw(st.integers(multiplicity, 3 * multiplicity + 12)), multiplicity


@settings(deadline=None, max_examples=30)
@given(sizes(), st.integers(0, 10**6))
def test_every_entity_has_an_ordered_pair_of_its_own(size, seed):
    entities, multiplicity = size
    regime = TwoTokenComposition(multiplicity, entities=entities, seed=seed)
    pairs = regime.pairs
    assert regime.names * multiplicity == entities
    assert pairs.shape == (entities, 2)
    assert int(pairs.min()) >= 0
    assert int(pairs.max()) < regime.names
    assert len(torch.unique(pairs, dim=0)) == entities
    assert torch.equal(pairs, TwoTokenComposition(multiplicity, entities=entities, graph_seed=seed).pairs)


def test_pairs_are_random_and_of_the_graph_seed():
    paper = TwoTokenComposition(seed=3)
    assert paper.names == 50  # multiplicity 40 of 2,000 entities
    for column in paper.pairs.T:
        counts = column.bincount(minlength=50).double()
        assert counts.mean() == 40
        assert 1 < counts.std() < 6  # of 2,500 pairs 2,000 are drawn: hypergeometric, 2.9
    assert not torch.equal(paper.pairs, TwoTokenComposition(seed=4).pairs)
    assert torch.equal(paper.pairs, TwoTokenComposition(seed=4, graph_seed=3).pairs)
    assert not torch.equal(paper.pairs[:, 0].sort().values, paper.pairs[:, 0])  # not in the order of the entities


@settings(deadline=None, max_examples=6)
@given(st.sampled_from([1, 2, 4, 5]), st.integers(0, 10**6), st.sampled_from(ENCODINGS))
def test_facts_queries_and_splits_are_those_of_two_hop_composition(multiplicity, seed, encoding):
    plain = TwoHopComposition(**SMALL, seed=seed)
    two = TwoTokenComposition(multiplicity, **SMALL, seed=seed, encoding=encoding)
    assert torch.equal(plain.graph.tails, two.graph.tails)
    assert torch.equal(plain.graph.ood, two.graph.ood)
    assert list(plain.splits) == list(two.splits)
    written = two.encoding.token(two.written(torch.arange(40)))  # [E, 2] tokens
    for name, split in two.splits.items():
        one = plain.splits[name]
        assert torch.equal(split.truth["facts"], one.truth["facts"])
        assert torch.equal(split.truth["ood"], one.truth["ood"])
        assert torch.equal(split.inputs[:, :2], written[one.inputs[:, 0]])
        relation = two.encoding.token(one.inputs[:, 1] - 40 + 2 * two.names)
        assert torch.equal(split.inputs[:, 2], relation)
        assert torch.equal(split.targets[:, :2], written[one.targets[:, 0]])
        assert split.mask[:, :2].all()
        bridge = one.truth["bridge"][:, 0]
        assert torch.equal(split.truth["bridge"], torch.where(bridge[:, None] >= 0, written[bridge], -1))
        assert torch.equal(split.labels, two.encoding.token(torch.arange(2 * two.names)))
        assert split.inputs.shape[1] == two.task.positions == len(split.positions)
        assert int(split.inputs.max()) < two.task.tokens
    assert plain.generated.train.rows == two.generated.train.rows
    assert torch.equal(plain.generated.train.order(0, 3), two.generated.train.order(0, 3))
    for name in two.held_out_splits:
        assert two.baselines(name) == pytest.approx(plain.baselines(name), abs=0.2)  # ties go to other entities
        assert two.floor(name) == plain.floor(name) == 1 / 40


def test_the_layout_and_the_second_answer_token():
    regime = TwoTokenComposition(4, **SMALL)
    split = regime.splits["test_inferred_iid"]
    assert split.positions == ("h1", "h2", "r1", "r2", "answer1")
    assert (split.at == torch.tensor([3, 4])).all()
    assert torch.equal(split.inputs[:, 4], split.targets[:, 0])  # teacher-forced
    atomic = regime.splits["id_atomic"]
    assert (atomic.at == torch.tensor([2, 3])).all()
    assert torch.equal(atomic.inputs[:, 3], atomic.targets[:, 0])
    assert (atomic.truth["bridge"] == -1).all()
    assert regime.tokens(torch.tensor([0, 9, 10, 19, 20, 31, 35])) == [
        "<first_0>", "<first_9>", "<last_0>", "<last_9>", "<r_0>", "<r_11>", "</a>",
    ]  # fmt: skip
    assert regime.task.tokens == 2 * 10 + 12 + 6


def test_the_shortcut_is_scored_by_both_tokens():
    regime = TwoTokenComposition(5, **SMALL)
    table, split = regime.generated.train.table, regime.splits["train_inferred"]
    seen = {}
    for row, answer in zip(table.inputs[:, 3].tolist(), table.targets.tolist(), strict=True):
        counts = seen.setdefault(row, {})
        counts[tuple(answer)] = counts.get(tuple(answer), 0) + 1
    best = {row: min(counts, key=lambda answer: (-counts[answer], answer)) for row, counts in seen.items()}
    right = [
        best[row] == tuple(answer)
        for row, answer in zip(split.inputs[:, 3].tolist(), split.targets.tolist(), strict=True)
    ]
    assert regime.baselines("train_inferred") == {"shortcut": pytest.approx(sum(right) / len(right))}


def test_lens_and_probe_of_each_token_of_the_bridge():
    regime = TwoTokenComposition(4, **SMALL)
    model = LoopedTransformer(regime.task, width=16, layers=1, loops=2, heads=2, init_std=0.3)
    split = regime.splits["train_inferred"]
    for column in ("bridge[0]", "bridge[1]"):
        grid = linear_probes(model, split, column).grid()
        assert grid.name == f"probes/accuracy/{column}"
        assert grid.axes["position"] == split.positions
    lens = logit_lens(model, split, ["bridge[0]", "bridge[1]", "bridge"])
    both = torch.cat([lens.readings[f"bridge[{i}]"].rank for i in (0, 1)], -1)
    assert torch.equal(both, lens.readings["bridge"].rank)
    with pytest.raises(BadInput, match=r"use one, bridge\[0\]"):
        linear_probes(model, split, "bridge")
    with pytest.raises(BadInput, match="told apart by one token"):  # not by first names, silently
        cosine_lens(model, regime.splits["id_atomic"], regime.splits["ood_atomic"])


def test_lazily_the_same_evaluation_splits():
    stored, lazy = (TwoTokenComposition(4, **SMALL, lazy=lazy) for lazy in (False, True))
    for name in TwoTokenComposition.held_out_splits:
        assert torch.equal(stored.splits[name].inputs.sort(0).values, lazy.splits[name].inputs.sort(0).values)
    assert lazy.generated.train.batch(0).queries.inputs.shape[1] == 5


@pytest.mark.parametrize(
    ("entities", "multiplicity", "told"), [(40, 8, "use 1, 2, 4, 5"), (40, 3, "use 1, 2, 4, 5"), (40, 0, "1 or more")]
)
def test_multiplicities_that_leave_too_few_pairs_are_refused(entities, multiplicity, told):
    with pytest.raises(BadInput, match=told):
        TwoTokenComposition(multiplicity, entities=entities)


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        TwoTokenComposition(0, relations=0, phi=-1.0, batch=0)
    assert [problem.key for problem in error.value.problems] == ["relations", "phi", "batch", "multiplicity"]
