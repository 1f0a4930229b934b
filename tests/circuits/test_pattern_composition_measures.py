"""Errors of chains of thought and of in-context learning, on a layer that attends exactly, against counting by hand."""

from collections import Counter

import pytest
import torch

from grok.circuits import group_mass, measures
from grok.circuits.pattern_composition import icl_errors, key_query, rollout_errors
from grok.data import PatternComposition
from grok.data.pattern_prompts import shortened
from grok.data.split import nearest
from grok.errors import BadInput
from grok.models import LoopedTransformer

WORKED = [[[0.6, 0.4], [0.4, 0.6]], [[0.4, 0.6], [0.8, 0.2]]]
SIZES = {"dim": 12, "train_patterns": 8, "test_patterns": 6, "noise": 0.0, "test_size": 60, "seed": 5}
SCALE = 6.0


@pytest.fixture(params=["uniform", "matrix"])
def data(request):
    options = {"uniform": {"steps": 3, "accuracy": 0.7}, "matrix": {"steps": 2, "matrices": WORKED}}[request.param]
    return PatternComposition(transition=request.param, test_examples=20, **options, **SIZES)


def attending_exactly(data):
    return LoopedTransformer(
        data.task, width=None, layers=1, heads=1, mlp="none", norm="none", positions="none", bias=False,
        projections="no_output", sees_itself=False, scaled=False, residual=False, read_in="fixed", read_out="fixed",
        init="identity", init_std=SCALE,
    )  # fmt: skip


def worked_examples(data, split):
    """Patterns `[N, L, K + 1]` of all examples, read off the columns."""
    columns = split.inputs.unflatten(1, (-1, data.steps))[:, :-1]
    parts = [columns[..., : data.dim], columns[:, :, -1:, data.dim :]]
    return torch.cat([nearest(part, split.codes)[..., 0] for part in parts], 2).tolist()


def most(outcomes):
    """The most frequent one; None if there is no such."""
    two = Counter(outcomes).most_common(2)
    return two[0][0] if two and (len(two) == 1 or two[0][1] > two[1][1]) else None


def counted(data, examples, chain):
    """Share of wrong steps, and whether the last one is wrong without steps; None where counts do not decide."""
    now, wrong = chain[0], 0
    for k in range(data.steps):
        now = most([one[k + 1] for one in examples if one[k] == now])
        if now is None:
            break
        wrong += now != chain[k + 1]
    last = most([one[-1] for one in examples if one[0] == chain[0]])
    return None if now is None else wrong / data.steps, None if last is None else float(last != chain[-1])


@pytest.mark.parametrize("number", [7, 20])
def test_a_layer_that_attends_exactly_answers_as_counting_does(data, number):
    net = attending_exactly(data)
    known = 0
    for name in data.splits:
        if not name.endswith("_cot"):
            continue
        split = shortened(data.splits[name], data.steps, number)
        found = zip(rollout_errors(data, net, split, 16), icl_errors(data, net, split, 16), strict=True)
        chains = split.truth["chain"].tolist()
        expected = [counted(data, *both) for both in zip(worked_examples(data, split), chains, strict=True)]
        for got, wanted in zip(found, expected, strict=True):
            for value, right in zip(got, wanted, strict=True):
                if right is not None:
                    known += 1
                    assert float(value) == pytest.approx(right)
        mass = group_mass(net, split, data.groups(split)).values[0]
        assert mass[0] > 0.9
    assert known > 60


def test_answers_are_written_into_the_prompt_as_in_training(monkeypatch):
    data = PatternComposition(steps=3, transition="clean", test_alpha=1.0, test_examples=4, **SIZES)
    net, split, seen = attending_exactly(data), data.splits["test_cot"], []
    forward = net.forward

    def looking(inputs, **options):
        seen.append(inputs.clone())
        return forward(inputs, **options)

    monkeypatch.setattr(net, "forward", looking)
    assert (rollout_errors(data, net, split, 100) == 0).all()
    assert len(seen) == data.steps
    steps = split.at[:, 0] - (len(split.positions) - data.steps)
    for k, inputs in enumerate(seen):  # a training prompt at step k is what has been written by then
        shown = len(split.positions) - data.steps + k + 1
        rows = steps == k
        torch.testing.assert_close(inputs[rows, :shown], split.inputs[rows, :shown])


def test_the_grids(data):
    net, split = attending_exactly(data), data.splits["test_cot"]
    grids = {grid.name: grid for grid in measures(data, net, "test_cot", split, 64)}
    assert list(grids) == [
        "error_by_examples",
        "key_query",
        *(f"error_{what}_by_examples" for what in ("alpha", "tau", "rho")),
    ]
    assert grids["error_by_examples"].axes == {"prompt": ("cot", "icl"), "examples": ("1", "5", "10", "20")}
    for number in ("5", "20"):
        errors = rollout_errors(data, net, shortened(split, data.steps, int(number)), 64)
        assert grids["error_by_examples"]["cot", number] == pytest.approx(float(errors.mean()))
    assert grids["error_alpha_by_examples"]["alpha=1.0", "20"] < grids["error_alpha_by_examples"]["alpha=0.4", "20"]
    assert grids["error_tau_by_examples"]["tau=0.7", "5"] < grids["error_tau_by_examples"]["tau=0.4", "5"]
    assert grids["error_rho_by_examples"]["rho=0.5", "20"] < grids["error_rho_by_examples"]["rho=0.2", "20"]
    others = measures(data, net, "train_patterns", data.splits["train_patterns"], 64)
    assert [grid.name for grid in others] == ["error_by_examples"]


def test_queries_and_keys_on_patterns_and_steps(data):
    (grid,) = key_query(data, attending_exactly(data))
    expected = {"pattern": SCALE**2, "other_pattern": 0, "step": SCALE**2, "other_step": 0, "across": 0}
    for kind, value in expected.items():
        assert grid["0.head0", kind] == pytest.approx(value, abs=1e-4)


def test_prompts_without_steps_have_no_rollouts(data):
    with pytest.raises(BadInput, match=r"splits='test_icl'.* ends in _cot"):
        measures(data, attending_exactly(data), "test_icl", data.splits["test_icl"], 64)


@pytest.mark.parametrize(("patterns", "largest"), [(3, 0.4), (4, 0.4), (5, 0.5)])
def test_a_competitor_comes_second(patterns, largest):
    data = PatternComposition(**{**SIZES, "test_patterns": patterns, "test_size": 4}, test_examples=2)
    grids = {grid.name: grid for grid in measures(data, attending_exactly(data), "test_cot", data.splits["test_cot"])}
    assert grids["error_rho_by_examples"].axes["rho"][-1] == f"rho={largest}"


def test_the_smallest_data_have_measures_too():
    sizes = {"dim": 3, "train_patterns": 2, "test_patterns": 2, "examples": 1, "test_examples": 1, "test_size": 4}
    data = PatternComposition(steps=1, accuracy=0.9, **sizes)
    grids = measures(data, attending_exactly(data), "test_cot", data.splits["test_cot"], 64)
    assert [grid.name for grid in grids][2:] == ["error_alpha_by_examples", "error_tau_by_examples"]
    assert grids[3].axes["tau"] == ("tau=0.6", "tau=0.7")  # of two outcomes the right one has more than half
    assert grids[0].axes["examples"] == ("1",)
