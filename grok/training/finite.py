"""`Finite`: whether losses and gradients are finite, looked at once a block, so that no step waits for the device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.distributed
from torch import Tensor, nn

from grok.errors import NotFinite
from grok.training.sharding import whole

__all__ = ["Finite", "gradient_norm", "scaler_of"]

MOST_IN_A_ROW = 100
"""Updates left out one after the other before training stops: the weights themselves must be bad."""

SMALLEST_SCALE = 2.0**-24
"""A scaler that has come down to this has found no finite gradient in some forty steps."""

MOST_LINES = 10
"""Updates left out that are told one by one; all are counted."""


class _Found(NamedTuple):
    step: int  # counted from 1
    what: str
    value: float


def scaler_of(trainer: L.Trainer) -> Any:
    """What scales the loss under 16-mixed; None under other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def gradient_norm(net: nn.Module) -> Tensor:
    """Global norm of the gradient."""
    return whole(nn.utils.get_total_norm([one.grad for one in net.parameters() if one.grad is not None]))


class Finite:
    """Keeps the loss and the gradient's norm of every optimizer step of a block, and looks at all of them after it.

    Args:
        skip: look at each step before its update instead, leave out the update of a bad one, and count it.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip, self.skipped = skip, 0
        self.norm: Tensor | None = None
        """Norm of the gradient of the step under way; None under a scaler, which leaves out infinite ones itself."""
        self._seen: list[Tensor] = []
        self._lines: list[str] = []
        self.in_a_row = 0
        """Steps just before this one whose updates were left out."""

    def looks_at_gradients(self, trainer: L.Trainer) -> bool:
        """Whether `norm` is wanted: neither has it been looked at before the update, nor does a scaler do that."""
        return not self.skip and scaler_of(trainer) is None

    def note(self, loss: Tensor) -> None:
        """Keep what is known of a step that has been done."""
        self.in_a_row = 0
        if not self.skip:
            self._seen += [loss, loss if self.norm is None else self.norm.to(loss)]
        self.norm = None

    def insist(self, trainer: L.Trainer) -> None:
        """Look at the steps done since the last call; every process of a run calls this, and learns of a bad one.

        Raises:
            NotFinite: naming the first bad step.
        """
        for line in self._lines:  # here and not before: members of an ensemble have an output of their own
            trainer.lightning_module.print(line)
        values = torch.stack(self._seen).view(-1, 2) if self._seen else torch.zeros(0, 2)  # [step, loss and norm]
        self._seen, self._lines = [], []
        self._insist_on_scale(trainer)
        if self.skip:
            return
        bad = ~values.isfinite().all(1)
        if not _on_any(bool(bad.any()), trainer):
            return
        found = None
        if bool(bad.any()):
            first = int(bad.int().argmax())
            found = _told(trainer.global_step - len(values) + first + 1, *values[first].tolist())
        raise NotFinite(*_first(found, trainer))

    def leaves_out(self, loss: Tensor, net: nn.Module, trainer: L.Trainer) -> bool:
        """Whether the update of a step, whose backward pass has been done, is to be left out; waits for the device.

        Raises:
            NotFinite: if that has become the rule.
        """
        if not self.skip:
            return False
        values = float(loss), float(loss if scaler_of(trainer) else gradient_norm(net))
        bad = not torch.tensor(values).isfinite().all()
        if not _on_any(bad, trainer):
            return False
        found = _first(_told(trainer.global_step + 1, *values) if bad else None, trainer)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.skipped <= MOST_LINES:
            self._lines.append(f">>> {NotFinite(*found)}: no update ({self.skipped} so far)")
        if self.in_a_row > MOST_IN_A_ROW:
            raise NotFinite(*found, f", as in each of the {MOST_IN_A_ROW} steps before it")
        return True

    def _insist_on_scale(self, trainer: L.Trainer) -> None:
        """A scaler leaves out infinite gradients and halves its scale; if all are, nothing is learnt any more."""
        scaler = scaler_of(trainer)
        if scaler is not None and scaler.get_scale() < SMALLEST_SCALE:
            raise NotFinite(trainer.global_step, "gradient", math.nan, ", as before it: the scaler left out every one")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def _first(found: _Found | None, trainer: L.Trainer) -> _Found:
    """The first bad step that any process has found; all call this."""
    every: list[_Found | None] = [found] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(every, found)
    return min(one for one in every if one is not None)


def _on_any(bad: bool, trainer: L.Trainer) -> bool:
    return trainer.strategy.reduce_boolean_decision(bad, all=False) if trainer.world_size > 1 else bad


def _told(step: int, loss: float, norm: float) -> _Found:
    if torch.tensor(loss).isfinite() and not torch.tensor(norm).isfinite():
        return _Found(step, "norm of the gradient", norm)
    return _Found(step, "loss", loss)
