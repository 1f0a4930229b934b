"""`CostMeter`: what a run has cost so far."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from torch.utils.flop_counter import FlopCounterMode

from grok.data import Batch, RegimeDataModule
from grok.training import GrokModule

__all__ = ["CostMeter", "flops_per_step", "peak_flops"]

# Dense bf16 peaks in FLOP/s from the vendors' data sheets, by part of the device name; without an entry, no MFU.
_PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX A6000": 155e12}


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s in bfloat16 of a CUDA device; None where it is not known (any CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def flops_per_step(module: GrokModule, batch: Batch) -> int:
    """FLOPs of forward and backward for one batch in the plain form of the step, counted by torch.

    What `fast` leaves out counts: a cost in FLOPs is that of the model, on any device. Hidden values of a large token
    mixing, which are computed again, count twice, and the optimizer's own products do not.

    torch counts matrix products, which are all but a fraction of a per cent; attention over up to 8 tokens on a CPU is
    done element by element and not counted. Weights, gradients and random numbers are left as they were.
    """
    cuda = [module.device.index] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), FlopCounterMode(display=False) as counter:
        module.loss(batch).backward()  # type: ignore[no-untyped-call]
    module.zero_grad()
    return int(counter.get_total_flops())


class CostMeter(L.Callback):
    """Counts optimizer steps, queries, tokens, FLOPs and seconds, over all resumes of a run.

    Seconds of training exclude evaluation, checkpoints at evaluation and circuit analyses; wall seconds include
    everything from the start of training.
    """

    def __init__(self) -> None:
        self.wall_seconds = 0.0
        self.train_seconds = 0.0
        self.analysis_seconds = 0.0
        self.flops = 0
        self.queries = 0
        self.tokens = 0
        self.per_step = {"flops": 0, "queries": 0, "tokens": 0}
        self._step = 0
        self._since: float | None = None
        self._wall_since: float | None = None
        self._peak: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count one step, and start the clocks."""
        module = cast(GrokModule, pl_module)
        data = cast(RegimeDataModule, cast(Any, trainer).datamodule)
        batch = data.generated.train.batch(0, trainer.global_rank, trainer.world_size)
        batch = replace(batch, queries=batch.queries.to(module.device))
        size = data.generated.train.size
        self.per_step = {
            "flops": flops_per_step(module, batch) * size // len(batch.queries),  # shares differ if size is odd
            "queries": size,
            "tokens": size * batch.queries.inputs.shape[1],
        }
        peak = peak_flops(module.device)
        self._peak = None if peak is None else peak * trainer.world_size
        self._since = self._wall_since = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the training clock once the device has done its work, and count."""
        if self._since is None or self._wall_since is None:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self.wall_seconds += now - self._wall_since
        self._since = self._wall_since = now
        steps = trainer.global_step - self._step
        self._step = trainer.global_step
        self.flops += steps * self.per_step["flops"]
        self.queries += steps * self.per_step["queries"]
        self.tokens += steps * self.per_step["tokens"]

    def add_analysis(self, seconds: float) -> None:
        """Count a circuit analysis that has just ended: it is no training."""
        self.analysis_seconds += seconds
        if self._since is not None:
            self._since += seconds

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on; the evaluation counts as wall time only."""
        if self._wall_since is not None:
            now = time.perf_counter()
            self.wall_seconds += now - self._wall_since
            self._since = self._wall_since = now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clocks stop with the last evaluation."""
        self._since = self._wall_since = None

    def summary(self) -> dict[str, Any]:
        """Contribution to `summary.json`."""
        per_second = 1 / self.train_seconds if self.train_seconds else 0.0
        return {
            "wall_seconds": round(self.wall_seconds, 3),
            "train_seconds": round(self.train_seconds, 3),
            "analysis_seconds": round(self.analysis_seconds, 3),
            "flops": self.flops,
            "tokens": self.tokens,
            "queries": self.queries,
            "queries_per_second": round(self.queries * per_second, 1),
            "flops_per_second": self.flops * per_second,
            "mfu": None if self._peak is None else self.flops * per_second / self._peak,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: seconds up to now, counts up to `step`; what was done since is counted later."""
        now = time.perf_counter()
        return {
            "wall_seconds": self.wall_seconds + (0.0 if self._wall_since is None else now - self._wall_since),
            "train_seconds": self.train_seconds + (0.0 if self._since is None else now - self._since),
            "analysis_seconds": self.analysis_seconds,
            "flops": self.flops,
            "queries": self.queries,
            "tokens": self.tokens,
            "step": self._step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        for name, value in state_dict.items():
            setattr(self, "_step" if name == "step" else name, value)
