"""Counterfactual queries are what their definitions say, drawn evenly and from nothing but (seed, query)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.circuits import (
    comparison_counterfactuals,
    composition_counterfactuals,
    counterfactuals_for,
    other_queries,
    same_bridge_counterfactuals,
    same_value_counterfactuals,
)
from grok.data import AtomicFacts, Comparison, ModularArithmetic, Split, TwoHopComposition
from grok.errors import BadInput


def regime(seed=0, **options):
    sizes = {"entities": 20, "relations": 6, "out_degree": 4, "phi": 2, "iid": 0.2, "ood": 0.1}
    return TwoHopComposition(**{**sizes, **options, "seed": seed})


def table(facts: AtomicFacts) -> dict[tuple[int, int], int]:
    rows = zip(facts.head.tolist(), facts.relation.tolist(), facts.tail.tolist(), strict=True)
    return {(h, r): t for h, r, t in rows}


def outcome(known, h, r1, r2):
    return known.get((known.get((h, r1)), r2), -1)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.booleans(), st.sampled_from(["train_inferred", "test_inferred_iid"]))
def test_composition_counterfactuals_replace_one_token_and_change_the_answer(seed, valid, name):
    data = regime(seed)
    split, facts = data.splits[name], data.generated.facts
    known, composed = table(facts), set()
    for row in facts.composed.nonzero()[:, 0].tolist():
        composed.add((int(facts.head[row]), int(facts.relation[row])))
    for position, one in enumerate(composition_counterfactuals(split, facts, seed, valid)):
        assert one.positions == (position,)
        for row, (query, other) in enumerate(zip(split.inputs.tolist(), one.inputs.tolist(), strict=True)):
            answer, exists, target = int(one.answer[row]), bool(one.exists[row]), int(split.targets[row, 0])
            changed = [p for p in range(3) if query[p] != other[p]]
            assert changed == ([position] if exists else [])
            if exists:
                assert answer == outcome(known, *other) != target
                assert answer >= 0 or not valid
            if exists and position == 1:
                assert (other[0], other[1]) in composed
            if exists and position == 2:
                assert (known[other[0], other[1]], other[2]) in composed
            if not exists and valid and position == 0:  # then there really is none
                heads = {h for h, _ in composed if h != query[0] and (h, query[1]) in composed}
                assert all(outcome(known, h, *query[1:]) in (-1, target) for h in heads)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000))
def test_the_floor_keeps_the_bridge_or_the_answer(seed):
    data = regime(seed)
    split, facts = data.splits["train_inferred"], data.generated.facts
    known = table(facts)
    h, r1, r2 = same_bridge_counterfactuals(split, facts, seed)
    for row, query in enumerate(split.inputs.tolist()):
        bridge, target = int(split.truth["bridge"][row, 0]), int(split.targets[row, 0])
        if h.exists[row]:
            other = h.inputs[row].tolist()
            assert other[1:] == query[1:]
            assert other[0] != query[0]
            assert known[other[0], other[1]] == bridge
        if r1.exists[row]:
            other = r1.inputs[row].tolist()
            assert other[2] == query[2]
            assert other[0] != query[0]
            assert other[1] != query[1]
            assert known[other[0], other[1]] == bridge
        if r2.exists[row]:
            other = r2.inputs[row].tolist()
            assert known[other[0], other[1]] != bridge
            assert outcome(known, *other) == target


def test_draws_depend_on_seed_and_query_only():
    data = regime()
    split, facts = data.splits["train_inferred"], data.generated.facts
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    for make in (composition_counterfactuals, same_bridge_counterfactuals):
        for one, other, another in zip(
            make(split, facts), make(split.take(order), facts), make(split, facts, seed=1), strict=True
        ):
            assert torch.equal(one.inputs[order], other.inputs)
            assert not torch.equal(one.inputs, another.inputs)


def test_every_acceptable_relation_is_drawn_about_as_often():
    data = regime(entities=6, relations=6, out_degree=6, phi=4, ood=0.0, iid=0.1)
    split, facts = data.splits["train_inferred"].take(slice(0, 1)), data.generated.facts
    known = table(facts)
    h, r1, r2 = split.inputs[0].tolist()
    answer = int(split.targets[0, 0])
    possible = {r for (head, r) in known if head == h and r != r1 and outcome(known, h, r, r2) != answer}
    drawn = [int(composition_counterfactuals(split, facts, seed)[1].inputs[0, 1]) for seed in range(300)]
    assert set(drawn) == possible
    assert all(0.5 < drawn.count(r) * len(possible) / 300 < 1.6 for r in possible)


def test_other_queries_serve_any_regime():
    split = ModularArithmetic(modulus=11).splits["test"]
    for same in (False, True):
        counterfactuals = other_queries(split, same_answer=same)
        assert [one.name for one in counterfactuals] == ["a", "b", "="]
        for one in counterfactuals:
            assert one.exists.all()
            assert ((one.inputs[:, 0] + one.inputs[:, 1]) % 11 == one.answer).all()
            assert ((one.answer == split.targets[:, 0]) == same).all()
            assert (one.inputs != split.inputs).any(1).all()


COMPARED = Comparison(entities=40, attributes=4, values=5, ood=0.2, iid=0.3, phi=2, test_size=200)


def asked(split):
    """Rows (attribute, e1, e2) of the table of values, of every query; `split` may be inputs."""
    known, inputs = COMPARED.generated.facts, getattr(split, "inputs", split)
    lists = (known.attributes.tolist(), known.entities.tolist(), known.entities.tolist())
    return [tuple(one.index(t) for one, t in zip(lists, row[:5:2], strict=True)) for row in inputs.tolist()]


@pytest.mark.parametrize("valid", [False, True])
def test_comparison_counterfactuals_follow_the_released_rule(valid):
    split, known = COMPARED.splits["test_inferred_iid"], COMPARED.generated.facts
    values = known.values.tolist()
    e1, e2, a = drawn = comparison_counterfactuals(split, known, valid=valid)
    assert [(one.name, one.positions) for one in drawn] == [("e1", (2, 3)), ("e2", (4,)), ("a", (0, 1))]
    for row, (attribute, one, two) in enumerate(asked(split)):
        for cf, own, other, place in ((e1, one, two, 2), (e2, two, one, 4)):
            if not cf.exists[row]:
                continue
            new = asked(cf.inputs)[row][place // 2]
            mine, wanted, got = (values[entity][attribute] for entity in (own, other, new))
            assert new != own
            assert not (valid and new == other)
            assert not known.ood[new, attribute]
            assert abs(got - wanted) == (1 if mine == wanted else 0)
            left, right = (got, wanted) if place == 2 else (wanted, got)
            assert int(cf.answer[row]) == known.labels[attribute, 1 + (left > right) - (left < right)]
            kept = [p for p in range(5) if p != place]
            assert torch.equal(cf.inputs[row, kept], split.inputs[row, kept])
        other = asked(a.inputs)[row][0]
        assert other != attribute
        left, right = values[one][other], values[two][other]
        assert int(a.answer[row]) == known.labels[other, 1 + (left > right) - (left < right)]
        assert torch.equal(a.inputs[row, 1:], split.inputs[row, 1:])
    assert e1.exists.float().mean() > 0.9


def test_the_floor_of_comparisons_keeps_the_values_the_attribute_and_the_answer():
    split, known = COMPARED.splits["test_inferred_ood"], COMPARED.generated.facts
    floor = same_value_counterfactuals(split, known)
    assert [one.positions for one in floor] == [one.positions for one in comparison_counterfactuals(split, known)]
    for one, changed in zip(floor, ((1,), (2,), (1, 2)), strict=True):
        assert one.exists.float().mean() > 0.7
        assert torch.equal(one.answer[one.exists], split.targets[:, 0][one.exists])
        assert torch.equal(one.inputs[~one.exists], split.inputs[~one.exists])
        for row in one.exists.nonzero()[:, 0].tolist():
            old, new = asked(split)[row], asked(one.inputs)[row]
            assert [place for place in range(3) if old[place] != new[place]] == list(changed)
            assert new[1] != new[2]
            for place in changed:
                assert known.values[new[place], new[0]] == known.values[old[place], old[0]]
                assert not known.ood[new[place], new[0]]


def test_counterfactuals_by_the_knowledge_of_the_regime():
    two_hop, split = regime(), COMPARED.splits["test_inferred_iid"]

    def names(data, name, kind=None):
        return [one.name for one in counterfactuals_for(data.generated.facts, data.splits[name], kind)[0]]

    assert names(two_hop, "train_inferred") == names(two_hop, "train_inferred", "valid") == ["h", "r1", "r2"]
    assert names(COMPARED, "train_inferred") == names(COMPARED, "train_inferred", "reference") == ["e1", "e2", "a"]
    assert names(COMPARED, "train_inferred", "other") == list(split.positions)
    assert names(COMPARED, "id_atomic") == list(COMPARED.splits["id_atomic"].positions)  # no such counterfactuals
    assert names(ModularArithmetic(modulus=11), "test") == ["a", "b", "="]
    drawn, floor = counterfactuals_for(COMPARED.generated.facts, split)
    expected = comparison_counterfactuals(split, COMPARED.generated.facts)
    assert all(torch.equal(one.inputs, two.inputs) for one, two in zip(drawn, expected, strict=True))
    assert [one.name for one in floor] == ["e1", "e2", "a"]
    with pytest.raises(BadInput, match="counterfactuals='valid': this data has no atomic facts or attribute values"):
        names(ModularArithmetic(modulus=11), "test", "valid")
    with pytest.raises(BadInput, match="positions a, q, e1, mask, e2 are needed; this split has e, a"):
        names(COMPARED, "id_atomic", "reference")


def test_splits_that_have_no_bridge_are_refused_naming_what_they_have():
    data = regime()
    with pytest.raises(BadInput, match="atomic queries, which have no bridge"):
        composition_counterfactuals(data.splits["id_atomic"], data.generated.facts)
    with pytest.raises(BadInput, match=r"this split has positions a, b, = and ground truth a, b"):
        composition_counterfactuals(ModularArithmetic(modulus=11).splits["test"], data.generated.facts)
    with pytest.raises(BadInput, match="positions a, q, e1, mask, e2 are needed; this split has h, r1, r2"):
        comparison_counterfactuals(data.splits["id_atomic"], COMPARED.generated.facts)


def test_facts_say_which_training_compositions_use_them():
    data = regime()
    facts, known = data.generated.facts, table(data.generated.facts)
    used = set()
    for h, r1, r2 in data.encode(data.graph, data.queries().train).inputs.tolist():
        if (known.get((h, r1)), r2) in known and r2 < data.symbols - 6:
            used |= {(h, r1), (known[h, r1], r2)}
    composed = {(int(facts.head[row]), int(facts.relation[row])) for row in facts.composed.nonzero()[:, 0]}
    assert composed == used
    assert 0 < len(composed) < len(known)
    assert int(facts.find(torch.tensor(0), torch.tensor(0))) == -1  # token 0 is an entity, no relation


@pytest.mark.parametrize("valid", [False, True])
def test_where_there_is_no_candidate_there_is_no_counterfactual(valid):
    data = regime()
    facts, split = data.generated.facts, data.splits["train_inferred"]
    none = AtomicFacts(facts.head, facts.relation, facts.tail, torch.zeros_like(facts.composed))
    for one in composition_counterfactuals(split, none, valid=valid):
        assert not one.exists.any()
        assert torch.equal(one.inputs, split.inputs)
        assert one.answer.eq(-1).all()


@pytest.mark.parametrize("name", ["train_inferred", "test_inferred_ood"])
def test_a_query_alone_has_the_counterfactuals_that_it_has_among_many(name):
    data = regime()
    facts, split = data.generated.facts, data.splits[name].take(slice(0, 60))
    for make in (composition_counterfactuals, same_bridge_counterfactuals):
        together = make(split, facts)
        for row in range(len(split)):
            for one, several in zip(make(split.take(slice(row, row + 1)), facts), together, strict=True):
                assert torch.equal(one.inputs[0], several.inputs[row])
                assert one.exists[0] == several.exists[row]
    alone = other_queries(split.take(slice(0, 1)))
    assert not any(one.exists.any() for one in alone)


def test_facts_of_which_none_leads_on():
    """One OOD query among facts that no other query uses: no group of candidates has a member."""
    facts = AtomicFacts(*(torch.tensor(x) for x in ([0, 1], [5, 6], [1, 2])), torch.zeros(2, dtype=torch.bool))
    at = torch.full((1, 1), 2)
    split = Split(
        torch.tensor([[0, 5, 6]]),
        at,
        torch.tensor([[2]]),
        at.bool(),
        ("h", "r1", "r2"),
        {"bridge": torch.tensor([[1]])},
    )
    for one in (*composition_counterfactuals(split, facts), *same_bridge_counterfactuals(split, facts)):
        assert one.exists.tolist() == [False]
        assert one.inputs.tolist() == [[0, 5, 6]]


@pytest.mark.parametrize("same", [False, True])
def test_other_queries_depend_on_seed_and_queries_and_not_on_their_order(same):
    split = ModularArithmetic(modulus=11).splits["test"]
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    one, other, another = (
        other_queries(part, seed, same)[0] for part, seed in ((split, 0), (split.take(order), 0), (split, 1))
    )
    assert torch.equal(one.inputs[order], other.inputs)
    assert torch.equal(one.answer[order], other.answer)
    assert not torch.equal(one.inputs, another.inputs)
    assert len(one.inputs.unique(dim=0)) > len(split) / 3  # draws differ between queries


def test_a_copy_of_a_query_is_not_another_one():
    split = ModularArithmetic(modulus=11).splits["test"]
    twice = split.take(torch.zeros(2, dtype=torch.int64))
    assert not other_queries(twice, same_answer=True)[0].exists.any()
