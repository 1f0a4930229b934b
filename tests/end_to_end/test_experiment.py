"""The experiment of He et al. 2026 through the command line, whole and tiny: planned, trained, transferred, judged."""

from pathlib import Path

import pytest
import yaml

from grok.sweep import Sweep

CONFIGS = Path(__file__).resolve().parents[2] / "configs/he2026"
GRAPH = {"entities": 20, "relations": 6, "out_degree": 4, "phi": 2, "iid": 0.2, "k": 2, "batch": 32}
NET = {"width": 16, "heads": 2, "layers": 1, "loops": 3}
FREQUENT = {group: {"every": 10} for group in ("evaluation", "series", "found", "lens", "tracing")}


def shrunk(name, steps, **data):
    """A shipped configuration, made small enough to train in a second."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config["trainer"] |= {"max_steps": steps, "logger": False}
    config["data"]["init_args"] |= GRAPH | data
    config["model"]["net"]["init_args"] |= NET
    config["model"]["schedule"]["init_args"] = {"warmup": 5}
    config["figures"] = {"enabled": False}
    for group, options in FREQUENT.items():
        config[group] = config.get(group, {}) | options
    return config


@pytest.fixture
def sweep(grok, tmp_path):
    """The shipped sweep of all parts: two regimes, one seed, two starting points."""
    (tmp_path / "pretrain_small.yaml").write_text(yaml.safe_dump(shrunk("pretrain_small", 20)))
    (tmp_path / "transfer_small.yaml").write_text(
        yaml.safe_dump(shrunk("transfer_small", 10, new_facts=8, kept=60, batch=16))
    )
    asked = yaml.safe_load((CONFIGS / "small.yaml").read_text())
    asked["grid"] = {"seed_everything": [0], "data.regime": ["natural", "both_full"]}
    asked["zip"] = {"model.net.layers": [1], "model.net.loops": [3]}
    asked["then"][0] |= {"from": {"model.net.loops": 3}, "grid": {"start.step": [10, "last"]}}
    asked["then"][1] |= {"from": {"model.net.loops": 3}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    status, output, errors = grok("sweep", "plan", "small.yaml", "--sweep_dir", "runs/small")
    assert (status, errors) == (0, "")
    assert "8 runs" in output
    return Sweep.load("runs/small")


@pytest.mark.slow
def test_the_whole_experiment_is_planned_trained_and_judged(grok, sweep):
    for line in sweep.lines:
        status, _, errors = grok("sweep", "task", "runs/small", line.index)
        assert (status, errors) == (0, "")
    records = [sweep.record(line) for line in sweep.lines]
    assert [(record.summary().get("start") or {}).get("step") for record in records[2:]] == [10, 20, 10, 20, None, None]
    rows = [row for record in records[:2] for row in record.rows() if row["name"] == "accuracy"]
    tests = {(row["split"], row["n"]) for row in rows}
    assert len(tests) == len({split for split, _ in tests})  # both regimes have the same

    status, output, errors = grok("verdict", "runs/small")
    assert (status, errors) == (0, "")
    page = Path("runs/small/verdict/verdict.md").read_text()
    assert "from 8 finished runs\n(0 planned ones are missing)," in page
    for heading in ("## 1. One path", "## 2. Answers and circuit", "## 3. A mature circuit", "## Was the wait"):
        assert heading in page
    for row in ("| **last** | natural | 1 |", "| 10 | both_full | 1 |", "| scratch | natural | 1 |"):
        assert row in page
    assert "not at this scale" in output
    assert Path("runs/small/verdict/claim3.png").exists()


@pytest.mark.slow
def test_a_transfer_from_a_run_of_another_regime_is_refused_and_both_are_named(grok, sweep):
    assert grok("sweep", "task", "runs/small", 0)[0] == 0
    run = sweep.directory / sweep.lines[0].run_dir
    options = ("--start.run", run, "--data.regime", "both_full", "--run_dir", "x")
    status, _, errors = grok("fit", "--config", "transfer_small.yaml", *options)
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "data.regime is 'natural' in" in errors
    assert "'both_full' in x" in errors
    assert not Path("x").exists()
