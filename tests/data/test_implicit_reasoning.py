"""Variants of Ye et al. 2025: what each trains and tests, against a plain enumeration of tiny graphs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import ImplicitReasoning
from grok.errors import BadInput

SIZES = {"entities": 16, "relations": 7, "out_degree": 5, "phi": 1.2, "ood": 0.15, "iid": 0.15, "test_size": 10_000}
VARIANTS = {
    "base": {},
    "second_hop_restricted": {"restricted": 0.1},
    "without_id": {"atomic": "ood"},
    "held_out_id": {"held_out": 0.2},
    "train_ii_only": {"atomic": "none"},
    "as_released": {"as_released": True},
    "both": {"held_out": 0.2, "restricted": 0.1},
}
few = settings(deadline=None, max_examples=8)


def facts_of(regime):
    """Fact row → (h, r, t, whether OOD), in plain Python."""
    graph = regime.graph
    flat = zip(graph.relations.flatten().tolist(), graph.tails.flatten().tolist(), graph.ood.tolist(), strict=True)
    return [(row // graph.out_degree, *rest) for row, rest in enumerate(flat)]


def trained(regime):
    """The training table as (first fact, second fact); -1 for no second hop."""
    return list(zip(*(column.tolist() for column in regime.queries().train), strict=True))


def asked(regime, name):
    return {tuple(row) for row in regime.splits[name].truth["facts"].tolist()} if name in regime.splits else set()


def compositions(facts):
    """Every (first, second) by plain enumeration."""
    return {(i, j) for i, one in enumerate(facts) for j, two in enumerate(facts) if one[2] == two[0]}


@few
@given(st.integers(0, 10**6), st.sampled_from(list(VARIANTS)))
def test_what_is_trained_and_tested_agrees_with_a_plain_enumeration(seed, variant):
    options = VARIANTS[variant]
    regime = ImplicitReasoning(**SIZES, **options, seed=seed)
    facts, rows = facts_of(regime), trained(regime)
    known = {row for row, fact in enumerate(facts) if not fact[3]}
    unknown = set(range(len(facts))) - known
    restricted = set(regime.chosen("restrict", regime.restricted).nonzero()[:, 0].tolist())
    held = set(regime.chosen("held", regime.held_out).nonzero()[:, 0].tolist())
    assert (len(restricted), len(held)) == tuple(
        round(options.get(k, 0) * len(known)) for k in ("restricted", "held_out")
    )
    assert restricted | held <= known

    atomic = [one for one, two in rows if two < 0]
    expected = {"ood": unknown, "none": set()}.get(regime.atomic, (known - held) | unknown)
    assert len(atomic) == len(set(atomic))
    assert set(atomic) == expected

    every = compositions(facts)
    both_known = {(i, j) for i, j in every if i in known and j in known}
    free = {(i, j) for i, j in both_known if j not in restricted}
    inferred = {(i, j) for i, j in rows if j >= 0}
    assert inferred <= free
    held_out = asked(regime, "test_inferred_iid")
    assert held_out <= free - inferred
    whole = len(free - held_out)
    assert len(inferred) == len(rows) - len(atomic) == (whole if regime.as_released else round(1.2 * len(known)))
    assert regime.effective_phi == pytest.approx(len(inferred) / len(known))
    assert regime.sizes() == {"effective_phi": regime.effective_phi}
    assert asked(regime, "train_inferred") == inferred

    mixed = {"io": (known, unknown), "oi": (unknown, known), "ood": (unknown, unknown)}
    for name, (first, second) in mixed.items():
        of = {(i, j) for i, j in every if i in first and j in second}
        assert asked(regime, f"test_inferred_{name}") == (set() if restricted else of)
    assert asked(regime, "test_inferred_restricted") == {(i, j) for i, j in both_known if j in restricted}
    first_facts = {name: {i for i, _ in asked(regime, name)} for name in ("held_out_atomic", "retained_atomic")}
    assert first_facts == {"held_out_atomic": held, "retained_atomic": known - held if held else set()}
    assert {i for i, _ in asked(regime, "id_atomic")} == known


@few
@given(st.integers(0, 10**6))
def test_variants_of_a_seed_share_their_graph_and_their_tests(seed):
    base, *others = (ImplicitReasoning(**SIZES, **options, seed=seed) for options in VARIANTS.values())
    for other in others:
        assert facts_of(other) == facts_of(base)
        if not other.restricted:
            for name in ("test_inferred_iid", "test_inferred_oi"):
                assert asked(other, name) == asked(base, name)
            assert asked(base, "train_inferred") <= asked(other, "train_inferred")
    fewer = ImplicitReasoning(**SIZES, held_out=0.1, seed=seed)
    assert asked(fewer, "held_out_atomic") < asked(others[2], "held_out_atomic")


def test_answers_follow_the_facts():
    regime = ImplicitReasoning(**SIZES)
    facts = facts_of(regime)
    for name, split in regime.splits.items():
        for (i, j), target, bridge in zip(
            split.truth["facts"].tolist(),
            split.targets[:, 0].tolist(),
            split.truth["bridge"][:, 0].tolist(),
            strict=True,
        ):
            assert target == facts[i if j < 0 else j][2], name
            assert bridge == (-1 if j < 0 else facts[i][2])


def test_counts_at_paper_size():
    base, released = ImplicitReasoning(), ImplicitReasoning(as_released=True)
    assert base.generated.train.rows == 38_000 + 2_000 + 273_600
    assert base.effective_phi == 7.2
    assert len(base.splits["test_inferred_iid"]) == len(base.splits["test_inferred_oi"]) == 3000
    assert released.effective_phi == pytest.approx(18.06, abs=0.03)


@pytest.mark.parametrize("restricted", [0.0, 0.1])
def test_phases_are_declared_with_splits_that_exist(restricted):
    regime = ImplicitReasoning(**SIZES, restricted=restricted)
    assert [phase.split for phase in regime.phases] == [
        "train_inferred", "test_inferred_iid", *([] if restricted else ["test_inferred_oi"]),
    ]  # fmt: skip
    assert {phase.split for phase in regime.phases} | set(regime.held_out_splits) <= set(regime.splits)


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        ImplicitReasoning(atomic="some", held_out=1.0, restricted=-0.1, lazy=True, entities=0, batch=0)
    keys = [problem.key for problem in error.value.problems]
    assert sorted(keys) == sorted(["entities", "batch", "lazy", "atomic", "held_out", "restricted"])
    with pytest.raises(BadInput, match="atomic=ood trains no ID fact"):
        ImplicitReasoning(atomic="ood", held_out=0.05)
    with pytest.raises(BadInput, match="lazy=false and a smaller graph"):
        ImplicitReasoning(entities=10**6)
    with pytest.raises(BadInput, match=r"phi=7\.2: use at most 5\.\d+: 68,\d+ ID compositions"):
        ImplicitReasoning(ood=0.7).setup()
