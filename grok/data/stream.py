"""Training batches as a pure function of the step, so that any step can be made again, on any device and rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from grok.data.keyed import keyed_permutation
from grok.data.split import Split

__all__ = ["Batch", "FreshStream", "Stream", "TableStream"]


@dataclass(frozen=True)
class Batch:
    """One rank's share of the batch of one optimizer step.

    Args:
        queries: the queries of this rank.
        supervised: number of supervised slots of the *global* batch, by which a summed loss is divided, so that any
            number of ranks with any shares gives the same mean.
        size: number of queries of the global batch; None means that `queries` are all.
    """

    queries: Split
    supervised: int | Tensor
    size: int | None = None


class Stream(ABC):
    """What training reads. `size` queries make a global batch; `rows` is the size of the table, None if endless."""

    size: int
    rows: int | None = None

    @abstractmethod
    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches of optimizer steps `start … stop - 1`: rank `rank` of `world` takes every `world`-th query."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Stream:
        """The same stream with its data on `device`."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of one optimizer step."""
        return next(self.batches(step, step + 1, rank, world))


class TableStream(Stream):
    """A finite table read in a new keyed order each epoch; an epoch's last batch is completed from the next epoch.

    Args:
        table: all training queries; ground truth is dropped.
        size: queries per global batch.
        seed: selects the order.
    """

    def __init__(self, table: Split, size: int, seed: int) -> None:
        self.table, self.size, self.seed = table.without_truth(), size, seed
        self.rows = len(table)
        self._all_supervised = bool(table.mask.all())

    def order(self, start: int, stop: int) -> Tensor:
        """Table rows of steps `start … stop - 1`: `[step, query]`, on the table's device."""
        place = torch.arange(start * self.size, stop * self.size, device=self.table.inputs.device)
        rows = len(self.table)
        first, last = start * self.size // rows, (stop * self.size - 1) // rows
        epochs = torch.arange(first, last + 1, device=place.device)
        order = keyed_permutation(place % rows, rows, "order", self.seed, epochs, which=place // rows - first)
        return order.view(stop - start, self.size)

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """See `Stream.batches`."""
        slots = self.size * self.table.mask.shape[1]
        for rows in self.order(start, stop):
            supervised = slots if self._all_supervised else self.table.mask[rows].sum()
            yield Batch(self.table.take(rows if world == 1 else rows[rank::world]), supervised, self.size)

    def to(self, device: torch.device | str) -> TableStream:
        """See `Stream.to`."""
        return TableStream(self.table.to(device), self.size, self.seed)


class FreshStream(Stream):
    """Queries made anew at each step and never seen again.

    Args:
        make: the global batch of a step, a pure function of the step. See `grok.data.keyed`, and
            `keyed_generator` there for what torch draws.
        size: queries per global batch.
        device: where `make` puts them if that is not where they are wanted.
    """

    def __init__(self, make: Callable[[int], Split], size: int, device: torch.device | str | None = None) -> None:
        self.make, self.size, self.device = make, size, device

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """See `Stream.batches`."""
        for step in range(start, stop):
            with _drawing_in_float32():
                queries = self.make(step)
            if self.device is not None:
                queries = queries.to(self.device)
            yield Batch(queries.take(slice(rank, None, world)), queries.mask.sum(), len(queries))

    def to(self, device: torch.device | str) -> FreshStream:
        """See `Stream.to`."""
        return FreshStream(self.make, self.size, device)


@contextmanager
def _drawing_in_float32() -> Iterator[None]:
    """A training step sets torch's default to the precision of the trainer, in which other numbers would be drawn."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)
