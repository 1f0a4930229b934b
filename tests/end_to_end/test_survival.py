"""What a stop, a full disk or a damaged file leaves behind, and how the same command goes on from it."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_configuration import TINY

from grok import stopping
from grok.callbacks import Evaluation, Figures, LastCheckpoint
from grok.cli import main
from grok.files import is_locked, lock, write_atomically
from grok.records import RunRecord
from grok.report.tensorboard import read_scalars


class Power(BaseException):
    """Nothing catches this, as nothing catches a power failure."""


@pytest.fixture
def fit(grok, tiny_config, tmp_path):
    """The command on `tmp_path / NAME`."""
    return lambda name, *more: grok("fit", "--config", tiny_config, "--run_dir", tmp_path / name, *more)


@contextmanager
def power_failure(step):
    """Within, training ends abruptly at a step, between two blocks."""
    original = Evaluation.on_train_batch_end

    def stop(self, trainer, *_):
        original(self, trainer)
        if trainer.global_step >= step:
            raise Power

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "on_train_batch_end", stop)
        try:
            yield
        except Power:
            return
    pytest.fail(f"training went on beyond step {step}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Runs to copy, cut short after the checkpoints of steps 25 and 50."""
    directory = tmp_path_factory.mktemp("prepared")
    config = directory / "tiny.yaml"
    config.write_text(TINY)
    for step in (30, 55):
        with power_failure(step):
            main(["fit", "--config", str(config), "--run_dir", str(directory / f"cut_{step}")])
    return directory


@pytest.fixture
def cut(prepared, tmp_path):
    """A run cut short at step 30 or 55."""
    return lambda step=55, name="run": Path(shutil.copytree(prepared / f"cut_{step}", tmp_path / name))


@pytest.fixture
def twin(trained, hashes):
    """What an uninterrupted run ends with."""
    return result(trained, hashes)


def result(run, hashes):
    return hashes(run), (run / "metrics.jsonl").read_text()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(cut, fit, hashes, twin, damage):
    run = cut()
    damage(run / "last.ckpt")
    bad = (run / "last.ckpt").read_bytes()
    status, output, _ = fit("run")
    assert status == 0
    assert f"{run / 'last.ckpt'}: damaged or replaced" in output
    assert f"going on from {run / 'previous.ckpt'}" in output
    assert result(run, hashes) == twin
    assert (run / "damaged.ckpt").read_bytes() == bad


@pytest.mark.slow
def test_the_good_checkpoint_is_not_overwritten_by_the_damaged_one_at_the_next_save(cut, fit, hashes, twin):
    run = cut()
    flip_a_bit(run / "last.ckpt")
    good = (run / "previous.ckpt").read_bytes()
    with power_failure(45):  # it goes on from step 25 and is cut again before the next save
        fit("run")
    assert (run / "previous.ckpt").read_bytes() == good
    assert not (run / "last.ckpt").exists()
    assert fit("run")[0] == 0
    assert result(run, hashes) == twin


def test_verify_names_a_damaged_checkpoint(cut, grok):
    run = cut()
    status, output, _ = grok("verify", run)
    assert (status, "and 2 checkpoints are as they were saved" in output) == (0, True)
    flip_a_bit(run / "previous.ckpt")
    status, _, errors = grok("verify", run)
    assert (status, f"{run / 'previous.ckpt'}: damaged" in errors, "last.ckpt" in errors) == (2, True, False)


def test_without_any_good_checkpoint_nothing_is_touched(cut, fit):
    run = cut()
    truncate(run / "last.ckpt")
    flip_a_bit(run / "previous.ckpt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, _, errors = fit("run")
    assert status == 2
    assert f"{run / 'last.ckpt'}: damaged" in errors
    assert f"{run / 'previous.ckpt'}: damaged" in errors
    assert "--fresh" in errors
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_every_moment_of_a_save_leaves_a_good_checkpoint(cut, fit, hashes, twin, monkeypatch, tmp_path):
    """Cut before, between and after each of the renames of a save."""
    from grok import files
    from grok.callbacks import last

    for moment in range(4):
        calls = [0]

        def cutting(original, calls=calls, moment=moment):
            def call(*arguments):
                if calls[0] == moment:
                    raise Power
                original(*arguments)
                calls[0] += 1
                if calls[0] == moment:
                    raise Power

            return call

        run = cut(30, name=f"moment_{moment}")  # step 25 is saved; the next save is that of 50
        with monkeypatch.context() as patch:
            patch.setattr(last, "replace", cutting(files.replace))
            patch.setattr(last, "write_atomically", cutting(files.write_atomically))
            with pytest.raises(Power):
                fit(run.name)
        assert fit(run.name)[0] == 0
        assert result(run, hashes) == twin


def test_a_checkpoint_that_would_run_code_is_refused_with_an_explanation(fit, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.ckpt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Bomb()))
    status, _, errors = fit("run", "--ckpt_path", tmp_path / "bomb.ckpt")
    assert status == 2
    assert "would run posix.mkdir when it is loaded" in errors
    assert fit("other", "--ckpt_path", tmp_path / "old.ckpt")[0] == 2
    assert not (tmp_path / "exploded").exists()


@pytest.mark.slow
def test_event_files_have_every_step_once_whatever_happened(fit, tmp_path):
    logged = ("--trainer.logger", "true")
    assert fit("twin", *logged)[0] == 0
    run = tmp_path / "run"
    for step in (30, 45, 55):  # 45 and 55 lie after the checkpoints they go on from
        with power_failure(step):
            fit("run", *logged)
    torn = next((run / "tensorboard").glob("events*"))
    torn.write_bytes(torn.read_bytes() + b"\x30\x00\x00")
    assert fit("run", *logged)[0] == 0
    assert read_scalars(run) == read_scalars(tmp_path / "twin")
    assert {step for step, _ in read_scalars(run)["accuracy/id_atomic"]} == {20, 40, 60}


@pytest.mark.slow
def test_a_start_that_was_cut_before_the_first_checkpoint_is_made_again(fit, hashes, twin, tmp_path, monkeypatch):
    logged = ("--lens.enabled", "true", "--lens.every", 20)
    assert fit("watched", *logged)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", lambda *_: (_ for _ in ()).throw(Power))
        with pytest.raises(Power):
            fit("run", *logged)
    assert {row["step"] for row in RunRecord(tmp_path / "run").rows()} == {0}
    assert fit("run", *logged)[0] == 0
    assert result(tmp_path / "run", hashes) == result(tmp_path / "watched", hashes)


def test_a_run_without_its_checkpoints_is_not_started_over(cut, fit):
    run = cut()
    (run / "last.ckpt").unlink()
    (run / "previous.ckpt").unlink()
    before = (run / "metrics.jsonl").read_text()
    status, _, errors = fit("run")
    assert (status, "already holds a run" in errors) == (2, True)
    assert (run / "metrics.jsonl").read_text() == before


def test_a_run_stopped_between_its_last_checkpoint_and_the_mark_is_finished(fit, hashes, twin, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Figures, "on_fit_end", lambda *_: (_ for _ in ()).throw(Power))
        with pytest.raises(Power):
            fit("run")
    summary = RunRecord(tmp_path / "run").summary()
    assert (summary["step"], summary["finished"]) == (60, False)
    assert fit("run")[0] == 0
    assert RunRecord(tmp_path / "run").summary() == {**summary, "finished": True}
    assert result(tmp_path / "run", hashes) == twin


def test_a_summary_that_was_removed_is_written_again(fit, run, tmp_path):
    expected = RunRecord(run).summary()
    (run / "summary.json").unlink()
    assert fit("run")[0] == 0
    summary = RunRecord(tmp_path / "run").summary()
    assert {name: one for name, one in summary.items() if "second" not in name} == {
        name: one for name, one in expected.items() if "second" not in name
    }


@pytest.mark.slow
def test_a_run_that_stopped_early_is_not_trained_further_after_that(fit, hashes, tmp_path, monkeypatch):
    early = ("--monitor.threshold", 0.01, "--monitor.window", 1, "--monitor.stop_after", 10)
    assert fit("twin", *early)[0] == 0
    assert RunRecord(tmp_path / "twin").summary()["step"] == 40
    with monkeypatch.context() as patch:
        patch.setattr(Figures, "on_fit_end", lambda *_: (_ for _ in ()).throw(Power))
        with pytest.raises(Power):
            fit("run", *early)
    assert fit("run", *early)[0] == 0
    assert RunRecord(tmp_path / "run").summary()["step"] == 40
    assert result(tmp_path / "run", hashes) == result(tmp_path / "twin", hashes)


@pytest.mark.slow
def test_a_stop_between_evaluations_does_not_bring_an_early_end_forward(fit, hashes, tmp_path):
    early = ("--monitor.threshold", 0.01, "--monitor.window", 1, "--monitor.stop_after", 5)
    assert fit("twin", *early)[0] == 0
    with power_failure(28):
        fit("run", *early, "--last.every", 1)
    assert fit("run", *early, "--last.every", 1)[0] == 0
    assert result(tmp_path / "run", hashes) == result(tmp_path / "twin", hashes)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_at_the_end_of_the_block(fit, hashes, twin, tmp_path, monkeypatch, number, status):
    original = Evaluation.on_train_batch_end

    def send(self, trainer, *_):
        original(self, trainer)
        if trainer.global_step == 35:
            os.kill(os.getpid(), number)

    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "on_train_batch_end", send)
        stopped, _, errors = fit("run")
    assert stopped == status
    assert f"stopped by {number.name} at step 35, everything is saved" in errors
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 35
    assert {one: signal.getsignal(one) for one in handlers} == handlers
    assert not is_locked(tmp_path / "run")
    assert fit("run")[0] == 0
    assert result(tmp_path / "run", hashes) == twin


def test_a_second_interrupt_means_now(fit, tmp_path, monkeypatch):
    def twice(self, trainer, *_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Evaluation, "on_train_batch_end", twice)
    status, _, errors = fit("run")
    assert (status, "interrupted" in errors) == (130, True)
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 0


def test_a_signal_before_training_stops_it_at_the_start(fit, tmp_path, monkeypatch):
    from grok.data import TwoHopComposition

    original = TwoHopComposition.generate
    with monkeypatch.context() as patch:
        patch.setattr(
            TwoHopComposition, "generate", lambda self: (os.kill(os.getpid(), signal.SIGUSR1), original(self))[1]
        )
        assert fit("run")[0] == 128 + signal.SIGUSR1  # not 75: a batch system must not try that for ever
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == 0
    assert stopping.requested() is None
    assert fit("run")[0] == 0


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_afterwards(cut, fit, hashes, twin):
    run = cut(30)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the next checkpoint does not fit
    try:
        status, _, errors = fit("run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == stopping.DISK
    assert os.strerror(errno.EFBIG) in errors
    assert len(errors.splitlines()) == 1
    assert not [path for path in run.rglob("*.partial") if path.stat().st_size]
    assert fit("run")[0] == 0
    assert result(run, hashes) == twin


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_at_any_write_leaves_a_whole_run(cut, fit, hashes, twin, monkeypatch, number):
    from grok import files

    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    run = cut(30)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", refuse)
        status, _, errors = fit("run")
    assert (status, os.strerror(number) in errors) == (stopping.DISK, True)
    assert fit("run")[0] == 0
    assert result(run, hashes) == twin


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    from grok import files

    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(files, "_sync", lambda path: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_directory_is_held_by_one_and_free_when_it_lets_go(tmp_path):
    held = lock(tmp_path / "run")
    assert is_locked(tmp_path / "run")
    held.close()
    assert not is_locked(tmp_path / "run")
    assert not is_locked(tmp_path / "elsewhere")
    lock(tmp_path / "run").close()


def test_the_checksums_are_those_of_the_files(cut):
    run = cut()
    entries = json.loads((run / "saved.json").read_text())
    assert [entry["step"] for entry in entries] == [50, 25, 0]
    from grok.files import sha256

    assert [entry["sha256"] for entry in entries[:2]] == [sha256(run / "last.ckpt"), sha256(run / "previous.ckpt")]
