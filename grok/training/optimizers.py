"""Which weights decay, and how they are updated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from grok.errors import Problem, insist

__all__ = ["AdamAtan2", "GrokfastAdamW", "MuonAdamW", "parameter_groups"]


def parameter_groups(
    net: nn.Module, decay: Literal["matrices", "all"], own: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups: `matrices` (embeddings included) decay, biases and norm gains do not; or `all` decay.

    The rule of GPT-2 and of Wang et al. 2024 is `matrices`; He et al. 2026 decay everything. Weights named in `own`, or
    in a module named there, form groups of their own with these options of the optimizer. Every weight comes with its
    name, which torch keeps as `param_names` of the group.

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
        groups.append({"params": [(name, named.pop(name)) for name in chosen], **settings})
    rest = list(named.items())
    if decay == "all":
        common: list[dict[str, Any]] = [{"params": rest}]
    else:
        common = [
            {"params": [(name, weight) for name, weight in rest if weight.ndim >= 2]},
            {"params": [(name, weight) for name, weight in rest if weight.ndim < 2], "weight_decay": 0.0},
        ]
    return [group for group in common if group["params"]] + groups


def _called(closure: Callable[[], Any] | None) -> Any:
    """What a closure given to `Optimizer.step` gives, which computes gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


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
        loss = _called(closure)
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


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024; torch's own) for matrices of the blocks, AdamW for embeddings, read-out and vectors.

    Muon's updates are scaled to the size of Adam's (Liu et al. 2025, arXiv 2502.16982), so that one rate and one decay
    serve both.

    Args:
        params: groups of named weights, as `parameter_groups` gives them.
        lr: learning rate.
        betas: of AdamW.
        weight_decay: share of the weights, times `lr`, taken away at each step.
        momentum: of Muon.
        hidden: matrices whose name starts so are updated by Muon.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        hidden: str = "blocks.",
    ) -> None:
        insist(self.check(lr, betas, weight_decay, momentum))
        self.hidden = hidden
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum": momentum})
        self._parts: list[tuple[bool, Optimizer]] = []
        for muon in (True, False):
            if groups := [group for group in self.param_groups if group["muon"] is muon]:
                part = Muon(groups, adjust_lr_fn="match_rms_adamw") if muon else AdamW(groups)
                self._parts.append((muon, part))

    @staticmethod
    def check(
        lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1, momentum: float = 0.95
    ) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = AdamAtan2.check(lr, betas, weight_decay)
        return problems + ([] if 0 <= momentum < 1 else [Problem("momentum", momentum, "use a share in [0, 1)")])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Part a group into what Muon and what AdamW updates.

        Raises:
            ValueError: if the weights have no names.
        """
        named = list(param_group["params"])
        if not all(isinstance(one, tuple) for one in named):
            raise ValueError("MuonAdamW needs named weights, as grok.training.parameter_groups gives them")
        for muon in (True, False):
            if chosen := [(name, p) for name, p in named if (p.ndim == 2 and name.startswith(self.hidden)) is muon]:
                super().add_param_group({**param_group, "params": chosen, "muon": muon})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all weights that have a gradient; gives what `closure`, called first, gives."""
        loss = _called(closure)
        for muon, part in self._parts:  # loading a checkpoint gives this optimizer new groups and states
            part.param_groups = [group for group in self.param_groups if group["muon"] is muon]
            part.state = self.state
            part.step()
        return loss


class GrokfastAdamW(AdamW):
    """AdamW on gradients whose slow part is amplified, g + λ · (moving average of g).

    Lee et al. 2024, "Grokfast" (arXiv 2405.20233), by an exponential moving average.

    Args:
        params: weights, or groups of them.
        lr: learning rate.
        betas: of AdamW.
        weight_decay: share of the weights, times `lr`, taken away at each step.
        alpha: decay of the moving average, which starts as the first gradient.
        lamb: λ.
        fused: torch's fused AdamW.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        alpha: float = 0.98,
        lamb: float = 2.0,
        fused: bool = False,
    ) -> None:
        insist(self.check(alpha, lamb))
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        self.alpha, self.lamb = alpha, lamb
        self._step_supports_amp_scaling = False  # the average must be of gradients in their own scale

    @staticmethod
    def check(alpha: float = 0.98, lamb: float = 2.0) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = [] if 0 <= alpha < 1 else [Problem("alpha", alpha, "use a share in [0, 1)")]
        return problems + ([] if lamb >= 0 else [Problem("lamb", lamb, "use 0 or more")])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all weights that have a gradient; gives what `closure`, called first, gives."""
        loss = _called(closure)
        slow: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                kept = self.state[weight].get("slow") if weight in self.state else None
                slow[weight] = weight.grad.clone() if kept is None else kept.lerp_(weight.grad, 1 - self.alpha)
                weight.grad.add_(slow[weight], alpha=self.lamb)
        super().step()
        for weight, average in slow.items():  # after the first step, which makes the state if there is none
            self.state[weight]["slow"] = average
        return loss
