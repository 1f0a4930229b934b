"""Which weights decay, and how the learning rate goes."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from grok.errors import Problem, insist

__all__ = ["Warmup", "parameter_groups"]


def parameter_groups(net: nn.Module, decay: Literal["matrices", "all"]) -> list[dict[str, Any]]:
    """Optimizer groups: `matrices` (embeddings included) decay, biases and norm gains do not; or `all` decay.

    The rule of GPT-2 and of Wang et al. 2024 is `matrices`; He et al. 2026 decay everything.
    """
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if decay == "all":
        return [{"params": parameters}]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2]},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Warmup(LambdaLR):
    """Linear warm-up, then constant; then, if asked, a linear decay to zero.

    Args:
        optimizer: whose learning rate is scheduled.
        warmup: updates until the full rate; update u < `warmup` has u / `warmup` of it.
        decay_from: update after which the rate falls; None keeps it.
        decay_to: update at which it has reached zero; None means the trainer's `max_steps`.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: int = 2000, decay_from: int | None = None, decay_to: int | None = None
    ) -> None:
        insist(self.check(warmup, decay_from, decay_to))
        self.warmup, self.decay_from, self.decay_to = warmup, decay_from, decay_to
        super().__init__(optimizer, self.factor)

    @staticmethod
    def check(warmup: int = 2000, decay_from: int | None = None, decay_to: int | None = None) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = []
        if warmup < 0:
            problems.append(Problem("warmup", warmup, "use 0 or more updates"))
        if decay_to is not None and decay_from is None:
            problems.append(Problem("decay_to", decay_to, "set decay_from too"))
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
        if self.decay_to is None:
            raise RuntimeError("decay_to is unknown: set it, or train through GrokModule, which takes max_steps")
        return warm * max(0.0, 1 - (update - self.decay_from) / max(1, self.decay_to - self.decay_from))
