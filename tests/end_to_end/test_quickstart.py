"""The phenomenon itself, at full length: a minute or two."""

from pathlib import Path

import pytest

from grok.records import RunRecord

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"


@pytest.mark.slow
def test_the_quickstart_memorises_first_and_generalises_later(grok, tmp_path):
    status, output, errors = grok("fit", "--config", CONFIG, "--run_dir", tmp_path / "run")
    assert (status, errors) == (0, "")
    summary = RunRecord(tmp_path / "run").summary()
    assert summary["accuracy_when_memorised"]["test_inferred_iid"] <= 0.30
    assert summary["accuracy"]["test_inferred_iid"] >= 0.95
    assert summary["accuracy"]["train_inferred"] >= 0.99
    assert summary["delay"] >= 2
    assert "memorised at step" in output
    assert "test_inferred_iid passed 50 %" in output
    assert "test_inferred_iid passed 95 %" in output
    assert f"tensorboard --logdir {tmp_path / 'run'}" in output
    assert (tmp_path / "run/figures/accuracy.png").stat().st_size > 10_000
