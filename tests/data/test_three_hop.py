"""Three hops: the eight tests partition all compositions, nothing leaks, and the chain ends where the facts lead."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import FillIn, ThreeHopComposition
from grok.data.three_hop import THREE_HOP_SPLITS
from grok.errors import BadInput

SIZES = {"entities": 12, "relations": 6, "out_degree": 4, "phi": 2.0, "ood": 0.25, "iii": 0.2, "test_size": 10_000}
few = settings(deadline=None, max_examples=8)


def facts_of(regime):
    """(h, r) → (t, fact row, whether OOD), in plain Python, r as a symbol."""
    graph, found = regime.graph, {}
    flat = zip(graph.relations.flatten().tolist(), graph.tails.flatten().tolist(), graph.ood.tolist(), strict=True)
    for row, (relation, tail, ood) in enumerate(flat):
        found[row // graph.out_degree, relation + regime.entities] = tail, row, ood
    return found


def asked(split, positions=4):
    return {tuple(row[:positions]) for row in split.inputs.tolist()}


@few
@given(st.integers(0, 10**6), st.sampled_from(["next", "fill"]))
def test_the_eight_splits_and_training_partition_a_plain_enumeration(seed, encoding):
    regime = ThreeHopComposition(**SIZES, seed=seed, encoding=FillIn() if encoding == "fill" else None)
    facts, shift = facts_of(regime), int(encoding == "fill")
    every = {}
    for (h, r1), (b1, *_) in facts.items():
        for r2, r3 in product(range(12, 18), repeat=2):
            if (b1, r2) in facts and (facts[b1, r2][0], r3) in facts:
                b2 = facts[b1, r2][0]
                hops = [facts[h, r1], facts[b1, r2], facts[b2, r3]]
                every[h, r1, r2, r3] = hops, "".join("io"[hop[2]] for hop in hops)
    assert len(every) == 12 * 4**3

    seen = {name: {tuple(t - shift for t in row) for row in asked(split)} for name, split in regime.splits.items()}
    trained = seen["train_inferred"]
    for name in THREE_HOP_SPLITS[1:]:
        assert seen.get(name, set()) == {query for query, (_, kind) in every.items() if kind == name[-3:]}
    known = {query for query, (_, kind) in every.items() if kind == "iii"}
    assert trained <= known - seen["test_inferred_iii"]
    assert seen["test_inferred_iii"] <= known
    assert 0 < len(seen["test_inferred_iii"]) < 0.5 * len(known)
    assert len(trained) == 2 * 48

    for name in {"train_inferred", *THREE_HOP_SPLITS} & set(seen):  # an empty split is left out
        split = regime.splits[name]
        for row, answer, bridge, rows, ood in zip(
            split.inputs.tolist(), split.targets[:, 0].tolist(), split.truth["bridge"].tolist(),
            split.truth["facts"].tolist(), split.truth["ood"].tolist(), strict=True,
        ):  # fmt: skip
            hops, _ = every[tuple(token - shift for token in row[:4])]
            assert [*bridge, answer] == [tail + shift for tail, _, _ in hops]
            assert rows == [fact for _, fact, _ in hops]
            assert ood == [int(flag) for _, _, flag in hops]


@few
@given(st.integers(0, 10**6))
def test_all_facts_are_trained_as_atomic_ones_and_compositions_of_id_facts_only(seed):
    regime = ThreeHopComposition(**SIZES, seed=seed)
    atomic, inferred, splits = regime.queries()
    assert atomic[:, 0].sort().values.tolist() == list(range(48))
    assert (atomic[:, 1:] == -1).all()
    assert not regime.graph.ood[inferred].any()
    assert regime.generated.train.rows == 48 + len(inferred)
    assert len(splits["ood_atomic"]) == 12
    assert regime.graph.ood[splits["ood_atomic"][:, 0]].all()
    assert (regime.splits["id_atomic"].truth["bridge"] == -1).all()
    assert regime.generated.facts.composed.nonzero()[:, 0].tolist() == sorted(set(inferred.flatten().tolist()))
    again, less = ThreeHopComposition(**SIZES, seed=seed), ThreeHopComposition(**SIZES | {"phi": 1.0}, seed=seed)
    assert (again.queries()[1] == inferred).all()
    assert {tuple(row) for row in less.queries()[1].tolist()} < {tuple(row) for row in inferred.tolist()}


def test_counts_at_paper_size():
    regime = ThreeHopComposition()
    sizes = {name: len(split) for name, split in regime.splits.items()}
    assert list(sizes) == ["id_atomic", "ood_atomic", "train_inferred", *THREE_HOP_SPLITS]
    assert set(sizes.values()) == {1000}
    assert regime.generated.train.rows == 10_000 + 120_000
    assert regime.task.tokens == 1000 + 100 + 6
    assert regime.splits["test_inferred_iii"].inputs.shape == (1000, 4)
    assert regime.tokens(regime.splits["id_atomic"].inputs[0])[2] == "</a>"  # padding
    assert 0 < regime.baselines("test_inferred_iii")["shortcut"] < 0.1
    assert regime.baselines("id_atomic") == {}


def test_what_cannot_be_made_is_refused():
    with pytest.raises(BadInput) as error:
        ThreeHopComposition(entities=0, out_degree=200, phi=0, ood=2, iii=-1, batch=0)
    assert [problem.key for problem in error.value.problems] == ["entities", "out_degree", "ood", "iii", "phi", "batch"]
    with pytest.raises(BadInput, match="do not fit into memory"):
        ThreeHopComposition(entities=100_000)
    with pytest.raises(BadInput, match=r"phi=60: use at most \d+\.\d+: [\d,]+ compositions of three ID facts"):
        ThreeHopComposition(phi=60).setup()
