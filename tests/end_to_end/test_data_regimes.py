"""Fact-level augmentation and new knowledge through the command line: trained, recorded, traced and resumed."""

from contextlib import suppress

import pytest
import yaml
from tiny_configuration import TINY

from grok.analyses import AnalysisRecord
from grok.callbacks import Evaluation
from grok.records import RunRecord

SIZES = {"entities": 20, "relations": 6, "out_degree": 4, "phi": 2, "ood": 0.2, "iid": 0.2, "batch": 16}
REGIMES = {
    "FactExposure": {"regime": "both_full", "k": 3},
    "NewKnowledge": {"regime": "both_half", "k": 4, "new_facts": 20, "kept": 80},
}
SPLITS = {
    "FactExposure": ["train_inferred", "train_inferred_io", "train_inferred_oi", "test_inferred_ood"],
    "NewKnowledge": ["train_inferred", *(f"test_inferred_{name}" for name in ("new_old", "old_new", "new_new", "ood"))],
}


@pytest.fixture(params=[(regime, encoding) for regime in REGIMES for encoding in ("NextToken", "FillIn")], ids=str)
def configured(request, tmp_path):
    """Name of a regime, and a configuration that trains it and analyses the circuit."""
    regime, encoding = request.param
    config = yaml.safe_load(TINY)
    arguments = {**SIZES, **REGIMES[regime], "encoding": {"class_path": f"grok.data.{encoding}"}}
    config["data"] = {"class_path": f"grok.data.{regime}", "init_args": arguments}
    config |= {name: {"enabled": True, "every": 60} for name in ("lens", "tracing")}
    path = tmp_path / "regime.yaml"
    path.write_text(yaml.safe_dump(config))
    return regime, path


def test_a_regime_is_trained_recorded_and_traced(grok, configured, tmp_path):
    regime, config = configured
    status, _, errors = grok("fit", "--config", config, "--run_dir", tmp_path / "run")
    assert (status, errors) == (0, "")
    record = RunRecord(tmp_path / "run")
    accuracy = record.summary()["accuracy"]
    assert set(SPLITS[regime]) <= set(accuracy)
    rows = record.rows("baseline/shortcut")
    two_hop = [split for split in accuracy if "inferred" in split]
    assert [(row["step"], row["split"]) for row in rows] == [(20, split) for split in two_hop]
    sizes = record.summary()["queries_in_split"]
    assert all(0 <= row["value"] <= 1 and row["n"] == sizes[row["split"]] for row in rows)
    analysed = {name.split("/")[1] for name in AnalysisRecord(tmp_path / "run").read(60)}
    assert analysed == {"test_inferred_new_old" if regime == "NewKnowledge" else "test_inferred_iid"}


@pytest.mark.parametrize("configured", [("NewKnowledge", "FillIn")], indirect=True)
def test_baselines_are_recorded_once_when_a_run_is_resumed(grok, configured, tmp_path, monkeypatch):
    _, config = configured
    original = Evaluation.on_train_batch_end

    def cut(self, trainer, *_):
        original(self, trainer, *_)
        if trainer.global_step >= 30:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt, SystemExit):
        patch.setattr(Evaluation, "on_train_batch_end", cut)
        grok("fit", "--config", config, "--run_dir", run)
    before = RunRecord(run).rows("baseline/shortcut")
    assert {row["step"] for row in before} == {20}
    status, output, _ = grok("fit", "--config", config, "--run_dir", run)
    assert status == 0
    assert "Resuming" in output
    assert RunRecord(run).summary()["step"] == 60
    assert RunRecord(run).rows("baseline/shortcut") == before
