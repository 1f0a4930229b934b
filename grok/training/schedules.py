"""How the learning rate and the weight decay go over a run."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from grok.errors import Problem, insist

__all__ = ["Warmup"]


class Warmup(LambdaLR):
    """Linear warm-up, then constant; then, if asked, a decay to zero.

    Args:
        optimizer: whose learning rate is scheduled.
        warmup: updates until the full rate; update u < `warmup` has u / `warmup` of it.
        decay_from: update after which the rate falls; None keeps it.
        decay_to: update at which it has reached zero; None means the trainer's `max_steps`.
        shape: of the decay: `linear`, or half a `cosine`.
        weight_decay: factors of the optimizer's weight decay at the first update and at `decay_to`, linear in between;
            None keeps it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int = 2000,
        decay_from: int | None = None,
        decay_to: int | None = None,
        shape: Literal["linear", "cosine"] = "linear",
        weight_decay: tuple[float, float] | None = None,
    ) -> None:
        insist(self.check(warmup, decay_from, decay_to, weight_decay))
        if weight_decay is not None and "weight_decay" not in optimizer.defaults:
            fix = f"{type(optimizer).__name__} has no weight decay; use null"
            insist([Problem("weight_decay", weight_decay, fix)])
        self.warmup, self.decay_from, self.decay_to = warmup, decay_from, decay_to
        self.shape, self.weight_decay = shape, weight_decay
        super().__init__(optimizer, self.factor)

    @staticmethod
    def check(
        warmup: int = 2000,
        decay_from: int | None = None,
        decay_to: int | None = None,
        weight_decay: tuple[float, float] | None = None,
    ) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = []
        if decay_to is not None and decay_to < 1:
            problems.append(Problem("decay_to", decay_to, "use 1 or more updates"))
        if weight_decay is not None and min(weight_decay) < 0:
            problems.append(Problem("weight_decay", weight_decay, "use two factors, 0 or more"))
        if warmup < 0:
            problems.append(Problem("warmup", warmup, "use 0 or more updates"))
        if decay_to is not None and decay_from is None and weight_decay is None:
            problems.append(Problem("decay_to", decay_to, "set decay_from or weight_decay too"))
        if decay_from is not None and decay_from < warmup:
            problems.append(Problem("decay_from", decay_from, f"use at least warmup={warmup}"))
        if decay_from is not None and decay_to is not None and decay_to <= decay_from:
            problems.append(Problem("decay_to", decay_to, f"use more than decay_from={decay_from}"))
        return problems

    def factor(self, done: int) -> float:
        """Share of the full rate for the update after `done` updates."""
        update = done + 1
        warm = min(1.0, update / self.warmup) if self.warmup else 1.0
        if self.decay_from is None or update <= self.decay_from:
            return warm
        if self.decay_to is None and done == 0:  # when it is made
            return warm
        gone = (update - self.decay_from) / max(1, self._end() - self.decay_from)
        left = (1 + math.cos(math.pi * min(1.0, gone))) / 2 if self.shape == "cosine" else 1 - gone
        return warm * max(0.0, left)

    def step(self, epoch: int | None = None) -> None:
        """Set the rate, and the weight decay if it is scheduled, for the next update."""
        super().step(epoch)
        if self.weight_decay is None:
            return
        first, last = self.weight_decay
        done = self.last_epoch
        now = first if done == 0 else first + (last - first) * min(1.0, done / max(1, self._end() - 1))
        for group in self.optimizer.param_groups:
            group["weight_decay"] = group.setdefault("initial_weight_decay", group["weight_decay"]) * now

    def _end(self) -> int:
        if self.decay_to is None:
            raise RuntimeError("decay_to is unknown: set it, or train through GrokModule, which takes max_steps")
        return self.decay_to
