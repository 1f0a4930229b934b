"""Every shipped configuration parses, is instantiated and trains a step, and says what it is."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
SWEEPS = [path for path in FILES if "base" in yaml.safe_load(path.read_text())]
CONFIGS = [path for path in FILES if path not in SWEEPS]
_FEW = ["--model.net.width", 24, "--data.test_size", 8, "--data.batch", 8]
WIDE = (
    "composition",
    "pretrain_medium",
    "transfer_medium",
    "pretrain_paper",
    "pretrain_compact",
    "transfer_paper",
    "two_token",
    "loops_paper",
)
SMALLER = {
    **dict.fromkeys(WIDE, _FEW),
    "recursive_small": ["--data.test_size", 50],
    "base": ["--model.net.width", 24, "--data.test_size", 300, "--data.batch", 8, "--semantic.pairs", 50],
    "three_hop": ["--model.net.width", 24, "--data.test_size", 300, "--data.batch", 8],
    "sharded": [*_FEW, "--model.net.layers", 2],
    "comparison": [*_FEW, "--data.entities", 300],
    "complex_reasoning": [*_FEW, "--data.entities", 300, "--data.hard_per_label", 5],
}
_WIKI = [*_FEW, "--data.path", ROOT / "tests/data/fixtures/real_facts/two_wiki.json"]
SMALLER |= {
    "wiki_composition": [*_WIKI, "--data.original", 40, "--data.phi", 1, "--data.leave_out", "[date of birth]"],
    "wiki_comparison": [*_WIKI, "--data.original", 8, "--data.ood", 0.5],
}
LARGE = (  # full size, or sweeps of a hundred runs
    "small",
    "medium",
    "paper",
    "pretrain_paper",
    "pretrain_compact",
    "base",
    "three_hop",
)


def marked(paths):
    """The large ones are left to the slow suite."""
    return [pytest.param(path, marks=[pytest.mark.slow] if path.stem in LARGE else []) for path in paths]


def test_there_are_configurations():
    assert {"quickstart", "delayed_grokking"} <= {path.stem for path in CONFIGS}
    assert "phase_diagram" in {path.stem for path in SWEEPS}


@pytest.mark.parametrize("path", marked(CONFIGS), ids=lambda path: path.stem)
def test_a_configuration_trains_a_step(grok, tmp_path, path):
    status, output, errors = grok(
        "fit", "--config", path, "--trainer.max_steps", 1, "--trainer.accelerator", "cpu", "--trainer.logger", "false",
        "--run_dir", tmp_path / "run", "--figures.enabled", "false", *SMALLER.get(path.stem, []),
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert "After 1 steps" in output


@pytest.mark.parametrize("path", marked(SWEEPS), ids=lambda path: path.stem)
def test_a_sweep_is_planned_and_every_run_of_it_checked(grok, tmp_path, path):
    status, output, errors = grok("sweep", "plan", path, "--dry-run")
    assert (status, errors) == (0, "")
    assert f"in runs/{path.stem} (nothing written)" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_header_says_what_it_shows_from_which_paper_and_how_long_it_takes(path):
    header = re.split(r"\n(?=seed_everything|base:)", path.read_text())[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "arXiv" in header
    assert "minute" in header or "Time:" in header
    table = (ROOT / "configs/README.md").read_text().split("\n## ")[0]
    assert re.search(rf"`([\w/]*/)?{path.name}`", table)
