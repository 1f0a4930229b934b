"""Comparison: who is out of distribution, which pairs are trained and tested, what is asked, and what the seeds fix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import AttributeValues, Comparison, FillIn, NextToken
from grok.errors import BadInput

SMALL = {"entities": 24, "attributes": 3, "values": 4, "phi": 3, "ood": 0.25, "iid": 0.2, "test_size": 10_000}
regimes = st.builds(
    Comparison,
    entities=st.integers(12, 30),
    attributes=st.integers(1, 4),
    values=st.integers(2, 6),
    ood=st.sampled_from([0.2, 0.4]),
    iid=st.sampled_from([0.1, 0.5]),
    phi=st.sampled_from([0.5, 1.5]),
    test_size=st.sampled_from([5, 100]),
    seed=st.integers(0, 10**6),
    encoding=st.sampled_from([None, NextToken(vocab="gpt2", pad=10, supervise_eos=True), FillIn()]),
)
few = settings(deadline=None, max_examples=10)


def written(regime, split):
    """Every query as the list of its written tokens, and the written answer."""
    names = {int(t): regime.symbol_name(s) for s, t in enumerate(regime.encoding.token(torch.arange(regime.symbols)))}
    queries = [[names.get(token, "padding") for token in row] for row in split.inputs.tolist()]
    return list(zip(queries, [names[token] for token in split.targets[:, 0].tolist()], strict=True))


def number(text):
    return int(text.strip("<>").split("_")[-1])


def pairs(regime, split):
    """(attribute, first, second) of every query of a split of comparisons."""
    return [(number(row[0]), number(row[2]), number(row[4])) for row, _ in written(regime, split)]


@few
@given(regimes)
def test_questions_and_answers_say_what_the_values_are(regime):
    known = regime.knowledge
    for name, split in regime.splits.items():
        assert split.mask[:, 0].all()
        assert split.inputs.shape[1] == regime.task.positions
        assert int(split.inputs.max()) < regime.task.tokens
        assert torch.isin(split.targets[:, 0], split.labels).all()
        for row, (query, answer) in enumerate(written(regime, split)):
            if name.endswith("atomic"):
                entity, attribute = number(query[0]), number(query[1])
                assert answer == f"<{known.values[entity, attribute]}>"
                assert bool(known.ood[entity, attribute]) == (name == "ood_atomic")
                continue
            assert (query[1], query[3], split.positions[:5]) == ("<q>", "<mask>", ("a", "q", "e1", "mask", "e2"))
            attribute, first, second = number(query[0]), number(query[2]), number(query[4])
            one, two = (int(known.values[entity, attribute]) for entity in (first, second))
            assert first != second
            assert answer == f"<attr_{attribute}_{0 if one < two else 1 if one == two else 2}>"
            if row < 2:
                truth = {key: regime.tokens(column[row]) for key, column in split.truth.items()}
                labels = [f"<attr_{attribute}_{label}>" for label in range(3)]
                assert truth == {"v1": [f"<{one}>"], "v2": [f"<{two}>"], "labels": labels}


@few
@given(regimes)
def test_ood_is_exact_for_every_attribute_and_no_ood_entity_is_in_a_trained_comparison(regime):
    known = regime.knowledge
    assert (known.ood.sum(0) == round(regime.ood * regime.entities)).all()
    table = regime.generated.train.table
    facts = regime.entities * regime.attributes
    compared = [number(row[0]) for row, _ in written(regime, table)[:facts]]  # atomic facts come first: entities
    assert sorted(compared) == sorted(list(range(regime.entities)) * regime.attributes)
    assert len(table) == facts + round(regime.phi * int((~known.ood).sum()))
    rest = table.take(slice(facts, None))
    assert not any(known.ood[e1, a] or known.ood[e2, a] for a, e1, e2 in pairs(regime, rest))
    assert len(set(pairs(regime, rest))) == len(rest)


def test_pairs_of_two_id_entities_are_trained_or_held_out_in_both_orders_and_mixed_pairs_nowhere():
    regime = Comparison(**SMALL | {"phi": 0.01})
    known, iid, ood = regime.knowledge, *(pairs(regime, regime.splits[f"test_inferred_{n}"]) for n in ("iid", "ood"))
    assert {(a, y, x) for a, x, y in iid} == set(iid)
    everything = {(a, x, y) for a in range(3) for x in range(24) for y in range(24) if x != y}
    assert set(ood) == {(a, x, y) for a, x, y in everything if known.ood[x, a] and known.ood[y, a]}
    possible = {(a, x, y) for a, x, y in everything if not known.ood[x, a] and not known.ood[y, a]}
    assert set(iid) < possible
    assert 0.1 < len(iid) / len(possible) < 0.3
    largest = (len(possible) - len(iid)) / int((~known.ood).sum())
    whole = Comparison(**SMALL | {"phi": largest})
    assert set(pairs(whole, whole.splits["train_inferred"])) == possible - set(iid)
    with pytest.raises(BadInput, match=rf"phi=[\d.]+: use at most {largest - 0.0005:.3f}"):
        Comparison(**SMALL | {"phi": largest + 0.1}).setup()


def test_a_sample_is_part_of_a_larger_one_and_shares_values_and_tests():
    small, large = (Comparison(**SMALL | {"phi": phi}) for phi in (1, 4))
    assert set(pairs(small, small.splits["train_inferred"])) < set(pairs(large, large.splits["train_inferred"]))
    for name in ("id_atomic", "ood_atomic", "test_inferred_iid", "test_inferred_ood"):
        assert torch.equal(small.splits[name].inputs, large.splits[name].inputs)


def test_everything_is_a_function_of_the_seeds():
    one, again, order = (
        Comparison(**SMALL, seed=5),
        Comparison(**SMALL, seed=5),
        Comparison(**SMALL, seed=6, graph_seed=5),
    )
    assert torch.equal(one.generated.train.table.inputs, again.generated.train.table.inputs)
    assert torch.equal(one.generated.train.table.inputs, order.generated.train.table.inputs)
    assert not torch.equal(one.generated.train.order(0, 2), order.generated.train.order(0, 2))
    assert not torch.equal(one.knowledge.values, Comparison(**SMALL, seed=6).knowledge.values)


def test_values_are_uniform_and_independent_of_being_ood():
    known = AttributeValues.random(1000, 20, 20, ood=0.1, seed=1)
    counts = known.values.flatten().bincount(minlength=20)
    assert (counts - 1000).abs().max() < 150  # binomial: standard deviation 31
    assert abs(known.values[known.ood].double().mean() - 9.5) < 0.5
    assert not torch.equal(known.ood[:, 0], known.ood[:, 1])


def test_the_knowledge_given_to_the_analysis_is_in_tokens():
    regime = Comparison(**SMALL, encoding=NextToken(vocab="gpt2", pad=10))
    known = regime.generated.facts
    assert [regime.token_name(int(known.entities[7])), regime.token_name(int(known.attributes[2]))] == [
        "<e_7>",
        "<attr_2>",
    ]
    assert regime.tokens(known.labels[1]) == ["<attr_1_0>", "<attr_1_1>", "<attr_1_2>"]
    assert torch.equal(known.values, regime.knowledge.values)


def test_floors_and_the_baseline_that_sees_one_value():
    regime = Comparison(entities=200, attributes=4, values=20)
    assert regime.floor("id_atomic") == 1 / 20
    assert regime.floor("test_inferred_ood") == 1 / 3
    assert regime.baselines("ood_atomic") == {}
    # Of 20 values, the larger of the shares below and above the first: (10 + … + 19) · 2 / 400.
    known = regime.baselines("test_inferred_iid")
    assert abs(known["one_value"] - 0.725) < 0.04
    assert abs(known["majority"] - 0.475) < 0.04  # less and greater are as frequent, equal is 1 of 20


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        Comparison(entities=1, attributes=0, values=1, phi=0, ood=2, iid=-1, test_size=0, batch=0)
    keys = [problem.key for problem in error.value.problems]
    assert keys == ["entities", "attributes", "values", "test_size", "ood", "iid", "batch", "phi"]
    with pytest.raises(BadInput, match="entities=6000: pairs do not fit into memory: use at most 5000"):
        Comparison(entities=6000)


@pytest.mark.slow
def test_the_published_sizes():
    regime = Comparison()
    assert regime.symbols == 1106
    assert regime.generated.train.rows == 246_800
    sizes = {name: len(split) for name, split in regime.splits.items()}
    assert sizes == {"id_atomic": 3000, "ood_atomic": 2000, **dict.fromkeys(list(sizes)[2:], 3000)}
