"""The models and data at which steps are timed, and two ways to train them: through the Trainer, and by a bare loop."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from report import synchronize
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from grok.data import Batch, FactExposure, FillIn, RegimeDataModule, TwoHopComposition
from grok.models import LoopedTransformer, RecursiveTransformer, StepModel
from grok.training import GrokModule, Stablemax, Warmup, parameter_groups


@dataclass(frozen=True)
class Size:
    """A model and its data.

    Args:
        data: makes the regime from `batch=`.
        net: makes the model from the task.
        options: further arguments of `GrokModule`.
        rate: learning rate.
        blocks: block applications, of the same width, in the form of the reference code; None: it has none.
        width: of the residual stream.
        precision: of the Trainer on a GPU.
    """

    data: Callable[..., RegimeDataModule]
    net: Callable[..., StepModel]
    options: dict[str, Any]
    rate: float
    blocks: int | None
    width: int
    precision: str = "bf16-mixed"


_WANG = partial(TwoHopComposition, phi=18.0, test_size=16)
_HE = partial(FactExposure, phi=18.0, k=18, regime="natural", test_size=16, encoding=FillIn())
_GPT2 = partial(LoopedTransformer, width=768, heads=12, dropout=0.1)
_CLIPPED = {"clip": 1.0}
_OF_HE = {"clip": None, "ema_decay": 0.999, "decay": "all", "reduction": "queries"}


def _recursive(prefix: int, width: int = 1536) -> Size:
    net = partial(RecursiveTransformer, width=width, prefix=prefix, activations="bfloat16")
    return Size(_HE, net, {**_OF_HE, "objective": Stablemax("float32")}, 4e-5, None, width, "32-true")


SIZES = {
    "tiny": Size(
        partial(TwoHopComposition, entities=12, relations=4, out_degree=4, phi=2.0, iid=0.2),
        partial(LoopedTransformer, width=16, heads=2, layers=1),
        _CLIPPED,
        1e-3,
        1,
        16,
    ),
    "quickstart": Size(
        partial(TwoHopComposition, entities=50, relations=10, out_degree=10, phi=4.0, iid=0.1),
        partial(LoopedTransformer, width=64, heads=4, layers=2, loops=2, activation="relu", init_depth="effective"),
        _CLIPPED,
        2e-3,
        4,
        64,
    ),
    "4x2": Size(_WANG, partial(_GPT2, layers=4, loops=2), _CLIPPED, 1e-4, 8, 768),
    "8": Size(_WANG, partial(_GPT2, layers=8), _CLIPPED, 1e-4, 8, 768),
    "compact": _recursive(0),
    "paper": _recursive(16),
}
"""`4x2` and `8` are models of Wang et al. 2024, `compact` and `paper` the recursive transformer of He et al. 2026."""


def made(
    name: str, batch: int, device: str, fast: bool = False, block: int = 50
) -> tuple[GrokModule, RegimeDataModule]:
    """A module on `device` with the weights of seed 0, and its data."""
    size = SIZES[name]
    data = size.data(batch=batch)
    data.setup()
    module = GrokModule(
        data.task,
        net=size.net,
        optimizer=partial(torch.optim.AdamW, lr=size.rate, weight_decay=0.1, fused=True),
        schedule=partial(Warmup, warmup=2000),
        fast=fast,
        block=block,
        **size.options,
    )
    return module.to(device), data


class Bare:
    """A plain PyTorch loop over our model: forward, backward, clipping, fused AdamW, schedule, moving average."""

    def __init__(self, module: GrokModule, data: RegimeDataModule, device: str, precision: str) -> None:
        self.module, self.device = module, device
        self.half = device.startswith("cuda") and precision == "bf16-mixed"
        self.optimizer = module.make_optimizer(parameter_groups(module.net, module.decay))
        assert module.make_schedule is not None
        self.schedule = module.make_schedule(self.optimizer)
        self.stream = data.generated.train.to(device)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Made beforehand or on the way, as the caller likes."""
        return self.stream.batches(start, stop)

    def steps(self, start: int, stop: int) -> None:
        """Optimizer steps `start … stop - 1`."""
        module = self.module
        for batch in self.batches(start, stop):
            with self._precision():
                loss = module.loss(batch)
            loss.backward()
            if module.clip is not None:
                nn.utils.clip_grad_norm_(module.net.parameters(), module.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            module.average()

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if self.half else nullcontext()


class _Clock(L.Callback):
    """Notes when `warm` optimizer steps were done, and every `steps` after that."""

    def __init__(self, warm: int, steps: int, device: str) -> None:
        self.warm, self.steps, self.device = warm, steps, device
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        done = trainer.global_step - self.warm
        if done >= 0 and done % self.steps == 0:
            synchronize(self.device)
            self.seen.append(time.perf_counter())


def seconds_per_step_of_trainer(
    module: GrokModule,
    data: RegimeDataModule,
    steps: int,
    warm: int,
    device: str,
    precision: str = "32-true",
    repeats: int = 1,
) -> float:
    """Seconds of an optimizer step through the Trainer, blocks and hooks included, after `warm` of them.

    The least of `repeats` stretches of `steps`; both numbers must be multiples of the module's block.
    """
    clock = _Clock(warm, steps, device)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        trainer = L.Trainer(
            default_root_dir=directory,
            callbacks=[clock],
            accelerator="gpu" if device.startswith("cuda") else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_steps=warm + repeats * steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=data)
    return min(later - earlier for earlier, later in pairwise(clock.seen)) / steps


def flops_of(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products of `work`, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matmul_ceiling(device: str) -> float:
    """FLOP/s of a large matrix product, the best of ten: float32 on a CPU, bfloat16 on a GPU."""
    cuda = device.startswith("cuda")
    size = 8192 if cuda else 1536
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        one @ one
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
