"""A run that was cut and resumed is the run that was not, to the bit."""

import contextlib
import json
import shutil
import threading
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny import DEMANDING, assert_same, make_data, make_module, train, weights

from grok.callbacks import (
    CheckpointSeries,
    CostMeter,
    Evaluation,
    GrokkingMonitor,
    LastCheckpoint,
    RunRecorder,
    checkpoints,
    load_series,
)
from grok.callbacks.last import DurableCheckpoints
from grok.files import writer
from grok.records import RunRecord

STEPS = 30


class KeepCheckpoints(LastCheckpoint):
    """Keeps a copy of every `last.ckpt`, as a run killed at any time would have left one of them."""

    def _save(self, trainer):
        super()._save(trainer)
        writer(trainer).wait()
        path = f"{trainer.default_root_dir}/last.ckpt"
        shutil.copy(path, path.replace("last", f"at_{trainer.global_step}"))


def callbacks(every=10, save=13):
    return [Evaluation(every), GrokkingMonitor(threshold=0.3), CostMeter(), RunRecorder(), KeepCheckpoints(save)]


def state(trainer, module):
    schedule = trainer.lr_scheduler_configs[0].scheduler.state_dict()
    return {
        "weights": weights(module),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": {name: schedule[name] for name in ("last_epoch", "_last_lr", "decay_to")},
        "rng": torch.get_rng_state(),
    }


def rows(directory):
    return RunRecord(directory).rows()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Directory and final state of an uncut run, its checkpoints at 0, 13, 20 (an evaluation too), 26 and 30."""
    directory = tmp_path_factory.mktemp("whole")
    module = make_module(net={"dropout": 0.1}, block=50, **DEMANDING)
    watching = [*callbacks(save=13), KeepCheckpoints(20)]
    watching[-1].__class__ = type("Second", (KeepCheckpoints,), {})  # a callback of its own in the checkpoint
    trainer = train(directory, module, *watching, steps=STEPS)
    return directory, state(trainer, module)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_a_resumed_run_is_exact_in_every_precision(tmp_path, precision):
    options = {"net": {"dropout": 0.1}, **DEMANDING}
    whole, cut, resumed = (make_module(**options) for _ in range(3))
    common = {"precision": precision, "steps": STEPS}
    train(tmp_path / "whole", whole, Evaluation(10), LastCheckpoint(100), **common)
    train(tmp_path / "cut", cut, Evaluation(10), KeepCheckpoints(13), **common)
    middle = tmp_path / "cut/at_13.ckpt"
    train(tmp_path / "resumed", resumed, Evaluation(10), LastCheckpoint(100), resume=middle, **common)
    assert_same(weights(resumed), weights(whole))
    assert resumed.scores == whole.scores


@pytest.mark.parametrize(("start", "block"), [(0, 50), (13, 1), (13, 50), (20, 7), (26, 50), (30, 50)])
def test_a_resumed_run_ends_with_the_same_bits_and_the_same_record(tmp_path, whole, start, block):
    directory, expected = whole
    shutil.copy(directory / f"at_{start}.ckpt", tmp_path / "last.ckpt")
    shutil.copy(directory / "metrics.jsonl", tmp_path / "metrics.jsonl")  # it had gone on beyond the checkpoint
    module = make_module(net={"dropout": 0.1}, block=block, seed=9, **DEMANDING)
    trainer = train(tmp_path, module, *callbacks(), steps=STEPS, resume=tmp_path / "last.ckpt", seed=77)
    assert trainer.global_step == STEPS
    reached = state(trainer, module)
    if start == STEPS:  # nothing is left to do, and no random number is drawn
        reached["rng"] = expected["rng"]
    assert_same(reached, expected)
    assert rows(tmp_path) == rows(directory)
    steps = [row["step"] for row in rows(tmp_path) if row["split"] == "id_atomic" and row["name"] == "loss"]
    assert steps == [10, 20, 30]
    if start < STEPS:
        summaries = [json.loads((path / "summary.json").read_text()) for path in (directory, tmp_path)]
        for summary in summaries:
            for clock in ("wall_seconds", "train_seconds", "queries_per_second", "flops_per_second"):
                summary.pop(clock)
        assert summaries[0] == summaries[1]


def test_every_started_run_has_a_checkpoint_of_step_0(whole):
    assert torch.load(whole[0] / "at_0.ckpt", weights_only=True)["global_step"] == 0


def test_a_run_killed_between_checkpoint_and_evaluation_loses_no_evaluation(tmp_path):
    class Killed(Exception):
        pass

    class Killer(RunRecorder):
        def on_validation_start(self, trainer, _):
            if trainer.global_step == 20:
                raise Killed

    module = make_module()
    with pytest.raises(Killed):
        train(tmp_path, module, Evaluation(10), Killer(), LastCheckpoint(10), steps=STEPS)
    assert not json.loads((tmp_path / "summary.json").read_text())["finished"]
    module = make_module()
    train(
        tmp_path, module, Evaluation(10), RunRecorder(), LastCheckpoint(10), steps=STEPS, resume=tmp_path / "last.ckpt"
    )
    steps = [row["step"] for row in rows(tmp_path) if row["name"] == "loss" and row["split"] == "id_atomic"]
    assert steps == [10, 20, 30]


def test_a_finished_checkpoint_goes_on_when_more_steps_are_asked_for(tmp_path):
    train(tmp_path, make_module(block=50), LastCheckpoint(100), steps=15)
    longer = make_module(block=50)
    trainer = train(tmp_path, longer, LastCheckpoint(100), steps=25, resume=tmp_path / "last.ckpt")
    uncut = make_module(block=50)
    train(tmp_path / "uncut", uncut, steps=25)
    assert trainer.global_step == 25
    assert_same(weights(longer), weights(uncut))


def test_order_does_not_start_again_after_a_resume():
    stream = make_data().generated.train
    assert torch.equal(stream.order(13, 20), stream.order(0, 20)[13:])


def test_a_checkpoint_holds_the_state_of_its_step_whatever_is_learnt_while_it_is_written(tmp_path, monkeypatch):
    gate, write, seen = threading.Event(), DurableCheckpoints._write, {}

    def slowly(checkpoint, path):
        assert checkpoint["global_step"] != 10 or gate.wait(20)
        write(checkpoint, path)

    class Watcher(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 10:
                seen.update(weights(pl_module))
            if trainer.global_step == 20:  # trained on while the checkpoint of step 10 waits
                assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 0
                gate.set()

    monkeypatch.setattr(DurableCheckpoints, "_write", staticmethod(slowly))
    watching = (Watcher(), LastCheckpoint(10))
    train(tmp_path, make_module(block=5), *watching, steps=20, plugins=[DurableCheckpoints()])
    saved = torch.load(tmp_path / "previous.ckpt", weights_only=True)
    assert saved["global_step"] == 10
    assert_same({name: saved["state_dict"][name] for name in seen}, seen)


def test_what_is_written_in_the_background_does_not_follow_the_process_to_another_directory(tmp_path, monkeypatch):
    gate, write = threading.Event(), DurableCheckpoints._write
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def slowly(checkpoint, path):
        assert checkpoint["global_step"] != 10 or gate.wait(20)
        write(checkpoint, path)

    class Away(L.Callback):
        """Another run of an ensemble, which reads its configuration."""

        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 15:
                with contextlib.chdir("elsewhere"):
                    gate.set()
                    writer(trainer).wait()

    monkeypatch.setattr(DurableCheckpoints, "_write", staticmethod(slowly))
    watching = (Away(), CheckpointSeries(every=10, powers_of_two=False), LastCheckpoint(10))
    train(Path("run"), make_module(block=5), *watching, steps=20, plugins=[DurableCheckpoints()])
    assert torch.load("run/previous.ckpt", weights_only=True)["global_step"] == 10
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_checkpoint_is_not_put_in_place_before_the_series_up_to_it(tmp_path, monkeypatch):
    real = checkpoints.write_atomically

    def refuse(path, content):
        if path.name == "step_000000010.safetensors":
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(checkpoints, "write_atomically", refuse)
    watching = (CheckpointSeries(every=10, powers_of_two=False), LastCheckpoint(10))
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, make_module(block=5), *watching, steps=20, plugins=[DurableCheckpoints()])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 0
    monkeypatch.undo()
    train(tmp_path, make_module(block=5), *watching, steps=20, resume=tmp_path / "last.ckpt")
    assert sorted(load_series(tmp_path)) == [0, 10, 20]
