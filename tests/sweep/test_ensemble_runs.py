"""Runs trained as one ensemble leave what they leave when they are trained alone."""

import os
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny_configuration import TINY

from grok.callbacks import Evaluation
from grok.cli import main
from grok.records import RunRecord
from grok.sweep.ensemble import run_group
from grok.training import GrokModule

VARIED = (
    ("--seed_everything", "1"),
    ("--seed_everything", "2", "--model.optimizer.weight_decay", "1.0", "--model.clip", "0.3"),
    ("--data.phi", "1.5", "--model.optimizer.lr", "5e-3", "--model.schedule.warmup", "20"),
)


@pytest.fixture
def argvs(tmp_path):
    """Arguments of the three runs in directories `KIND_0` …, without dropout and in float64 unless told otherwise."""
    (tmp_path / "tiny.yaml").write_text(TINY)

    def argvs(kind, *more):
        usual = ("--config", str(tmp_path / "tiny.yaml"), "--model.net.dropout", "0", "--trainer.precision", "64-true")
        return [
            ["fit", *usual, *varied, "--run_dir", str(tmp_path / f"{kind}_{index}"), *more]
            for index, varied in enumerate(VARIED)
        ]

    return argvs


@pytest.fixture
def together(argvs, tmp_path):
    """Train the three runs as one ensemble; gives the exit statuses."""
    return lambda *more: run_group(argvs("together", *more), [tmp_path / f"log_{index}.txt" for index in range(3)])


def insist_on_same(one, other, tolerance=1e-9):
    """The same files, records of the same measures, and weights and values equal within `tolerance`."""
    assert _files(one) == _files(other)
    rows, others = RunRecord(one).rows(), RunRecord(other).rows()
    keys = ("step", "split", "name", "n", "floor")
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in others]
    for row, yours in zip(rows, others, strict=True):
        assert row["value"] == pytest.approx(yours["value"], abs=tolerance, rel=tolerance), row
    for path in sorted((one / "series").glob("*.safetensors")):
        mine, yours = load_file(path), load_file(other / "series" / path.name)
        torch.testing.assert_close(mine, yours, rtol=tolerance, atol=tolerance)
    summary, theirs = RunRecord(one).summary(), RunRecord(other).summary()
    for name in ("step", "finished", "accuracy", "memorised_step", "grok_step", "queries", "flops"):
        assert summary[name] == pytest.approx(theirs[name]), name


def _files(run):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if "tfevents" not in path.name)


@pytest.mark.slow
def test_members_are_ordinary_runs(argvs, together, tmp_path):
    analysed = (
        "--trainer.max_steps",
        "200",
        "--lens.enabled",
        "true",
        "--lens.every",
        "100",
        "--trainer.logger",
        "true",
    )
    before = (sys.stdout, torch.get_rng_state(), torch.get_default_dtype())
    assert together(*analysed) == [0, 0, 0]
    assert sys.stdout is before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.get_default_dtype() is before[2]
    for index, argv in enumerate(argvs("alone", *analysed)):
        assert main(argv) == 0
        insist_on_same(tmp_path / f"together_{index}", tmp_path / f"alone_{index}")
        log = (tmp_path / f"log_{index}.txt").read_text()
        assert f"Training in {tmp_path / f'together_{index}'};" in log
        assert log.count("step     200") == 1
        sizes = [(tmp_path / f"{kind}_{index}/last.ckpt").stat().st_size for kind in ("together", "alone")]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # its own weights, not those of all members


@pytest.mark.slow
def test_a_stopped_ensemble_goes_on_together_or_alone_or_at_different_steps(argvs, together, tmp_path, monkeypatch):
    original = Evaluation.on_train_batch_end

    def send(self, trainer, *_):
        original(self, trainer)
        if trainer.global_step == 35:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Evaluation, "on_train_batch_end", send)
    assert together() == [75, 75, 75]
    monkeypatch.undo()
    steps = [torch.load(tmp_path / f"together_{i}/last.ckpt", weights_only=True)["global_step"] for i in range(3)]
    assert 30 < min(steps) <= max(steps) <= 60
    for index, step in enumerate(steps):  # a signal arrives when it arrives
        told = f"stopped by SIGTERM at step {step}, everything is saved"
        assert told in (tmp_path / f"log_{index}.txt").read_text()
    assert main(argvs("together")[2]) == 0  # one goes on alone
    alone = argvs("alone")
    assert together() == [0, 0, 0]
    for index, argv in enumerate(alone):
        assert main(argv) == 0
        insist_on_same(tmp_path / f"together_{index}", tmp_path / f"alone_{index}")


@pytest.mark.slow
def test_members_at_different_steps_that_end_at_different_steps(argvs, tmp_path, monkeypatch):
    original = Evaluation.on_train_batch_end

    def stop(self, trainer, *_):
        original(self, trainer)
        if trainer.global_step == 28:
            os.kill(os.getpid(), signal.SIGTERM)

    early = ("--monitor.threshold", "0.01", "--monitor.window", "1", "--monitor.stop_after", "10")
    mine, yours = argvs("mine"), argvs("yours")
    for argv in (mine[1], yours[1]):
        argv += early
    monkeypatch.setattr(Evaluation, "on_train_batch_end", stop)
    assert main(mine[0]) == 75
    monkeypatch.undo()
    assert run_group(mine, [tmp_path / f"log_{index}.txt" for index in range(3)]) == [0, 0, 0]
    for index, argv in enumerate(yours):
        assert main(argv) == 0
        insist_on_same(tmp_path / f"mine_{index}", tmp_path / f"yours_{index}")
    assert RunRecord(tmp_path / "mine_1").summary()["step"] < 60


@pytest.mark.slow
def test_a_member_that_fails_leaves_the_others_alone(argvs, tmp_path, monkeypatch):
    original = Evaluation.on_train_batch_end

    def fail(self, trainer, *_):
        original(self, trainer)
        if trainer.default_root_dir.endswith("_0") and trainer.global_step == 20:
            raise ZeroDivisionError("a mistake in a callback")

    clip = GrokModule.on_before_optimizer_step

    def stumble(self, optimizer):
        clip(self, optimizer)
        if self.trainer.default_root_dir.endswith("_3") and self.trainer.global_step == 30:
            raise ZeroDivisionError("a mistake in an optimizer step")

    monkeypatch.setattr(Evaluation, "on_train_batch_end", fail)
    monkeypatch.setattr(GrokModule, "on_before_optimizer_step", stumble)
    runs = argvs("run")
    runs.append([*runs[2][:-1], str(tmp_path / "run_3")])
    runs[1] += ["--data.phi", "400"]
    logs = [tmp_path / f"log_{index}.txt" for index in range(4)]
    assert run_group(runs, logs) == [1, 2, 0, 1]
    assert "ZeroDivisionError: a mistake in an optimizer step" in logs[3].read_text()
    assert "ZeroDivisionError: a mistake in a callback" in logs[0].read_text()
    assert "error: phi=400.0: use at most" in logs[1].read_text()
    assert RunRecord(tmp_path / "run_2").summary()["finished"]


@pytest.mark.slow
def test_runs_that_cannot_be_one_ensemble_are_trained_one_after_the_other(argvs, tmp_path, hashes):
    """Dropout draws from generators that are each run's own: alone it is the same to the bit."""
    random = ("--model.net.dropout", "0.2")
    logs = [tmp_path / f"log_{index}.txt" for index in range(3)]
    assert run_group(argvs("run", *random), logs) == [0, 0, 0]
    for index, argv in enumerate(argvs("alone", *random)[:2]):
        assert "no ensemble, trained alone: model.net.dropout=0.2" in logs[index].read_text()
        assert main(argv) == 0
        assert hashes(tmp_path / f"run_{index}") == hashes(tmp_path / f"alone_{index}")


def test_a_member_that_diverges_ends_alone_and_keeps_its_last_good_weights(argvs, tmp_path):
    runs = argvs("run")
    runs[1] += ["--model.optimizer.lr", "1e30", "--last.every", "1"]
    logs = [tmp_path / f"log_{index}.txt" for index in range(3)]
    assert run_group(runs, logs) == [0, 1, 0]
    told = logs[1].read_text()
    assert "error: the loss is " in told or "error: the norm of the gradient is " in told
    last = torch.load(tmp_path / "run_1/last.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())
    assert main(argvs("alone")[0]) == 0
    insist_on_same(tmp_path / "run_0", tmp_path / "alone_0")
