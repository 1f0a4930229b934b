"""Blocks of optimizer steps: what one Lightning `training_step` works off.

A Lightning training step costs as much as a small model's own step; K optimizer steps inside one make it vanish. The
iterable has no length and no state: after a resume it starts from the trainer's step and yields the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from grok.data.split import Split
from grok.data.stream import Batch, Stream

__all__ = ["Block", "Blocks", "Piece", "Pieces"]


class Block:
    """The optimizer steps `start … stop - 1`; iterating makes their batches."""

    def __init__(self, stream: Stream, start: int, stop: int, rank: int = 0, world: int = 1) -> None:
        self.stream, self.start, self.stop, self.rank, self.world = stream, start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Batch]:
        return self.stream.batches(self.start, self.stop, self.rank, self.world)


class Blocks:
    """Blocks from step `start` to `stop`, each at most `length` steps and cut where something must happen.

    Args:
        stream: where batches come from, on the device that trains.
        start: the first optimizer step to do.
        stop: one past the last.
        length: K, optimizer steps per block.
        due: functions `step → next step at which a block must end` (schedules of callbacks).
        rank: this process among `world`.
        world: number of processes.
    """

    def __init__(
        self,
        stream: Stream,
        start: int,
        stop: int,
        length: int,
        due: Sequence[Callable[[int], int]] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.stream, self.start, self.stop, self.length = stream, start, stop, length
        self.due, self.rank, self.world = due, rank, world

    def __iter__(self) -> Iterator[Block]:
        step = self.start
        while step < self.stop:
            # On the grid of multiples of `length`, so that a run resumed inside a block joins the old grid again.
            grid = (step // self.length + 1) * self.length
            end = min(grid, self.stop, *(following(step) for following in self.due))
            yield Block(self.stream, step, end, self.rank, self.world)
            step = end


class Piece:
    """Consecutive queries of an evaluation split.

    A plain class around the split, as `Block` is: Lightning's `*-true` precisions refuse a frozen dataclass as a batch.
    """

    def __init__(self, queries: Split) -> None:
        self.queries = queries


class Pieces:
    """The data loader of an evaluation split: consecutive pieces, on the device where the split lies."""

    def __init__(self, split: Split, size: int, rank: int = 0, world: int = 1) -> None:
        self.split, self.size, self.rank, self.world = split, size, rank, world

    def __len__(self) -> int:
        largest_share = math.ceil(len(self.split) / self.world)
        return math.ceil(largest_share / self.size)

    def __iter__(self) -> Iterator[Piece]:
        return map(Piece, self.split.chunks(self.size, self.rank, self.world))
