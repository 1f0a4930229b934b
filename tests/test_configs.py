"""Every shipped configuration parses, is instantiated and trains a step, and says what it is."""

import importlib
import inspect
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
_TREES = ["--data.test_size", 20, "--data.batch", 8]
SMALLER |= {f"tree_{name}_small": _TREES for name in ("backward", "forward", "free", "looped")}
SMALLER |= {"tree_backward": _TREES, "tree_forward": _TREES}
_FEW_PROMPTS = ["--data.test_size", 10, "--data.test_examples", 5, "--data.batch", 8]
SMALLER |= dict.fromkeys(("cot", "cot_small", "cot_multilayer", "cot_looped"), _FEW_PROMPTS)
_VALUES = ["--data.test_size", 20, "--data.batch", 8]
SMALLER |= {f"nonlinear{form}": _VALUES for form in ("", "_small", "_free", "_looped")}
SMALLER |= {f"affine{form}": _VALUES for form in ("", "_small", "_attention_only", "_looped")}
_SHORT = ["--data.test_size", 8, "--data.batch", 4, "--data.train_length", 6, "--measures.examples", 8]
_SHORT += ["--groups.examples", 8]
SMALLER |= {f"retrieval_{form}": _SHORT for form in ("paper", "small", "looped")}
SMALLER |= {f"copy_{form}": _SHORT for form in ("paper", "small", "looped")}
_PAIRS = ["--data.test_size", 20, "--data.batch", 8, "--measures.enabled", "false"]
SMALLER |= {f"navigation_{form}": _PAIRS for form in ("paper", "small", "attention_only", "looped")}
QUICK = (  # one of each kind; the others are left to the slow suite
    "quickstart",
    "composition_small",
    "base_small",
    "pretrain_small",
    "comparison_small",
    "synthetic_small",
    "tree_forward_small",
    "nonlinear_small",
    "retrieval_small",
    "affine_small",
    "cot_small",
    "navigation_small",
    "loops",
)


def marked(paths):
    """Most are left to the slow suite."""
    return [pytest.param(path, marks=[] if path.stem in QUICK else [pytest.mark.slow]) for path in paths]


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
    given, made = (yaml.safe_load(file.read_text())["model"] for file in (path, tmp_path / "run/config.yaml"))
    for key, written in given.items():
        if isinstance(written, dict) and "class_path" in written:
            asked = {*written.get("init_args", {}), *overridden(path, key)}
            unasked = {k: v for k, v in made[key]["init_args"].items() if k not in asked}
            assert unasked == own_defaults(written["class_path"], unasked), key


def own_defaults(class_path, keys):
    """What a class has by default for some keys of its constructor."""
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    plain = {key: parameters[key].default for key in keys}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def overridden(path, key):
    """Keys of a class that `SMALLER` sets."""
    start = f"--model.{key}."
    return {str(option).removeprefix(start) for option in SMALLER.get(path.stem, []) if str(option).startswith(start)}


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
