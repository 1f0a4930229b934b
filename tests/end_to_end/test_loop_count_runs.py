"""The analysis `loops` through the command line: in training, on the saved checkpoints, and on one of them."""

import json

import pytest
import yaml
from torch import nn

from grok.analyses import AnalysisRecord
from grok.models import StepModel
from grok.task import Task

ON = ["--loops.enabled", "true", "--loops.counts", "[1, 3]"]
SHORT = ["--trainer.max_steps", 20, "--series.every", 20, "--series.powers_of_two", "false"]


class Straight(StepModel):
    """Embedding and read-out, without a step."""

    steps = ()

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.embedding = task, nn.Embedding(task.tokens, task.outputs)

    def embed(self, inputs, position_ids=None):
        return {"resid": self.embedding(inputs)}

    def readout(self, state, norm=True):
        return state["resid"]


def rows(run, kind="loops"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["name"].startswith(f"{kind}/") or line["name"] == kind]


@pytest.mark.slow
def test_live_and_traced_are_the_same_and_the_trained_number_agrees_with_the_accuracy(
    grok, tiny_config, tmp_path, hashes
):
    live, plain = tmp_path / "live", tmp_path / "plain"
    assert grok("fit", "--config", tiny_config, "--run_dir", live, *SHORT, *ON)[0] == 0
    assert grok("fit", "--config", tiny_config, "--run_dir", plain, *SHORT)[0] == 0
    assert hashes(live) == hashes(plain)
    status, out, err = grok("trace", plain, *ON, "--figures.enabled", "true")
    assert status == 0, err
    assert rows(live) == sorted(rows(plain), key=rows(live).index)
    assert {row["name"] for row in rows(live)} == {f"loops/accuracy/{n}" for n in (1, 2, 3)}
    assert {row["split"] for row in rows(live)} == {"test_inferred_iid", "test_inferred_ood"}
    measured = {(row["step"], row["split"]): row["value"] for row in rows(live, "accuracy")}
    for row in rows(live):
        if row["name"].endswith("/2") and row["step"] == 20:
            assert row["value"] == pytest.approx(measured[row["step"], row["split"]])
    assert int(AnalysisRecord(live).read(20)["loops/test_inferred_iid/trained"]) == 2
    assert (plain / "figures/loops.png").stat().st_size > 1000
    assert "figures/loops.png" in out

    status, out, _ = grok("test", "--config", live / "config.yaml", "--run_dir", live, *ON)
    assert status == 0
    assert "test_inferred_ood: loops/accuracy" in out


def test_a_model_without_loops_is_refused_before_anything_is_written(grok, tiny_config, tmp_path):
    run = tmp_path / "run"
    path = tmp_path / "straight.yaml"
    config = yaml.safe_load(tiny_config.read_text())
    config["model"]["net"] = {"class_path": f"{__name__}.Straight"}
    path.write_text(yaml.safe_dump(config))
    status, _, err = grok("fit", "--config", path, "--run_dir", run, "--loops.enabled", "true")
    assert status != 0
    assert "loops.enabled=True: Straight has no loops whose number could be changed: use false" in err
    assert not run.exists()
