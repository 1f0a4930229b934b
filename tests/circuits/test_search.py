"""Faithfulness and completeness by their definition; the search against one removal at a time and planted circuits."""

import collections
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_ablations import REGIME, SPLIT, make, one_by_one, source_of, watch_rows

from grok.circuits.ablations import ablate
from grok.circuits.counterfactuals import other_queries
from grok.circuits.nodes import Node, nodes_of
from grok.circuits.planted import planted
from grok.circuits.search import completeness, faithfulness, find_circuit
from grok.errors import BadInput
from grok.models import LoopedTransformer


@pytest.fixture(scope="module")
def trained():
    """A model that knows 60 queries by heart, all but a few."""
    torch.manual_seed(0)
    split = REGIME.splits["train_inferred"].take(slice(0, 60))
    model = LoopedTransformer(REGIME.task, width=32, layers=1, loops=2, heads=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = torch.nn.functional.cross_entropy(model(split.inputs)[:, 2], split.targets[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.double().eval(), split


def right(logits, split):
    return (logits.argmax(1) == split.targets[:, 0]).double().mean()


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
@torch.no_grad()
def test_faithfulness_and_completeness_by_definition(trained, how):
    model, split = trained
    other = other_queries(split)[0]
    every, source = nodes_of(model, split), source_of(model, how, split, other)
    circuit = every[4:9]
    others = [node for node in every if node not in circuit]

    def accuracy(nodes):
        return right(one_by_one(model, split, nodes, source), split)

    kept, lost = (measure(model, split, circuit, how, other) for measure in (faithfulness, completeness))
    assert float(kept.values) == pytest.approx(float(accuracy(others) / accuracy([])))
    assert float(kept.floor) == pytest.approx(float(accuracy(every) / accuracy([])))
    assert float(lost.values) == pytest.approx(float(1 - accuracy(circuit) / accuracy([])))
    assert 0 < float(kept.values) < 1 or how == "zero"
    assert float(faithfulness(model, split, every, how, other).values) == 1
    assert float(completeness(model, split, [], how, other).values) == 0
    assert kept.axes["circuit"] == ("0.head1@r1 + 0.mlp@r1 + 0.head0@r2 + 0.head1@r2 + 0.mlp@r2",)


def test_the_floor_of_completeness_is_a_set_of_other_nodes_of_the_same_size(trained):
    model, split = trained
    every = nodes_of(model, split)
    rest = ablate(model, split, [every[:6]]).correct[1].double().mean()
    accuracy = ablate(model, split, [[]]).correct[1].double().mean()
    lost = completeness(model, split, every[6:])  # exactly six other nodes: there is no choice
    assert float(lost.floor) == pytest.approx(float(1 - rest / accuracy), abs=1e-6)


def one_removal_at_a_time(model, split, threshold, how):
    """Greedy search as it is defined: every removal tried by itself."""

    def without(nodes):
        return ablate(model, split, [nodes], how)

    every = nodes_of(model, split)
    accuracy = float(without([]).correct[0].double().mean())
    damage = {}
    for node in every:
        outcome = without([node])
        damage[node] = [float(outcome.effect(measure).mean()) for measure in ("accuracy", "loss")]
    removed, left, again = [], sorted(every, key=lambda node: damage[node]), True
    while again:
        again = False
        for node in list(left):
            if float(without([*removed, node]).correct[1].double().mean()) >= threshold * accuracy:
                removed.append(node)
                left.remove(node)
                again = True
    return sorted(left)


@pytest.mark.parametrize(("how", "threshold"), [("mean", 0.9), ("resample", 0.5)])
def test_the_search_finds_what_one_removal_at_a_time_finds(trained, how, threshold):
    model, split = trained
    expected = one_removal_at_a_time(model, split, threshold, how)
    assert 0 < len(expected) < len(nodes_of(model, split))
    for batch in (60, 700):  # one at a time, and five
        assert list(find_circuit(model, split, threshold, how, batch=batch).nodes) == expected


class Invented:
    """In place of `ablate`: a random accuracy and loss for every set of nodes, of 10 examples; 8 right without any."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        easy = self.random.random()
        self.right = collections.defaultdict(
            lambda: self.random.choice([4, 5, 6]) if self.random.random() < easy else 2
        )
        self.loss = collections.defaultdict(self.random.random)

    def __call__(self, model, split, sets, *_):
        keys = [frozenset(nodes) for nodes in sets]
        right = torch.stack([torch.arange(10) < self.right[key] for key in keys], 1)
        clean = (torch.arange(10) < 8)[:, None]
        loss = torch.tensor([[self.loss[key] for key in keys]]).expand(10, -1)
        return SimpleNamespace(
            correct=(clean, right),
            exists=torch.ones(10, dtype=torch.bool),
            effect={"accuracy": clean.float() - right.float(), "loss": loss}.__getitem__,
        )

    def search(self, nodes, needed):
        """Greedy search as it is defined, and whether it took a second pass."""
        order = sorted(nodes, key=lambda node: (-self.right[frozenset([node])], self.loss[frozenset([node])], node))
        removed, passes = [], 0
        while True:
            before = len(removed)
            for node in [node for node in order if node not in removed]:
                if self.right[frozenset([*removed, node])] >= needed:
                    removed.append(node)
            if len(removed) == before:
                return tuple(sorted(set(nodes) - set(removed))), passes > 1
            passes += 1


@pytest.mark.parametrize("size", [1, 4, 40])
def test_removals_guessed_many_at_a_time_are_those_tried_one_by_one(size, monkeypatch):
    model = make(layers=1)
    nodes, twice = nodes_of(model, SPLIT), 0
    for seed in range(60):
        invented = Invented(seed)
        expected, second = invented.search(nodes, needed=5)  # 0.6 of 8
        monkeypatch.setattr("grok.circuits.search.ablate", invented)
        assert find_circuit(model, SPLIT, 0.6, batch=2 * size * len(SPLIT)).nodes == expected
        twice += second
    assert twice > 5


@pytest.mark.parametrize("how", ["mean", "resample"])
def test_the_result_is_1_minimal_and_says_how_good_it_is(trained, how):
    model, split = trained
    found = find_circuit(model, split, how=how)
    assert found.accuracy > 0.9
    assert found.faithfulness >= 0.9
    assert found.evaluations > len(nodes_of(model, split))
    for node in found.nodes:
        fewer = [other for other in found.nodes if other != node]
        assert float(faithfulness(model, split, fewer, how).values) < 0.9
    assert found.faithfulness == pytest.approx(float(faithfulness(model, split, found.nodes, how).values))
    assert found.completeness == pytest.approx(float(completeness(model, split, found.nodes, how).values))
    assert found.floor == pytest.approx(float(faithfulness(model, split, [], how).values) * found.accuracy)


@pytest.mark.parametrize("how", ["mean", "resample"])
@pytest.mark.parametrize("circuit", ["bridge", "memory"])
def test_the_search_names_exactly_the_planted_nodes(circuit, how):
    made = planted(circuit, REGIME.task, REGIME.generated.facts)
    found = find_circuit(made.model, SPLIT, how=how)
    assert found.nodes == made.nodes
    assert found.accuracy == found.faithfulness == 1
    assert found.completeness == 1 - found.floor  # total: nothing else can answer
    assert how == "mean" or found.floor == 0
    assert found.labels[0] == {"bridge": "0.head0@r1", "memory": "0.head0@r2"}[circuit]


@pytest.mark.parametrize("how", ["mean", "resample"])
def test_of_two_planted_circuits_one_is_left_and_completeness_tells(how):
    made = planted("both", REGIME.task, REGIME.generated.facts)
    either = {planted(name, REGIME.task, REGIME.generated.facts).nodes for name in ("bridge", "memory")}
    found = find_circuit(made.model, SPLIT, how=how)
    assert found.nodes in either
    assert found.faithfulness == 1
    whole = completeness(made.model, SPLIT, made.nodes, how)
    assert float(faithfulness(made.model, SPLIT, made.nodes, how).values) == 1
    assert float(whole.values) == pytest.approx(1 - found.floor)
    if how == "mean":  # the table stands in; resampled, the bridge circuit's wrong answer outweighs it
        assert found.completeness == 0


def test_a_model_that_is_never_right_has_no_circuit():
    model = make()
    with torch.no_grad():
        never = int(model(SPLIT.inputs)[:, 2].sum(0).argmin())
    split = type(SPLIT)(SPLIT.inputs, SPLIT.at, torch.full_like(SPLIT.targets, never), SPLIT.mask, SPLIT.positions)
    found = find_circuit(model, split)
    assert (found.nodes, found.accuracy) == ((), 0)
    assert math.isnan(found.faithfulness)
    assert math.isnan(found.completeness)
    assert faithfulness(model, split, []).values.isnan().all()


def test_batch_bounds_memory(trained, monkeypatch):
    (model, split), rows = trained, []
    watch_rows(monkeypatch, rows)
    find_circuit(model, split, batch=130)
    assert 60 < max(rows) <= 130


def test_bad_input_is_told():
    model = make()
    for threshold in (0, 1.5):
        with pytest.raises(BadInput, match=rf"threshold={threshold}: "):
            find_circuit(model, SPLIT, threshold)
    with pytest.raises(BadInput, match="no such node"):
        faithfulness(model, SPLIT, [Node(7, "mlp", 0)])
    with pytest.raises(BadInput, match="no query has another one"):
        find_circuit(model, SPLIT.take(torch.zeros(3, dtype=torch.int64)), how="resample")


@pytest.mark.parametrize("how", ["mean", "resample"])
def test_the_interval_is_that_of_the_ratio(trained, how):
    model, split = trained
    answers = split.targets.clone()
    answers[::3] = (answers[::3] + 1) % 20
    split = replace(split, targets=answers)  # a third is wrong: were all right, the numerator alone would do
    every = nodes_of(model, split)
    whole = faithfulness(model, split, every, how)
    assert [float(end) for end in (whole.values, whole.low, whole.high)] == [1, 1, 1]
    nothing = completeness(model, split, [], how)
    assert [float(end) for end in (nothing.values, nothing.low, nothing.high)] == [0, 0, 0]
    outcome = ablate(model, split, [[node for node in every if node not in every[4:9]]], how)
    clean, kept = (side[:, 0].double() for side in outcome.correct)
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(len(split), (4000, len(split)), generator=generator)
    low, high = (kept[rows].mean(1) / clean[rows].mean(1)).quantile(torch.tensor([0.025, 0.975]).double())
    part = faithfulness(model, split, every[4:9], how)
    assert float(part.low) == pytest.approx(float(low), abs=0.03)
    assert float(part.high) == pytest.approx(float(high), abs=0.03)
