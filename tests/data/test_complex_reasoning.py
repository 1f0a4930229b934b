"""Complex reasoning: what follows from what, the hard test, which facts are hidden, and what is supervised."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import ComplexReasoning, FillIn, NextToken
from grok.data.order import UNKNOWN, derived
from grok.errors import BadInput

SMALL = {"entities": 40, "attributes": 4, "values": 10, "ood": 0.3, "share": 0.1, "hard_per_label": 2}
few = settings(deadline=None, max_examples=20)


def reached(less, equal, start):
    """What is above (True) and equal to (False) `start`, by search over (entity, whether a `less` edge was taken)."""
    seen, todo = {(start, False)}, [(start, False)]
    while todo:
        entity, strict = todo.pop()
        for other in range(len(less)):
            if less[entity][other]:
                found = (other, True)
            elif equal[entity][other] or equal[other][entity]:
                found = (other, strict)
            else:
                continue
            if found not in seen:
                seen.add(found)
                todo.append(found)
    return seen


def naive(less, equal):
    size = len(less)
    found = [[UNKNOWN] * size for _ in range(size)]
    for x in range(size):
        for y, strict in reached(less, equal, x):
            found[x][y] = 0 if strict else 1
            if strict:
                found[y][x] = 2
    return found


@few
@given(st.integers(2, 14), st.integers(1, 5), st.floats(0.02, 0.5), st.integers(0, 10**6))
def test_what_follows_is_what_a_search_of_paths_finds(size, values, density, seed):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randint(values, (size,), generator=generator)
    given_ = torch.rand(size, size, generator=generator) < density
    less, equal = given_ & (value[:, None] < value), given_ & (value[:, None] == value)
    assert derived(less, equal).tolist() == naive(less.tolist(), equal.tolist())


def test_long_paths_are_followed_to_their_end():
    size = 33  # 0 < 1 = 2 < 3 = 4 …
    less, equal = torch.zeros(2, size, size, dtype=torch.bool)
    for entity in range(size - 1):
        (equal if entity % 2 else less)[entity, entity + 1] = True
    found = derived(less, equal)
    assert found[0, -1] == 0
    assert found[-1, 0] == 2
    assert found[1, 2] == found[2, 1] == 1
    assert derived(less, equal & False)[0, -1] == UNKNOWN


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10**6))
def test_hard_queries_follow_from_values_but_not_from_comparisons_alone(seed):
    regime = ComplexReasoning(**SMALL | {"hard_per_label": 0, "entities": 24, "attributes": 2}, seed=seed)
    known, hard = regime.knowledge, regime.hard()
    for a in range(2):
        value, ood = known.values[:, a].tolist(), known.ood[:, a].tolist()
        given_ = {
            name: {(x, y) for b, x, y in zip(*(c.tolist() for c in pairs), strict=True) if b == a}
            for name, pairs in regime.given.items()
        }
        assert all(ood[x] != ood[y] for x, y in given_["cross"])
        assert not any(ood[x] or ood[y] for x, y in given_["id"])
        by_value = {(x, y) for x in range(24) for y in range(24) if not ood[x] and not ood[y]}

        def follows(edges, value=value):
            less, equal = ([[False] * 24 for _ in range(24)] for _ in range(2))
            for x, y in edges:
                low, high = (x, y) if value[x] <= value[y] else (y, x)
                (equal if value[x] == value[y] else less)[low][high] = True
            return naive(less, equal)

        with_values, alone = follows(given_["cross"] | by_value), follows(given_["cross"] | given_["id"])
        for x in range(24):
            for y in range(24):
                asked = ood[x] and ood[y] and x != y and alone[x][y] == UNKNOWN
                assert int(hard[a, x, y]) == (with_values[x][y] if asked else UNKNOWN)
                if hard[a, x, y] >= 0:  # what follows is true
                    assert hard[a, x, y] == (0 if value[x] < value[y] else 1 if value[x] == value[y] else 2)


def test_the_hard_test_has_as_many_queries_for_each_answer_and_they_are_hard():
    regime = ComplexReasoning(**SMALL)
    split, hard = regime.splits["test_hard"], regime.hard()
    which = (split.truth["labels"] == split.targets[:, :1]).int().argmax(1)
    assert which.bincount().tolist() == [2, 2, 2]
    columns = (split.inputs[:, place] for place in (0, 2, 4))
    attribute, first, second = columns
    assert torch.equal(hard[attribute - 40, first, second].long(), which)


def test_too_few_hard_queries_are_refused_naming_the_answer_the_supply_and_the_fix():
    supply = [int((ComplexReasoning(**SMALL).hard() == label).sum()) for label in range(3)]
    short = min(range(3), key=supply.__getitem__)
    with pytest.raises(BadInput) as error:
        ComplexReasoning(**SMALL | {"hard_per_label": 200}).setup()
    assert str(error.value).startswith(
        f"hard_per_label=200: only {supply[short]} hard queries have the answer {('less', 'equal', 'greater')[short]}: "
    )
    assert "graph_seed, more entities, a larger ood, or a smaller share" in str(error.value)
    data = ComplexReasoning(**SMALL | {"hard_per_label": 0})
    assert "test_hard" not in data.splits


@pytest.mark.parametrize("encoding", [None, FillIn()], ids=["next token", "fill in"])
def test_three_tokens_are_supervised_and_the_first_slot_is_the_answer(encoding):
    regime = ComplexReasoning(**SMALL, encoding=encoding)
    for name, split in regime.splits.items():
        for row in range(0, len(split), 37):
            slots = list(zip(regime.tokens(split.targets[row])[:3], split.mask[row].tolist(), strict=False))
            answer, opening, closing = slots
            assert (opening, closing) == (("<a>", True), ("</a>", True))
            assert answer[1]
            assert answer[0].startswith("<attr_") != name.endswith("atomic")
            if encoding is None:  # read where the token before it is shown
                shown = regime.tokens(split.inputs[row])
                assert [shown[at] for at in split.at[row]] == ["<a>", "</q>", answer[0]]
    assert regime.splits["test_hard"].positions[:6] == ("a", "q", "e1", "mask", "e2", "close")
    assert regime.splits["id_atomic"].positions[:5] == ("q", "e", "a", "mask", "close")


def test_ood_facts_are_never_trained_and_the_shares_are_exact():
    regime = ComplexReasoning(**SMALL, test_size=10_000)
    known, table = regime.knowledge, regime.generated.train.table
    id_facts = int((~known.ood).sum())
    sizes = [len(regime.splits[name]) for name in ("train_inferred", "train_inferred_cross")]
    assert sizes[1] == round(0.1 * 2 * 4 * 12 * 28)
    assert len(table) == id_facts + sum(sizes)
    shown = [regime.tokens(row) for row in table.inputs[:id_facts]]
    assert all(row[0] == "<q>" for row in shown)
    trained = {(int(row[1][3:-1]), int(row[2][6:-1])) for row in shown}
    assert not any(known.ood[entity, attribute] for entity, attribute in trained)
    assert len(regime.splits["ood_atomic"]) == int(known.ood.sum())
    iid = {tuple(row) for row in regime.splits["test_inferred_iid"].inputs[:, [0, 2, 4]].tolist()}
    assert not iid & {tuple(row) for row in table.inputs[id_facts:, [0, 2, 4]].tolist()}


def test_only_two_tokens_where_the_encoding_says_so():
    split = ComplexReasoning(**SMALL, encoding=NextToken()).splits["test_hard"]
    assert split.targets.shape[1] == 2


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        ComplexReasoning(entities=1, share=0, hard_per_label=-1, batch=0)
    assert [problem.key for problem in error.value.problems] == ["entities", "batch", "share", "hard_per_label"]


@pytest.mark.slow
def test_the_published_sizes():
    regime = ComplexReasoning()
    assert regime.generated.train.rows == 562_898  # the paper: 563 thousand
    assert {name: len(pairs.first) for name, pairs in regime.given.items()} == {"id": 436_898, "cross": 108_000}
    assert len(regime.splits["test_hard"]) == 150
