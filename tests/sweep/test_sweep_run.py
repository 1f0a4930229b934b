"""Working off a sweep: the same bits as `grok fit`, failures stay alone, only what is missing is done."""

import json
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from grok.files import lock
from grok.sweep import Sweep, plan
from grok.sweep.status import report
from grok.sweep.worker import ensemble, last_status, record_status, work


@pytest.fixture
def planned(tiny_config, tmp_path):
    """A sweep of four tiny runs."""
    asked = {"base": "tiny.yaml", "set": {"trainer.max_steps": 30}}
    asked["grid"] = {"data.phi": [2, 1.5], "seed_everything": [0, 1]}
    plan(asked, tiny_config, tmp_path / "s")
    return Sweep.load(tmp_path / "s")


def states(sweep):
    return [report(sweep, line).state for line in sweep.lines]


def test_a_task_trains_to_the_same_bits_as_fit(grok, planned, tiny_config, tmp_path, hashes):
    status, output, _ = grok("sweep", "task", "s", 3)
    assert (status, "After 30 steps" in output) == (0, True)
    options = ("--data.phi", 1.5, "--seed_everything", 1, "--trainer.max_steps", 30)
    assert grok("fit", "--config", tiny_config, *options, "--run_dir", tmp_path / "plain")[0] == 0
    assert hashes("s/runs/phi=1.5,seed=1") == hashes("plain")
    assert states(planned) == ["waiting", "waiting", "waiting", "done"]
    assert last_status(planned, planned.lines[3]) == 0
    assert planned.log(planned.lines[3]).read_text() == output
    status, output, _ = grok("sweep", "task", "s", "phi=1.5,seed=1")
    assert (status, output) == (0, "phi=1.5,seed=1 is finished; nothing to do\n")


def test_a_run_that_another_process_trains_is_left_alone(grok, planned):
    held = lock(planned.directory / planned.lines[0].run_dir)
    if held is None:
        pytest.skip("no file locks")
    with held:
        status, output, _ = grok("sweep", "task", "s", 0)
        assert (status, output) == (0, "phi=2,seed=0 is being trained by another process\n")
        assert grok("sweep", "status", "s", "--missing")[1] == "1-3\n"
        assert states(planned)[0] == "running"
        assert "3 of 4 runs to do (1 running)" in grok("sweep", "run", "s", "--dry-run")[1]
    assert states(planned)[0] == "waiting"


def test_mistakes_of_a_task_are_told(grok, planned):
    for wrong in ("4", "-1", "x"):
        status, _, errors = grok("sweep", "task", "s", wrong)
        assert (status, len(errors.splitlines())) == (2, 1)
    assert "no run '4'; use 0 to 3" in grok("sweep", "task", "s", 4)[2]
    assert "workers=0: use 1 or more" in grok("sweep", "run", "s", "--workers", 0)[2]
    assert "only='9': 9 is not in 0-3" in grok("sweep", "run", "s", "--only", 9)[2]
    assert "has not been started" in grok("sweep", "log", "s", 0)[2]
    assert not (planned.directory / "logs").exists()


def test_a_crash_of_a_task_is_a_failure_with_its_traceback_in_the_log(grok, planned, monkeypatch):
    def crash(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("grok.cli.run_lightning", crash)
    assert grok("sweep", "task", "s", 0)[0] == 1
    assert states(planned)[0] == "failed"
    assert "RuntimeError: out of luck" in grok("sweep", "log", "s", 0)[1]
    assert "out of luck" in grok("sweep", "log", "s", "phi=2,seed=0", "--lines", 1)[1]
    assert len(grok("sweep", "log", "s", 0, "--lines", 1)[1].splitlines()) == 1


def test_two_workers_do_what_is_missing_and_one_failure_stays_alone(grok, planned, hashes):
    bad = planned.directory / planned.lines[1].run_dir
    bad.mkdir(parents=True)
    (bad / "notes.txt").write_text("mine")
    assert grok("sweep", "task", "s", 0)[0] == 0
    environment = dict(os.environ)
    status, output, _ = grok("sweep", "run", "s", "--workers", 2)
    assert (status, states(planned)) == (1, ["done", "failed", "done", "done"])
    assert "3 of 4 runs to do (1 done), 2 at a time" in output
    assert "1 failed: 1\n  grok sweep log s 1 " in output
    assert output.count("started") == 3
    assert dict(os.environ) == environment
    assert "holds other files and no run" in grok("sweep", "log", "s", 1)[1]
    assert "After 30 steps" in grok("sweep", "log", "s", 2)[1]
    assert "1 failed" in grok("sweep", "status", "s")[1]
    assert grok("sweep", "status", "s", "--missing")[1] == "1\n"
    failed = grok("sweep", "status", "s", "--state", "failed")[1].splitlines()
    assert [line.split()[1] for line in failed[3:]] == ["phi=2,seed=1"]

    before = {line.index: hashes(planned.directory / line.run_dir) for line in planned.lines if line.index != 1}
    (bad / "notes.txt").unlink()
    status, output, _ = grok("sweep", "run", "s", "--workers", 2)
    assert (status, states(planned), output.count("started")) == (0, ["done"] * 4, 1)
    assert before == {index: hashes(planned.directory / planned.lines[index].run_dir) for index in before}
    assert grok("sweep", "status", "s", "--missing")[1] == ""
    assert "0 of 4 runs to do (4 done)" in grok("sweep", "run", "s")[1]


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_the_runs_save(grok, tiny_config, tmp_path, number, expected):
    asked = {"base": "tiny.yaml", "set": {"trainer.max_steps": 1_000_000, "series.enabled": False}}
    sweep = plan(asked | {"grid": {"seed_everything": [0, 1, 2]}}, tiny_config, tmp_path / "s")

    def stop_when_two_have_begun():
        deadline = time.monotonic() + 40
        while sum(report(sweep, line).step > 0 for line in sweep.lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_two_have_begun, daemon=True).start()
    handler = signal.getsignal(number)
    status, output, _ = grok("sweep", "run", "s", "--workers", 2)
    assert (status, states(sweep)) == (expected, ["stopped", "stopped", "waiting"])
    assert "3 of 3 runs left; the same command continues" in output
    assert signal.getsignal(number) is handler
    for line in sweep.lines[:2]:
        assert last_status(sweep, line) == 75
        assert "everything is saved" in sweep.log(line).read_text()
        assert (sweep.directory / line.run_dir / "last.ckpt").exists()


def test_a_group_trains_what_is_missing_in_one_call(grok, planned, monkeypatch):
    trained = []

    def run_group(argvs, logs):
        assert argvs == [planned.fit(planned.lines[index]) for index in (0, 2, 3)]
        trained.extend(path.name for path in logs)
        return [0, 2, 75]

    monkeypatch.setitem(sys.modules, "grok.sweep.ensemble", SimpleNamespace(run_group=run_group))
    planned.record(planned.lines[1]).write_summary({"step": 30, "finished": True})
    shown = grok("sweep", "run", "s", "--ensemble", "--dry-run")[1]
    assert shown.splitlines()[1] == "  0 phi=2,seed=0, 2 phi=1.5,seed=0, 3 phi=1.5,seed=1"
    assert len(grok("sweep", "run", "s", "--ensemble", 2, "--dry-run")[1].splitlines()) == 3
    assert work(planned, planned.lines, ensemble(planned)) == 2
    assert [last_status(planned, line) for line in planned.lines] == [0, None, 2, 75]
    assert trained == ["phi=2,seed=0.log", "phi=1.5,seed=0.log", "phi=1.5,seed=1.log"]


@pytest.mark.parametrize(
    ("status", "step", "state"),
    [
        (None, 0, "waiting"), (None, 20, "stopped"), (75, 20, "stopped"), (130, 20, "stopped"), (137, 20, "stopped"),
        (2, 0, "failed"), (1, 20, "failed"), (74, 20, "failed"), (0, 20, "stopped"),
    ],
)  # fmt: skip
def test_states_follow_from_the_record_and_the_last_exit_status(planned, status, step, state):
    line = planned.lines[0]
    record = planned.record(line)
    if step:
        record.append([{"step": step, "split": None, "name": "training_loss", "value": 1.0}])
        record.write_summary({"step": step, "finished": False})
    record_status(planned, line, status)
    assert report(planned, line).state == state
    record.write_summary({"step": 30, "finished": True})
    assert report(planned, line).state == "done"
    record.summary_path.write_text("{")
    assert report(planned, line).state == "failed"


def test_status_shows_how_far_each_run_is_and_the_time_left(grok, planned):
    line = planned.lines[1]
    planned.record(line).write_summary({
        "step": 10, "finished": False, "wall_seconds": 5.0, "memorised_step": 10, "grok_step": {"iid": None},
        "accuracy": {"id_atomic": 0.1, "train_inferred": 0.955, "iid": 0.25},
    })  # fmt: skip
    with lock(planned.directory / line.run_dir):
        shown = grok("sweep", "status", "s", "--runs")[1].splitlines()
    assert shown[0] == "4 runs: 3 waiting, 1 running"
    assert shown[1] == "1 have memorised, 0 have grokked"
    assert shown[4].split() == f"1 {line.name} running 10 / 30 10 – 95.5 % 25.0 % 10 s".split()
    assert json.loads((planned.directory / "manifest.jsonl").read_text().splitlines()[1])["name"] == line.name
