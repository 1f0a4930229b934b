"""A model and data small enough to train in a fraction of a second, and one way to train them."""

import math
from functools import partial

import lightning as L
import torch

from grok.data import Generated, RegimeDataModule, Split, TableStream, TwoHopComposition
from grok.models import LoopedTransformer
from grok.task import Task
from grok.training import GrokModule, SquaredError, Warmup

RATE = 3e-3
ADAM = partial(torch.optim.AdamW, lr=RATE, weight_decay=0.1)
# Warm-up, a constant stretch and a decay within a run of a few dozen steps, and a norm that clips often.
DEMANDING = {"schedule": partial(Warmup, warmup=5, decay_from=20), "clip": 0.3, "ema_decay": 0.9}


def make_data(**options) -> TwoHopComposition:
    sizes = {"entities": 12, "relations": 4, "out_degree": 4, "phi": 2.0, "iid": 0.2, "ood": 0.1, "batch": 16}
    return TwoHopComposition(**{**sizes, **options})


def make_module(data=None, net=None, **options) -> GrokModule:
    sizes = {"width": 16, "heads": 2, "layers": 1, **(net or {})}
    task = (data or make_data()).task
    return GrokModule(task, **{"net": partial(LoopedTransformer, **sizes), "optimizer": ADAM, **options})


def train(directory, module, *callbacks, steps=40, data=None, resume=None, seed=0, **options) -> L.Trainer:
    """Train `module` and return its trainer."""
    torch.manual_seed(seed)
    trainer = make_trainer(directory, *callbacks, max_steps=steps, **options)
    trainer.fit(module, datamodule=data or make_data(), ckpt_path=resume, weights_only=True)
    return trainer


def make_trainer(directory, *callbacks, **options) -> L.Trainer:
    plain = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(default_root_dir=str(directory), callbacks=list(callbacks), **{**plain, **options})


def weights(module) -> dict[str, torch.Tensor]:
    """Everything that is learnt or averaged."""
    state = module.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if name.startswith(("net.", "ema."))}


def assert_same(one, other) -> None:
    """Equal to the bit, in nested dictionaries and lists too."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, yours in zip(one, other, strict=True):
            assert_same(mine, yours)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


class Sums(RegimeDataModule):
    """Continuous columns: the sum of two numbers, read at the last of two positions."""

    memorised_split = None
    held_out_splits = ("test",)

    @property
    def task(self) -> Task:
        return Task(positions=2, outputs=1, features=3)

    def generate(self) -> Generated:
        values = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(self.seed))
        at = torch.ones(40, 1, dtype=torch.int64)
        table = Split(values, at, values.sum((1, 2))[:, None], at.bool(), ("a", "b"))
        return Generated(
            TableStream(table.take(slice(0, 32)), self.batch, self.order_seed), {"test": table.take(slice(32, 40))}
        )


class Spoilt(Sums):
    """One training row is not a number."""

    row = 5

    def generate(self) -> Generated:
        generated = super().generate()
        generated.train.table.inputs[self.row] = math.nan
        return generated


__all__ = ["ADAM", "DEMANDING", "RATE", "Spoilt", "SquaredError", "Sums", "assert_same", "make_data", "make_module"]
__all__ += ["make_trainer", "train", "weights"]
