"""Loop counts: what the same weights answer when they are run through more or fewer times than in training.

Shape legend: N query, L number of loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.data.split import Split
from grok.models import StepModel

__all__ = ["LOOPS", "LoopCounts", "loop_counts"]

LOOPS = (1, 2, 4, 8)
"""Numbers of loops of "Loop, Think & Generalize" (arXiv 2604.07822)."""


@dataclass(frozen=True)
class LoopCounts:
    """Which queries are answered right with each number of loops.

    Args:
        loops: numbers of loops, ascending.
        trained: the number that the model itself has.
        right: `[N, L]` bool, whether every slot of the query is right.
    """

    loops: tuple[int, ...]
    trained: int
    right: Tensor

    def grid(self, floor: float | None = None) -> Grid:
        """Accuracy by number of loops; `floor` is what chance gives."""
        chance = None if floor is None else torch.full((1, len(self.loops)), floor)
        return Grid.of("loops/accuracy", {"loops": tuple(map(str, self.loops))}, self.right.float(), chance)


def loop_counts(model: StepModel, split: Split, loops: Sequence[int] | None = None, batch: int = 1024) -> LoopCounts:
    """Answer every query with each number of loops; the model's own number is always among them.

    Args:
        model: one that has loops, see `StepModel.with_loops`.
        split: queries with token answers.
        loops: numbers of loops; None means 1, 2, 4 and 8.
        batch: most queries of one forward pass.

    Raises:
        BadInput: if the model has no loops.
    """
    counts = LOOPS if loops is None else loops
    parts: list[Tensor] = []
    with analysing(model) as device:  # before anything is derived from it: a copy keeps the mode
        models = {count: model.with_loops(count) for count in counts}
        trained = cast(int, model.loops)
        models[trained] = model
        ascending = tuple(sorted(models))
        for piece in split.chunks(batch):
            here = piece.to(device)
            said = (models[n](here.inputs, at=here.at, position_ids=here.position_ids).argmax(-1) for n in ascending)
            right = [((answer == here.targets) | ~here.mask).all(1) for answer in said]
            parts.append(torch.stack(right, 1).cpu())
    return LoopCounts(ascending, trained, torch.cat(parts))
