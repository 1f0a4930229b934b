"""Which weights decay, how they are updated, and how the learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from grok.errors import Problem, insist

__all__ = ["AdamAtan2", "Warmup", "parameter_groups"]


def parameter_groups(
    net: nn.Module, decay: Literal["matrices", "all"], own: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups: `matrices` (embeddings included) decay, biases and norm gains do not; or `all` decay.

    The rule of GPT-2 and of Wang et al. 2024 is `matrices`; He et al. 2026 decay everything. Weights named in `own`, or
    in a module named there, form groups of their own with these options of the optimizer.

    Raises:
        BadInput: for a name that no weight has.
    """
    named = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    groups: list[dict[str, Any]] = []
    for key, options in (own or {}).items():
        chosen = [name for name in named if name == key or name.startswith(f"{key}.")]
        if not chosen:
            known = ", ".join(dict.fromkeys(name.split(".")[0] for name in named))
            insist([Problem("groups", key, f"no weight has this name, or it is in a group already; there are {known}")])
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        groups.append({"params": [named.pop(name) for name in chosen], **settings})
    parameters = list(named.values())
    if decay == "all":
        common: list[dict[str, Any]] = [{"params": parameters}]
    else:
        common = [
            {"params": [parameter for parameter in parameters if parameter.ndim >= 2]},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
        ]
    return [group for group in common if group["params"]] + groups


class AdamAtan2(Optimizer):
    """Adam-atan2 (Everett et al. 2024, arXiv 2407.05872): m / (√v + ε) becomes atan2(m, √v); weight decay as in AdamW.

    The step is bounded and does not depend on the scale of the gradient, and there is no ε. The runs of He et al. 2026
    name this optimizer but used AdamW: their repository has a module of this name that falls back on it.

    Args:
        params: weights, or groups of them.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        weight_decay: share of the weights, times `lr`, taken away at each step.
        scale: factor of atan2; with 4/π a gradient that stays the same makes steps of size `lr`, as in Adam.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        scale: float = 4 / math.pi,
    ) -> None:
        insist(self.check(lr, betas, weight_decay, scale))
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "scale": scale})

    @staticmethod
    def check(
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        scale: float = 4 / math.pi,
    ) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        sizes = {"lr": lr, "weight_decay": weight_decay, "scale": scale}
        problems = [Problem(name, size, "use 0 or more") for name, size in sizes.items() if size < 0]
        if not all(0 <= beta < 1 for beta in betas):
            problems.append(Problem("betas", betas, "use two shares in [0, 1)"))
        return problems

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all weights that have a gradient; gives what `closure`, called first, gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        first, second = group["betas"]
        mean = state["mean"].lerp_(gradient, 1 - first) / (1 - first ** state["step"])
        square = state["square"].lerp_(gradient.square(), 1 - second) / (1 - second ** state["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(torch.atan2(mean, square.sqrt()), alpha=group["lr"] * group["scale"])


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
