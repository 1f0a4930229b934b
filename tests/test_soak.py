"""The soak run: a short one here, half an hour on demand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/soak.py"


@pytest.mark.slow
def test_a_soak_of_a_minute_is_flat_and_its_records_can_be_read_while_they_are_written(tmp_path):
    command = [sys.executable, str(SCRIPT), "--minutes", "1", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "flat"
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["reads"] > 20
    assert found["errors"] == []


def test_growth_is_the_change_from_the_first_to_the_last_third(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from soak import Look, growth

    looks = [Look(100 + leak, 10 + leak, 2) for leak in range(9)]
    assert growth(looks) == {"memory": (101, 107), "files": (11, 17), "threads": (2, 2)}
    assert Look.now().memory > 10
    assert Look.now().files > 0
