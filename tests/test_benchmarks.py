"""Every benchmark runs at sizes that take seconds, prints its table and writes it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts/benchmark"
HELPERS = ("report.py", "sizes.py")
BENCHMARKS = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.name not in HELPERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_and_writes_what_it_prints(tmp_path, name):
    options = ["--directory", str(tmp_path / "runs")] if name == "grokking" else []
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--smoke", "--json", str(tmp_path / "out.json"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["benchmark"] == name
    assert written["torch"]
    assert written["date"] in done.stdout
    assert written["rows"]
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == len(written["rows"]) + 1


def test_there_is_a_smoke_run_for_every_benchmark_that_is_written_about():
    told = (SCRIPTS / "README.md").read_text()
    assert {"step", "lightning_overhead", "data", "tracing", "ensemble", "startup", "scale"} <= set(BENCHMARKS)
    assert [name for name in BENCHMARKS if f"{name}.py" not in told] == []


@pytest.mark.slow
def test_the_gpu_run_keeps_its_budget_stops_and_goes_on(tmp_path):
    small = (
        "--model.net.width 48 --model.net.layers 1 --data.entities 200 --data.relations 40 --data.out_degree 10 "
        "--data.iid 0.05 --data.phi 3 --data.batch 32 --model.block 5 --trainer.max_steps 20 --evaluation.every 20 "
        "--figures.enabled false --trainer.logger false --found.enabled false --data.test_size 50"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATOR": "cpu", "EXTRA": small, "PYTHON": sys.executable}

    def run(budget):
        command = [str(SCRIPTS / "gpu_grok.sh"), str(budget), str(tmp_path / "runs")]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    spent = run(30)
    assert spent.returncode == 75
    assert "no time left" in spent.stdout
    whole = run(600)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"wang_phi18", "wang_phi7.2", "recursive_natural"}
    assert run(600).stdout.count("is finished; nothing to do") == 3
