"""Every shipped configuration parses, is instantiated and trains a step, and says what it is."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SMALLER = {"wang2024_composition": ["--model.net.width", 24, "--data.test_size", 8, "--data.batch", 8]}


def test_there_are_configurations():
    assert {"quickstart", "delayed_grokking"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_trains_a_step(grok, tmp_path, path):
    status, output, errors = grok(
        "fit", "--config", path, "--trainer.max_steps", 1, "--trainer.accelerator", "cpu", "--trainer.logger", "false",
        "--run_dir", tmp_path / "run", "--figures.enabled", "false", *SMALLER.get(path.stem, []),
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert "After 1 steps" in output


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_header_says_what_it_shows_from_which_paper_and_how_long_it_takes(path):
    header = path.read_text().partition("\nseed_everything")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "arXiv" in header
    assert "minute" in header or "Time:" in header
    assert path.stem in (ROOT / "configs/README.md").read_text()
