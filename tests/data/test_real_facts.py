"""Lessons on named facts: every set obeys its counts, phi and wrong rate; tests are true; words round-trip."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import NextToken, RealFacts, SyntheticKnowledge
from grok.data.augmentation import by_attachment, by_pairs, invented_chains, invented_heads
from grok.data.fact_graph import branching, chains, comparable, generalisable, largest_phi, needed_branching
from grok.data.fact_tasks import Composed
from grok.data.knowledge_graph import Hops
from grok.errors import BadInput

FILES = Path(__file__).parent / "fixtures/real_facts"
WIKI = {"path": FILES / "two_wiki.json", "leave_out": ["date of birth"]}
SMALL = {"entities": 24, "relations": 6, "out_degree": 5, "tails": 3}


def knowledge(**arguments):
    return SyntheticKnowledge(**{**SMALL, "original": 60, "phi": 2.0, "ood": 0.3, "iid": 0.1, **arguments})


TASKS = st.sampled_from(["composition", "comparison"])


@st.composite
def regimes(draw):
    task = draw(TASKS)
    return knowledge(
        task=task,
        seed=draw(st.integers(0, 2**31)),
        original=draw(st.integers(20, 118)),
        atomic=draw(st.sampled_from([None, 120, 140])) if task == "comparison" else None,
        phi=draw(st.floats(0.2, 4.0)),
        wrong_fact_rate=draw(st.floats(0, 0.9)),
        wrong_facts=draw(st.sampled_from(["consistent", "contradicted"])),
    )


def tables(regime):
    """Dictionaries (head, relation) → tail: what is taught, and what is true; and the OOD and the known keys."""
    taught = regime.lessons.taught
    dictionaries = [{(h, r): t for h, r, t in one.tolist()} for one in (taught.columns, taught.true)]
    keys = list(dictionaries[0])
    ood = {keys[row] for row in regime.lessons.rows(taught).ood.nonzero()[:, 0].tolist()}
    return *dictionaries, ood, set(keys[: taught.known])


def composes(regime):
    return regime.kind is Composed


def asked(regime, name):
    """Queries of a split, (prompt, answer) in entities, relations and symbols; numbers of entities and relations."""
    rows, hops = regime.lessons.asked[name]
    questions = rows.questions(hops)
    of_relation = torch.tensor([0, 1, int(composes(regime))]) * rows.sizes[0]
    prompts = map(tuple, (questions.prompt - of_relation).tolist())
    return list(zip(prompts, questions.answer[:, 0].tolist(), strict=True)), *rows.sizes


def hops_of(regime, prompt):
    """The facts that an inferred query goes through, by (head, relation), following `table`."""
    first, relation, last = prompt

    def through(table):
        if composes(regime):
            return [(first, relation), (table[first, relation], last)]
        return [(first, relation), (last, relation)]

    return through


def answered(regime, prompt, table, entities, relations):
    keys = hops_of(regime, prompt)(table)
    if composes(regime):
        return table[keys[1]]
    return entities + relations + (table[keys[0]] != table[keys[1]])


@given(regimes())
@settings(max_examples=15, deadline=None)
def test_lessons_obey_their_counts_and_tests_are_true_and_held_out(regime):
    lessons = regime.lessons
    taught, arguments = lessons.taught, regime._arguments
    facts = len(taught.true)
    table, truth, ood, known = tables(regime)
    assert len(table) == facts  # each (head, relation) once
    assert taught.original == arguments["original"]
    assert len(ood) == round(0.3 * taught.original)
    if arguments["atomic"] is not None:
        assert facts == arguments["atomic"]
    # The wrong share of the added facts, each with a tail that its relation has, and never an original one.
    assert int(taught.wrong.sum()) == round(arguments["wrong_fact_rate"] * (taught.known - taught.original))
    assert not bool(taught.wrong[: taught.original].any())
    tails = {(r, t) for _, r, t in taught.true[: taught.known].tolist()}
    assert all((r, t) in tails for _, r, t in taught.columns.tolist() if (_, r) in known)
    # phi, without repeats, through ID facts only, answered by what is taught or by the truth.
    trained, entities, relations = asked(regime, "inferred")
    assert len(trained) == len({prompt for prompt, _ in trained}) == round(arguments["phi"] * facts)
    follow = truth if arguments["contradicted"] else table
    for prompt, answer in trained:
        assert not set(hops_of(regime, prompt)(follow)) & ood
        assert answer == answered(regime, prompt, follow, entities, relations)
    seen = {prompt for prompt, _ in trained}
    used = {key for prompt in seen for key in hops_of(regime, prompt)(follow)}
    for name in ("test_inferred_iid", "test_inferred_ood"):
        for prompt, answer in asked(regime, name)[0]:
            keys = hops_of(regime, prompt)(truth)
            assert prompt not in seen
            assert all(key in known and table[key] == truth[key] for key in keys)
            assert answer == answered(regime, prompt, truth, entities, relations)
            assert {key in ood for key in keys} == {name.endswith("ood")}
            assert name.endswith("ood") or used.issuperset(keys)
    if not composes(regime):
        for name in ("inferred", "test_inferred_iid", "test_inferred_ood"):
            answers = [answer - entities - relations for _, answer in asked(regime, name)[0]]
            assert len(answers) - 2 * sum(answers) in (0, -1)  # one more `no` in an odd number
        swapped = {(last, relation, first) for (first, relation, last), _ in asked(regime, "test_inferred_iid")[0]}
        assert not swapped & seen


def test_lessons_are_a_pure_function_of_the_seed():
    one, again, other = (knowledge(seed=seed, wrong_fact_rate=0.3).generated.train.table for seed in (1, 1, 2))
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.targets, again.targets)
    assert not torch.equal(one.inputs, other.inputs)
    assert torch.equal(knowledge(seed=5, graph_seed=1, wrong_fact_rate=0.3).generated.train.table.inputs, one.inputs)


def test_smaller_phi_and_rate_are_parts_of_larger_ones():
    small, large = (knowledge(phi=phi, wrong_fact_rate=rate).lessons for phi, rate in ((1.0, 0.2), (2.0, 0.6)))
    assert set(small.taught.wrong.nonzero().flatten().tolist()) < set(large.taught.wrong.nonzero().flatten().tolist())
    part, whole = (
        {tuple(pair) for pair in torch.stack(knowledge(phi=phi).lessons.trained, 1).tolist()} for phi in (1.0, 2.0)
    )
    assert part < whole


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_consistent_and_contradicted_differ_only_where_a_fact_is_wrong(rate):
    regimes = [knowledge(wrong_facts=kind, wrong_fact_rate=rate) for kind in ("consistent", "contradicted")]
    answers = [dict(asked(regime, "inferred")[0]) for regime in regimes]
    same = answers[0] == answers[1]
    assert same == (rate == 0)


@pytest.mark.parametrize("serialisation", ["structured", "natural"])
def test_without_ood_facts_there_is_no_ood_test_and_without_id_facts_all_that_is_composed_is_invented(serialisation):
    some = knowledge(ood=0.0, serialisation=serialisation)
    assert {"ood_atomic", "test_inferred_ood"}.isdisjoint(some.splits)
    none = knowledge(ood=1.0, original=None, phi=1.0, serialisation=serialisation, seed=2)
    with pytest.raises(BadInput, match="test_inferred_iid: no query in this split"):
        none.setup()
    assert int(torch.stack(none.lessons.trained).min()) >= none.lessons.taught.known


# ---------------------------------------------------------------- the graph


def brute_chains(columns):
    return {
        (i, j)
        for i, (h, _, b) in enumerate(columns)
        for j, (h2, _, t) in enumerate(columns)
        if h2 == b and len({h, b, t}) == 3
    }


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_chains_pairs_and_the_bound_against_a_count_by_hand(triples):
    rows = [[h, r, t] for (h, r), t in {(h, r): t for h, r, t in triples}.items()]
    columns = torch.tensor(rows)
    pairs = chains(columns)
    assert {*zip(*(one.tolist() for one in pairs), strict=True)} == brute_chains(rows)
    both = comparable(columns)
    assert {*zip(*(one.tolist() for one in both), strict=True)} == {
        (i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j and rows[i][1] == rows[j][1]
    }
    factors = branching(columns, pairs, 4)
    leaving = [sum(h == t for h, _, _ in rows) for _, _, t in rows]
    for relation in range(4):
        own = [row for row, (_, r, _) in enumerate(rows) if r == relation]
        if own:  # lemma 1: inferred facts of two hops per atomic fact are at most the facts that leave its tail
            assert factors[relation] <= sum(leaving[row] for row in own) / len(own) + 1e-6


def test_lemmas():
    assert largest_phi(3.0, hops=2) == 3
    assert largest_phi(3.0, hops=4) == 27
    assert needed_branching(27.0, hops=4) == pytest.approx(3)
    assert generalisable(torch.tensor([2.9, 3.1]), 27.0, hops=4).tolist() == [False, True]


def test_in_a_random_graph_the_bound_is_what_is_expected():
    columns = SyntheticKnowledge(entities=500, relations=8, out_degree=4, seed=1).knowledge().columns
    assert len(chains(columns).first) / len(columns) == pytest.approx(largest_phi(4.0), rel=0.02)


# ---------------------------------------------------------------- augmentation


def test_original_facts_are_taken_as_questions_bring_them():
    columns = RealFacts(**WIKI).knowledge().columns
    pairs = chains(columns)
    order = by_pairs(columns, pairs, seed=0)
    assert sorted(order.tolist()) == list(range(len(columns)))
    first = set(order[:20].tolist())
    couples = [{one, two} for one, two in zip(*(rows.tolist() for rows in pairs), strict=True)]
    alone = first - set().union(*(couple for couple in couples if couple <= first))
    assert len(alone) <= 1  # the last pair may be cut in two
    assert torch.equal(order, by_pairs(columns, Hops(*(one.flip(0) for one in pairs)), seed=0))


def test_added_facts_touch_those_before():
    columns = RealFacts(**WIKI).knowledge().columns
    chosen = by_pairs(columns, chains(columns), seed=0)[:10]
    added = by_attachment(columns, chosen, 15, seed=0)
    assert len(set(added.tolist()) | set(chosen.tolist())) == 25
    entities = set(columns[chosen][:, ::2].flatten().tolist())
    for row in added.tolist():
        assert {int(columns[row, 0]), int(columns[row, 2])} & entities
        entities |= {int(columns[row, 0]), int(columns[row, 2])}
    assert len(by_attachment(columns, chosen, 10**6, seed=0)) == len(columns) - 10


@given(st.integers(0, 1000), st.floats(0.5, 3.5))
@settings(max_examples=20, deadline=None)
def test_invented_chains_raise_phi_with_relations_where_they_belong(seed, phi):
    columns = SyntheticKnowledge(entities=30, relations=6, out_degree=4, seed=seed).knowledge().columns
    facts = invented_chains(columns, 400, 30, phi, seed)
    assert len(facts) == 400
    assert len({(h, r) for h, r, _ in facts.tolist()}) == 400
    assert int(facts[:, 0].min()) >= 30
    assert len(chains(torch.cat([columns, facts])).first) - len(chains(columns).first) >= phi * 390
    heads = invented_heads(columns, 50, 30, seed)
    assert {(r, t) for _, r, t in heads.tolist()} <= {(r, t) for _, r, t in columns.tolist()}
    assert heads[:, 0].tolist() == list(range(30, 80))


def test_phi_that_the_facts_cannot_give_is_reached_by_invention():
    regime = RealFacts(**WIKI, phi=1.5)
    assert regime.sizes()["invented_facts"] > 0
    assert regime.sizes()["effective_phi"] == pytest.approx(1.5, abs=0.01)
    assert regime.sizes()["lemma_bound"] > regime.sizes()["trainable_phi"] >= regime.sizes()["effective_phi"]
    assert "invented" in " ".join(regime.names)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("task", ["composition", "comparison"])
@pytest.mark.parametrize("vocabulary", [1, 300])
def test_every_query_is_written_in_tokens_and_read_back(task, vocabulary):
    pytest.importorskip("tokenizers")
    regime = RealFacts(**WIKI, task=task, phi=1.0, serialisation="natural", vocabulary=vocabulary)
    words = regime.words
    for name, split in regime.splits.items():
        rows, hops = regime.lessons.asked[name]
        structured = rows.questions(hops)
        for row, (prompt, answer) in enumerate(zip(words.prompts(structured), words.answers(structured), strict=True)):
            shown = split.inputs[row, : int(split.at[row, 0]) + 1].tolist()
            assert words.tokenizer.decode(shown) == prompt
            target = split.targets[row][split.mask[row]].tolist()
            assert target[-1] == regime.symbols - 1  # `</a>` is supervised: an answer may begin another one
            assert words.tokenizer.decode(target[:-1]) == answer
    assert regime.task.tokens == regime.symbols
    assert words.tokens <= max(vocabulary, 110)


NAMES = st.text(min_size=1, max_size=12).map(lambda text: " ".join(text.split())).filter(bool)


@given(st.lists(NAMES, min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_any_name_round_trips(names):
    pytest.importorskip("tokenizers")
    from grok.data.verbal import Verbaliser

    words = Verbaliser(names, "The {1} of {0} is", "{2} {1} {0}", 300)
    for name in names:
        for text in (f" {name}", f"The {name} of {name} is"):
            assert words.tokenizer.decode(words.tokenizer.encode(text).ids) == text


def test_examples_in_words():
    pytest.importorskip("tokenizers")
    rows = {"composition": r"The .+ of the director of .+ is", "comparison": r"Is the .+ of .+ also that of .+\?"}
    for task, pattern in rows.items():
        regime = RealFacts(**WIKI, task=task, phi=1.0, serialisation="natural")
        facts, hops = regime.lessons.asked["test_inferred_ood"]
        prompts = regime.words.prompts(facts.questions(hops))
        assert any(re.fullmatch(pattern, prompt) for prompt in prompts)


def test_without_the_package_there_is_one_line_with_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadInput, match=r"needs the package tokenizers: pip install 'grok-circuits\[text\]', or use"):
        RealFacts(**WIKI, phi=1.0, serialisation="natural").setup()


# ---------------------------------------------------------------- what is refused

REFUSED = {
    "task": ({"task": "both"}, "task='both': use composition or comparison"),
    "serialisation": ({"serialisation": "prose"}, "serialisation='prose': use structured or natural"),
    "wrong_facts": ({"wrong_facts": "none"}, "wrong_facts='none': use consistent or contradicted"),
    "vocabulary": ({"vocabulary": 0}, "vocabulary=0: give a number"),
    "original": ({"original": 1}, "original=1: give a number, 2 or more"),
    "too many original": ({"original": 121}, "original=121: use at most 120"),
    "atomic": ({"atomic": 50}, "atomic=50: use 60 or more"),
    "phi": ({"phi": 0}, "phi=0: give inferred facts per atomic fact"),
    "a phi out of reach": ({"phi": 30}, "phi=30: no relation is followed by more than 6 relations"),
    "a phi out of reach of so many": ({"phi": 4, "atomic": 120}, "phi=4: use at most"),
    "wrong_fact_rate": ({"wrong_fact_rate": 1.1}, "wrong_fact_rate=1.1: give a share"),
    "nothing added": ({"original": None, "wrong_fact_rate": 0.1}, "wrong_fact_rate=0.1: no fact is added"),
    "nothing else to say": ({"task": "comparison", "tails": 1}, "tails=1: give a number, 2 or more"),
    "iid": ({"iid": 1.0}, "iid=1.0: give a share"),
    "batch": ({"batch": 0}, "batch=0"),
    "out_degree": ({"out_degree": 7}, "out_degree=7: the facts of an entity have distinct relations"),
    "entities": ({"entities": 10**7}, "entities=10000000: use at most a million facts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_argument_is_refused_in_one_line(name):
    arguments, told = REFUSED[name]
    with pytest.raises(BadInput) as caught:
        knowledge(**arguments).setup()
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_bad_arguments_are_told_at_once():
    with pytest.raises(BadInput) as caught:
        RealFacts(path="nowhere.json", format="xml", phi=-1, ood=2)
    assert [problem.key for problem in caught.value.problems] == ["path", "format", "ood", "phi"]


def test_more_pairs_than_fit_are_refused_before_they_are_listed():
    with pytest.raises(BadInput, match="they give 36,000,000 inferred facts, at most 25,000,000 fit"):
        SyntheticKnowledge(task="comparison", entities=6000, relations=1, out_degree=1, ood=0.0).setup()


def test_a_checkpoint_of_another_file_is_refused(tmp_path):
    regime = RealFacts(**WIKI, phi=1.0)
    regime.load_state_dict(regime.state_dict())
    other = RealFacts(path=FILES / "facts.csv", format="csv", phi=1.0)
    with pytest.raises(BadInput, match="not the file of the training"):
        other.load_state_dict(regime.state_dict())


def test_what_the_value_of_the_first_entity_tells_is_known():
    fair = knowledge(task="comparison", entities=200, phi=4.0)
    assert fair.baselines("test_inferred_iid")["same_value"] == pytest.approx(0.5, abs=0.1)
    assert fair.baselines("id_atomic") == {}
    skewed = RealFacts(
        path=FILES / "two_wiki.json", keep=["country"], task="comparison", phi=4.0, atomic=60, original=8
    )
    rows, hops = skewed.lessons.asked["train_inferred"]
    counts = {}
    for value, same in zip(rows.tail(hops.first).tolist(), rows.same(hops).tolist(), strict=True):
        counts.setdefault(value, [0, 0])[same] += 1
    right = sum(max(both) for both in counts.values()) / len(hops.first)
    assert skewed.baselines("train_inferred")["same_value"] == pytest.approx(right)


def test_the_padded_vocabulary_of_gpt2_names_its_tokens():
    regime = knowledge(encoding=NextToken(vocab="gpt2"))
    split = regime.splits["id_atomic"]
    assert regime.tokens(split.inputs[0, :2])[0].startswith("entity ")
    assert regime.token_name(5) == "<|5|>"
    assert regime.baselines("train_inferred").keys() == {"shortcut"}
    assert replace(split).labels is not None


@pytest.mark.parametrize("serialisation", ["structured", "natural"])
def test_floors_know_how_many_answers_there_are(serialisation):
    if serialisation == "natural":
        pytest.importorskip("tokenizers")
    regime = SyntheticKnowledge(
        task="comparison", entities=60, relations=1, out_degree=1, tails=5, phi=2, serialisation=serialisation
    )
    assert [regime.floor(f"test_inferred_{kind}") for kind in ("iid", "ood")] == [0.5, 0.5]
    assert regime.floor("id_atomic") == (1 / 5 if serialisation == "structured" else None)
