"""The analysis `faithfulness`: planted circuits, halves of the examples, what cannot be, the way to a page."""

import json
import re

import pytest
import torch
from test_ablations import REGIME, SPLIT, make

from grok.callbacks import Faithfulness
from grok.circuits import ablation, completeness, faithfulness, node_of, nodes_of, planted
from grok.circuits.nodes import label
from grok.errors import BadInput
from grok.records import RunRecord
from grok.report.faithfulness import circuits_of, faithfulness_curves

BRIDGE = planted("bridge", REGIME.task, REGIME.generated.facts)


def cells(analysis):
    return {f"{grid.name}/{'/'.join(labels)}": cell for grid in analysis.grids for labels, cell in grid.cells()}


@pytest.mark.parametrize("names", [None, "planted"])
def test_of_a_planted_circuit_it_records_the_size_the_shares_and_every_node(names):
    labels = [label(SPLIT, node) for node in BRIDGE.nodes]
    watch = Faithfulness(enabled=True, nodes=labels if names else None)
    found = cells(watch.analyse(BRIDGE.model, REGIME, "test", SPLIT))
    assert found["circuit/nodes"]["value"] == len(BRIDGE.nodes)
    assert found["faithfulness/mean/circuit"]["value"] == 1
    assert {name.removeprefix("ablation/mean/changed/") for name in found if name.startswith("ablation")} == {*labels}
    measured = SPLIT if names else SPLIT.take(slice(1, None, 2))
    assert found["completeness/mean/circuit"]["value"] == float(
        completeness(BRIDGE.model, measured, BRIDGE.nodes).values
    )
    effects = ablation(BRIDGE.model, measured, BRIDGE.nodes)
    for name, value in zip(labels, effects.values.tolist(), strict=True):
        assert found[f"ablation/mean/changed/{name}"]["value"] == pytest.approx(value)


@pytest.mark.parametrize("half", [0, 1])
def test_a_circuit_found_on_one_half_is_measured_on_the_other(half):
    wrong = SPLIT.targets.clone()
    wrong[half::2] = (wrong[half::2] + 1) % REGIME.task.tokens
    split = type(SPLIT)(SPLIT.inputs, SPLIT.at, wrong, SPLIT.mask, SPLIT.positions)
    found = cells(Faithfulness(enabled=True).analyse(BRIDGE.model, REGIME, "test", split))
    if half == 0:  # no answer of the half that chooses is right
        assert found == {}
    else:
        assert found["circuit/nodes"]["value"] == len(BRIDGE.nodes)
        assert found["faithfulness/mean/circuit"]["value"] is None


def test_every_node_is_found_by_its_label():
    for node in nodes_of(BRIDGE.model, SPLIT):
        assert node_of(BRIDGE.model, SPLIT, label(SPLIT, node)) == node


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"nodes": ["0.head9@r1"]}, "no such node"),
        ({"nodes": ["0.head0@q"]}, "positions are h, r1, r2"),
        ({"nodes": ["head0"]}, "write STEP.head0@POSITION"),
        ({"nodes": ["0.mlp@r1", "0.mlp@r1"]}, "each once"),
        ({"nodes": []}, "name one or more"),
        ({"examples": 1}, "use 2 or more"),
        ({"examples": 2, "how": "resample"}, "needs queries with other answers among the 1 examples"),
        ({"how": "mode"}, "use zero, mean, resample"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(options, told):
    with pytest.raises(BadInput, match=re.escape(told)):
        Faithfulness(enabled=True, splits=["train_inferred"], **options).prepare(REGIME, BRIDGE.model)


def test_a_run_with_it_has_the_rows_pictures_and_charts(grok, tiny_config, tmp_path):
    run = tmp_path / "run"
    watched = ["--faithfulness.enabled=true", "--faithfulness.splits=[id_atomic]", "--faithfulness.every", 40]
    watched += ["--faithfulness.examples", 30, "--faithfulness.threshold", 0.6]
    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", run, "--trainer.max_steps", 80, *watched)
    assert status == 0, err
    record = RunRecord(run)
    circuit = circuits_of(record.rows())["id_atomic"]
    assert [row["step"] for row in circuit.sizes] == [40, 80]  # at step 0 no answer is right
    last = [row for row in record.rows() if row["step"] == 80]
    nodes = {row["name"].rpartition("/")[2] for row in last if row["name"].startswith("ablation/mean/changed/")}
    assert len(nodes) == circuit.sizes[-1]["value"] > 0
    (share,) = [row for row in last if row["name"] == "faithfulness/mean/circuit"]
    assert share["low"] <= share["value"] <= share["high"]
    assert [path.stat().st_size > 0 for path in faithfulness_curves(record, circuit, "x", tmp_path / "x")] == [True] * 2
    assert grok("report", run)[0] == 0
    page = (run / "report.html").read_text()
    charts = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])
    line = next(one for one in charts["circuit"]["data"] if str(one["name"]).startswith("faithfulness"))
    assert line["y"][-1] == share["value"]
    (table,) = charts["nodes_id_atomic"]["data"]
    assert {name for name, values in zip(table["y"], table["z"], strict=True) if values[-1] is not None} == nodes

    again = [*watched, "--faithfulness.how", "zero", "--faithfulness.threshold", 0.3]
    status, _, err = grok("trace", run, *again)  # what was found before has no place beside it
    assert status == 0, err
    names = [row["name"] for row in record.rows() if row["step"] == 80 and row["split"] == "id_atomic"]
    size = circuits_of(record.rows())["id_atomic"].sizes[-1]["value"]
    assert sum(name.startswith("ablation/") for name in names) == size
    assert not [name for name in names if "/mean/" in name]


def test_a_circuit_of_no_node_has_its_faithfulness_and_a_named_one_may_be_measured_on_one_query():
    guess = torch.bincount(SPLIT.targets[:, 0]).argmax()
    always = SPLIT.take((SPLIT.targets[:, 0] == guess).nonzero()[:, 0])
    model = make(tied=False).double()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[guess, 0] = 1.0
        model.norm.bias[0] = 100.0  # the answer whatever the nodes write
    found = cells(Faithfulness(enabled=True).analyse(model, REGIME, "t", always))
    assert found["circuit/nodes"]["value"] == 0
    assert found["faithfulness/mean/circuit"]["value"] == found["faithfulness/mean/circuit"]["floor"] == 1
    one = Faithfulness(enabled=True, splits=["train_inferred"], nodes=["0.mlp@r1"], examples=1)
    one.prepare(REGIME, BRIDGE.model)


def test_the_measures_are_those_of_the_functions():
    found = cells(Faithfulness(enabled=True, how="zero", nodes=["0.mlp@r1"]).analyse(BRIDGE.model, REGIME, "t", SPLIT))
    node = node_of(BRIDGE.model, SPLIT, "0.mlp@r1")
    whole = faithfulness(BRIDGE.model, SPLIT, [node], "zero")
    assert found["faithfulness/zero/circuit"]["value"] == float(whole.values)
    assert found["faithfulness/zero/circuit"]["floor"] == pytest.approx(float(whole.floor))
