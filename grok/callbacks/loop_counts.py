"""`LoopCounts`: what the weights answer with other numbers of loops, while a model trains or on its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from grok.callbacks.circuit import Analysis, CircuitCallback
from grok.circuits.loops import LOOPS, loop_counts
from grok.data import RegimeDataModule, Split
from grok.errors import Problem, insist
from grok.models import StepModel

__all__ = ["LoopCounts"]

_MOST = 256


class LoopCounts(CircuitCallback):
    """Accuracy with other numbers of loops of the same weights, see `grok.circuits.loop_counts`.

    `splits` null means the first two held-out splits (of two-hop queries ID and OOD); `examples` null means 3,000, or
    all if fewer. The model's own number of loops is always measured beside `counts`.

    Args:
        counts: numbers of loops.
        options: see `CircuitCallback`.
    """

    kind = "loops"

    def __init__(self, counts: Sequence[int] = LOOPS, **options: Any) -> None:
        super().__init__(**options)
        insist(self.check(counts=counts))
        self.counts = counts

    @staticmethod
    def check(**options: Any) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        counts = options.get("counts", LOOPS)
        wrong = not counts or any(not 1 <= count <= _MOST for count in counts)
        fix = f"use numbers of loops from 1 to {_MOST}, such as {list(LOOPS)}"
        return CircuitCallback.check(**options) + ([Problem("counts", list(counts), fix)] if wrong else [])

    def usual_splits(self, data: RegimeDataModule) -> Sequence[str]:
        """In and out of distribution, where there are both."""
        return [name for name in data.held_out_splits if name in data.splits][:2]

    def usual_examples(self, split: Split) -> int | None:
        """Nearly all: only answers are counted."""
        return min(3000, len(split))

    def validate(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> None:
        """See `CircuitCallback.validate`."""
        if model.loops is None:
            fix = f"{type(model).__name__} has no loops whose number could be changed: use false"
            insist([Problem("enabled", True, fix)])

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        found = loop_counts(model, split, self.counts, self.batch)
        tensors = {"right": found.right, "counts": torch.tensor(found.loops), "trained": torch.tensor(found.trained)}
        return Analysis([found.grid(data.floor(name))], tensors)
