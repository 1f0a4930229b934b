"""A run that is killed and resumed equals one that was never stopped."""

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the harness needs POSIX signals"),
]


@pytest.fixture(scope="module")
def kill_and_resume():
    sys.path.insert(0, str(ROOT / "scripts"))
    import kill_and_resume

    yield kill_and_resume
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def killed(kill_and_resume, tmp_path_factory):
    """A run killed five times, and its twin."""
    harness = kill_and_resume.Harness(tmp_path_factory.mktemp("kills"), seed=2)
    kills = list(harness.plan(5))
    harness.work(kills, per_run=5)
    return harness, kills


def test_five_kills_leave_the_same_bits_and_the_same_record(killed):
    _, kills = killed
    assert len({kill.moment for kill in kills}) >= 3
    assert len({kill.signal for kill in kills}) >= 3
    for kill in kills:
        assert kill.identical, kill
        known = {"SIGKILL": (-9,), "SIGTERM": (75, 143), "SIGUSR1": (75, 138), "SIGINT": (130,)}[kill.signal.name]
        assert kill.status in known, kill  # 143, 138: before the first step since the start


def test_twenty_more_kills(kill_and_resume, tmp_path):
    harness = kill_and_resume.Harness(tmp_path, seed=7)
    kills = list(harness.plan(20))
    harness.work(kills, per_run=5)
    assert all(kill.identical for kill in kills), kills


DAMAGE = {
    "metrics.jsonl": lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() * 2),
    "summary.json": lambda run: (run / "summary.json").write_text(json.dumps({"step": 1})),
    "series and analysis": lambda run: next((run / "series").glob("*.safetensors")).unlink(),
    "events": lambda run: [shutil.copy(p, f"{p}.again") for p in list((run / "tensorboard").glob("events*"))],
    "last.ckpt": lambda run: shutil.copy(run / "previous.ckpt", run / "last.ckpt"),
}


@pytest.mark.parametrize("part", DAMAGE)
def test_the_harness_sees_a_difference_in_every_part(kill_and_resume, killed, tmp_path, part):
    harness, _ = killed
    shutil.copytree(harness.twin, tmp_path / "run")
    DAMAGE[part](tmp_path / "run")
    assert kill_and_resume.differences(harness.twin, tmp_path / "run") == [part]
