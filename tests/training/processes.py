"""What `test_processes.py` runs in every process of a group: each function trains, and returns what it ends with.

Processes are forked by a server that has imported `grok` once, which saves five seconds for each.
"""

import multiprocessing
import os
import signal
import socket
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny import DEMANDING, Spoilt, make_data, make_module, make_trainer, train, weights

from grok.callbacks import (
    CausalTracing,
    CheckpointSeries,
    CostMeter,
    Evaluation,
    LastCheckpoint,
    LogitLens,
    PredictionWriter,
    RunRecorder,
    StartFrom,
)
from grok.errors import BadInput, NotFinite
from grok.stopping import Stopped, listening
from grok.training import FullySharded, SquaredError
from grok.training.sharding import whole


def in_processes(world: int, work, *arguments, patience: float = 150) -> list:
    """Call `work(rank, *arguments)` in `world` processes that form a group; returns what each returns, by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["grok.cli"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        answers = [Path(folder) / f"{rank}.pt" for rank in range(world)]
        group = [
            context.Process(target=_one, args=(rank, world, port, answer, work, arguments))
            for rank, answer in enumerate(answers)
        ]
        for process in group:
            process.start()
        end = time.monotonic() + patience
        for process in group:
            process.join(max(0, end - time.monotonic()))
        for process in group:
            process.kill()
        found = [torch.load(answer, weights_only=False) if answer.exists() else None for answer in answers]
    for answer in found:
        if isinstance(answer, Exception):
            raise answer
    assert None not in found, "the processes wait for each other"
    return found


def _one(rank, world, port, path, work, arguments):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a fork server that a sweep has started blocks some
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
    }  # fmt: skip
    try:
        answer = work(rank, *arguments)
    except Exception:
        answer = AssertionError(f"process {rank} of {world}:\n{traceback.format_exc()}")
    torch.save(answer, path)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # threads of an open one can abort the interpreter as it ends


def together(world: int) -> dict:
    """Options of a Trainer for one process of so many."""
    return {"strategy": "ddp", "devices": world} if world > 1 else {}


class ScaledFloat64(MixedPrecision):
    """The scaler of 16-mixed around float64, so that what several processes compute can be compared to 1e-9."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=20))

    def convert_module(self, module):
        return module.double()

    def autocast_context_manager(self):
        return torch.autocast("cpu", enabled=False)


def curve(rank, world, directory, block, steps, precision="64-true", resume=None) -> dict:
    """Train on batches and splits that the processes cannot share evenly, with clipping and a moving average."""
    data = make_data(batch=15, test_size=7, evaluation_batch=2)
    data.setup()
    assert any(len(split) % 4 for split in data.splits.values())
    schedule = {} if resume or steps < 200 else {"schedule": DEMANDING["schedule"]}
    module = make_module(block=block, clip=DEMANDING["clip"], ema_decay=DEMANDING["ema_decay"], **schedule)
    analyses = [LogitLens(enabled=True, every=100), CausalTracing(enabled=True, every=100)]
    callbacks = [Evaluation(every=25), CostMeter(), *analyses, RunRecorder(norms=False), LastCheckpoint(50)]
    options = together(world)
    if precision == "scaled":
        options["plugins"] = [ScaledFloat64()]
    else:
        options["precision"] = precision
    trainer = train(directory, module, *callbacks, steps=steps, data=data, resume=resume, **options)
    scores = {name: (score.accuracy, score.loss, score.n) for name, score in module.scores.items()}
    scale = getattr(getattr(trainer.precision_plugin, "scaler", None), "get_scale", lambda: None)()
    return {"weights": weights(module), "scores": scores, "world": trainer.world_size, "scale": scale}


class StopTheSecond(L.Callback):
    """A batch system's signal to one process of two."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == 12:
            signal.raise_signal(signal.SIGTERM)  # reaches this very thread, so now


def stop_and_resume(rank, directory) -> dict:
    """Train without a stop, and with one; dropout draws from generators that differ between the processes."""
    options = {"steps": 24, **together(2)}

    def module():
        return make_module(net={"dropout": 0.3}, block=4)

    whole_run = module()
    train(directory / "whole", whole_run, LastCheckpoint(10), seed=rank, **options)
    with listening():
        try:
            train(directory / "cut", module(), StopTheSecond(), LastCheckpoint(10), seed=rank, **options)
        except Stopped as stopped:
            told = str(stopped)
    resumed = module()
    last = directory / "cut/last.ckpt"
    train(directory / "cut", resumed, LastCheckpoint(10), seed=99, resume=last, **options)
    losses = [module.pop_training_loss() for module in (whole_run, resumed)]
    return {"whole": weights(whole_run), "resumed": weights(resumed), "losses": losses, "stopped": told}


def meet_a_bad_batch(rank, directory) -> tuple:
    """What each process says when one of them has met a loss that is not a number, stopping and skipping."""
    told = None
    try:
        module = make_module(Spoilt(batch=8), objective=SquaredError(), block=10)
        train(directory / "stop", module, data=Spoilt(batch=8, order_seed=1), **together(2))
    except NotFinite as error:
        told = str(error)
    skipping = make_module(Spoilt(batch=8), objective=SquaredError(), block=10, nonfinite="skip")
    train(directory / "skip", skipping, data=Spoilt(batch=8, order_seed=1), **together(2))
    return told, skipping.finite.skipped, weights(skipping)


def analyses_and_starts_with_spread_weights(rank, directory) -> list[str]:
    """What is said to an analysis of spread weights; and whether another run's weights reach them."""
    told = []
    try:
        train(
            directory / "analysed", make_module(), LogitLens(enabled=True, every=5), strategy=FullySharded(), devices=2
        )
    except BadInput as error:
        told.append(str(error))
    start = StartFrom(str(directory / "source"), "last")
    module = make_module(seed=7)
    start.prepare(module)
    train(directory / "started", module, start, CheckpointSeries(1000), steps=1, strategy=FullySharded(), devices=2)
    return told


def predictions(rank, directory) -> bool:
    """Write the answers of a model."""
    data = make_data(test_size=7)
    trainer = make_trainer(directory, PredictionWriter(), **together(2))
    trainer.predict(make_module(), datamodule=data, return_predictions=False)
    return True


def sharded(rank, world, directory, steps, resume=None) -> dict:
    """Train with weights spread over the processes, or, alone, with whole ones."""
    data = make_data(batch=15, test_size=7, evaluation_batch=2)
    module = make_module(block=10, net={"layers": 2, "loops": 2}, clip=0.3, ema_decay=0.9)
    callbacks = [Evaluation(every=10), CheckpointSeries(every=10), CostMeter(), RunRecorder(), LastCheckpoint(10)]
    options = {"strategy": FullySharded(), "devices": world} if world > 1 else {}
    train(Path(directory), module, *callbacks, steps=steps, data=data, resume=resume, **options)
    return {
        "weights": {name: whole(weight.detach()).clone() for name, weight in module.net.named_parameters()},
        "own": sum(getattr(one, "to_local", lambda one=one: one)().numel() for one in module.net.parameters()),
        "scores": {name: (score.accuracy, score.loss, score.n) for name, score in module.scores.items()},
    }
