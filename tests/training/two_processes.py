"""Run by `test_two_processes.py` in every process, with blocks of 1 and 10; saves what each process ends with."""

import os
import signal
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from tiny import DEMANDING, make_data, make_module, train, weights

from grok.callbacks import CausalTracing, CostMeter, Evaluation, LastCheckpoint, LogitLens, RunRecorder
from grok.stopping import Stopped, listening

STEPS = 30


def run(directory, block, **options) -> dict:
    """Train in float64, on batches and splits that two processes cannot share evenly."""
    data = make_data(batch=15, test_size=7, evaluation_batch=2)
    data.setup()
    assert any(len(split) % 2 for split in data.splits.values())
    module = make_module(block=block, **DEMANDING)
    analyses = [LogitLens(enabled=True, every=15), CausalTracing(enabled=True, every=15)]
    callbacks = [Evaluation(every=10), CostMeter(), *analyses, RunRecorder(norms=False), LastCheckpoint(20)]
    trainer = train(directory, module, *callbacks, steps=STEPS, data=data, precision="64-true", **options)
    scores = {name: (score.accuracy, score.loss, score.n) for name, score in module.scores.items()}
    return {"weights": weights(module), "scores": scores, "world": trainer.world_size, "rank": trainer.global_rank}


class StopTheSecond(L.Callback):
    """A batch system's signal to one process of two."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == 12:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_and_resume(directory) -> dict:
    """Train without a stop, and with one; dropout draws from generators that differ between the processes."""
    rank = int(os.environ["RANK"])
    options = {"steps": 24, "strategy": "ddp", "devices": 2}

    def module():
        return make_module(net={"dropout": 0.3}, block=4)

    whole = module()
    train(directory / "whole", whole, LastCheckpoint(10), seed=rank, **options)
    with listening():
        try:
            train(directory / "cut", module(), StopTheSecond(), LastCheckpoint(10), seed=rank, **options)
        except Stopped as stopped:
            told = str(stopped)
    resumed = module()
    last = directory / "cut/last.ckpt"
    train(directory / "cut", resumed, LastCheckpoint(10), seed=99, resume=last, **options)
    losses = [module.pop_training_loss() for module in (whole, resumed)]
    return {"whole": weights(whole), "resumed": weights(resumed), "losses": losses, "stopped": told, "rank": rank}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for length in (1, 10):
        root = Path(sys.argv[1]) / f"block_{length}"
        result = run(root, length, strategy="ddp", devices=2)
        torch.save(result, root / f"rank_{result['rank']}.pt")
    result = stop_and_resume(Path(sys.argv[1]))
    torch.save(result, Path(sys.argv[1]) / f"stopped_{result['rank']}.pt")
    torch.distributed.destroy_process_group()  # threads of an open one can abort the interpreter as it ends
