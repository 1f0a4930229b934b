"""`Grid`: a statistic per cell, each with a 95 % interval over examples, a floor and its number of examples.

Shape legend: N example, `…` cells (the axes of the grid).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from grok.records import wilson

__all__ = ["Grid", "bootstrap", "group_means"]

RESAMPLES = 1000
_CELLS = 4096  # resampled at a time: some 30 MB each of means, and their quantiles


def bootstrap(
    values: Tensor,
    floor: Tensor | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """95 % interval of the mean of each cell: percentile bootstrap over examples (Efron 1979).

    Examples are treated as independent. Queries that share h and r1 share states, so that the interval is somewhat too
    narrow where a split has several of a kind; averaged by group first (`group_means`) they do not count as several.
    Where all examples have the same value the interval has no width, however few they are: see `Grid` for shares.

    Args:
        values: `[N, …]` one value per example and cell; NaN where an example has none.
        floor: `[N, …]` the same examples' floor: the interval is then of the difference of the two means.
        seed: fixes the resamples, the same for every cell.
        resamples: number of resamples.
        base: `[N, …]` the same examples' base: the interval is then of the mean (or difference) divided by the mean of
            the base, all resampled together.

    Returns:
        `low` and `high` `[…]`; NaN where no example has a value. Memory is bounded for any number of cells.
    """
    sides = [None if one is None else one.expand_as(values).flatten(1) for one in (values, floor, base)]
    ends = []
    for first in range(0, values[0].numel() if len(values) else 0, _CELLS):
        part = slice(first, first + _CELLS)
        of, less, over = (None if one is None else _resampled_means(one[:, part], seed, resamples) for one in sides)
        assert of is not None
        means = of if less is None else of - less
        if over is not None:
            means = means / over.masked_fill(over == 0, torch.nan)
        ends.append(torch.nanquantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).float())
    low, high = torch.cat(ends, 1) if ends else torch.full((2, values.shape[1:].numel()), torch.nan)
    return low.view(values.shape[1:]), high.view(values.shape[1:])


def _resampled_means(values: Tensor, seed: int, resamples: int) -> Tensor:
    """`[R, cells]` of `[N, cells]`; NaN where no example of a resample has a value."""
    flat = values.double().cpu()
    times, known = _times_drawn(len(flat), seed, resamples), ~flat.isnan()
    return (times @ flat.nan_to_num()) / (len(flat) if known.all() else times @ known.double())


@lru_cache(maxsize=4)  # the same examples are resampled for every grid of every checkpoint
def _times_drawn(n: int, seed: int, resamples: int) -> Tensor:
    """How often each of `n` examples is drawn in each resample: `[R, n]` float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    times = torch.zeros(resamples, n, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def group_means(values: Tensor, groups: Tensor) -> Tensor:
    """Mean over the examples of each group, those without a value (NaN) aside: `[N, …]` and `[N]` to `[G, …]`.

    The groups, in ascending order, can then stand for examples in a `Grid`, whose interval is the bootstrap over them.
    """
    names, member = torch.unique(groups.cpu(), return_inverse=True)
    known = ~values.isnan()
    sums, counts = (
        torch.zeros(len(names), *values.shape[1:], dtype=values.dtype).index_add_(0, member, one.to(values.dtype))
        for one in (values.nan_to_num(), known)
    )
    return sums / counts


def _interval(values: Tensor, seed: int, base: Tensor | None) -> tuple[Tensor, Tensor]:
    """`low` and `high` `[…]` of the means of `[N, …]`: see `Grid`; with a base always the bootstrap."""
    if base is not None:
        return bootstrap(values, seed=seed, base=base)
    flat = values.flatten(1)
    known = ~flat.isnan()
    shares = ((flat == 0) | (flat == 1) | ~known).all(0) & known.any(0)
    ends = torch.empty(2, len(shares))
    ends[:, ~shares] = torch.stack(bootstrap(flat[:, ~shares], seed=seed))
    means, n = flat[:, shares].nanmean(0), known[:, shares].sum(0)
    found = [wilson(*cell) for cell in zip(means.tolist(), n.tolist(), strict=True)]
    low, high = torch.tensor(found).view(-1, 2).T
    # Rounding must not put an end on the wrong side of a share of 0 or 1.
    ends[:, shares] = torch.stack([torch.minimum(low, means), torch.maximum(high, means)])
    return ends[0].view(values.shape[1:]), ends[1].view(values.shape[1:])


@dataclass(frozen=True)
class Grid:
    """Means over examples, one per cell, with intervals that treat examples as independent.

    The interval of a cell whose values are all 0 or 1 is that of Wilson (1927) for a share: honest for few examples,
    and with a width where all of them agree. Other cells have the percentile bootstrap (`bootstrap`). Neither knows
    that queries with the same h and r1 share states and so are worth less than as many independent ones.

    Args:
        name: what is measured, as it appears in records and plots (`lens/mrr/bridge`).
        axes: labels of each axis, in order: `{"step": ("S[0]", …), "position": ("h", "r1", "r2")}`.
        values: `[…]` means; NaN where there is no example.
        low: `[…]` lower end of the 95 % interval.
        high: `[…]` upper end.
        floor: `[…]` what the statistic is without the effect (shuffled truth, a counterfactual that keeps the bridge);
            NaN where it is not known.
        n: `[…]` number of examples.
        above_floor: `[…]` bool, whether the 95 % interval of the difference from the floor lies above 0; False where
            the floor is not known. Of cells without an effect about one in 40 is above by chance, more where examples
            share states (queries with the same first fact); nothing is corrected for the number of cells.
    """

    name: str
    axes: Mapping[str, tuple[str, ...]]
    values: Tensor
    low: Tensor
    high: Tensor
    floor: Tensor
    n: Tensor
    above_floor: Tensor

    def __post_init__(self) -> None:
        shape = tuple(len(labels) for labels in self.axes.values())
        if self.values.shape != shape:
            raise ValueError(f"{self.name}: values of shape {tuple(self.values.shape)} for axes of lengths {shape}")

    @classmethod
    def of(
        cls,
        name: str,
        axes: Mapping[str, tuple[str, ...]],
        values: Tensor,
        floor: Tensor | None = None,
        seed: int = 0,
        base: Tensor | None = None,
    ) -> Grid:
        """The grid of per-example `values` `[N, …]`, with a `floor` `[M, …]` of per-example values too.

        NaN stands for an example that has no value in a cell. With a `base` `[N, …]` (or `[N, 1]`) the statistic is the
        ratio of the two means, NaN where that of the base is 0, and so is the floor; its interval is the bootstrap of
        numerator and denominator together. `above_floor` goes by the bootstrap of the difference, values and floor
        resampled together, or, where the floor has another number of examples, by the interval and the mean floor.
        """
        values = values.detach().float().cpu()
        floor, base = (None if one is None else one.detach().float().cpu() for one in (floor, base))
        unit = torch.ones(()) if base is None else base.nanmean(0)
        unit = unit.masked_fill(unit == 0, torch.nan)
        low, high = _interval(values, seed, base)
        above = torch.zeros_like(low, dtype=torch.bool)
        if floor is not None and len(floor) == len(values):
            above = bootstrap(values, floor, seed, base=base)[0] > 0
        elif floor is not None:
            above = low > floor.nanmean(0) / unit
        return cls(
            name=name,
            axes=axes,
            values=values.nanmean(0) / unit,
            low=low,
            high=high,
            floor=torch.full_like(low, torch.nan) if floor is None else floor.nanmean(0) / unit,
            n=(~values.isnan()).sum(0),
            above_floor=above,
        )

    @classmethod
    def by_number(cls, name: str, axis: str, values: Tensor, numbers: Tensor) -> Grid:
        """Mean of per-example `values` `[N]` over the examples of each of the `numbers` `[N]`; below 1 is no place."""
        values, numbers = values.detach().cpu(), numbers.cpu()
        shown = torch.unique(numbers[numbers > 0])
        columns = torch.where(numbers[:, None] == shown, values[:, None], torch.nan)
        return cls.of(name, {axis: tuple(map(str, shown.tolist()))}, columns)

    @classmethod
    def of_model(cls, name: str, axes: Mapping[str, tuple[str, ...]], values: Tensor) -> Grid:
        """The grid of statistics of the weights themselves, `values` `[…]`: no interval, no floor, and n = 1."""
        values = values.detach().float().cpu()
        unknown = torch.full_like(values, torch.nan)
        n, above = torch.ones_like(values, dtype=torch.int64), torch.zeros_like(values, dtype=torch.bool)
        return cls(name, axes, values, unknown, unknown, unknown, n, above)

    def __getitem__(self, labels: tuple[str, ...]) -> float:
        """The value of the cell named by one label per axis."""
        index = tuple(axis.index(label) for axis, label in zip(self.axes.values(), labels, strict=True))
        return float(self.values[index])

    def cells(self) -> Iterator[tuple[tuple[str, ...], dict[str, float | int | None]]]:
        """Labels of every cell and its `value, low, high, floor, n` as plain numbers; None for NaN."""
        labels = list(self.axes.values())
        for index in torch.cartesian_prod(*(torch.arange(len(axis)) for axis in labels)).view(-1, len(labels)).tolist():
            place = tuple(index)
            cell: dict[str, float | int | None] = {
                key: None if column[place].isnan() else float(column[place])
                for key, column in (
                    ("value", self.values), ("low", self.low), ("high", self.high), ("floor", self.floor)
                )
            }  # fmt: skip
            yield tuple(axis[i] for axis, i in zip(labels, place, strict=True)), {**cell, "n": int(self.n[place])}

    def __str__(self) -> str:
        """A table, first axis down, the last one across; with more than two axes, one line per cell."""
        if len(self.axes) != 2:
            lines = [
                f"{' '.join(labels):<32} {cell['value']:.3f}"
                for labels, cell in self.cells()
                if cell["value"] is not None
            ]
            return "\n".join([self.name, *lines])
        rows, columns = self.axes.values()
        width = max(7, *(len(label) + 1 for label in columns))
        head = f"{self.name} (n = {int(self.n.max())})\n{'':<10}" + "".join(f"{label:>{width}}" for label in columns)
        body = [
            f"{label:<10}" + "".join(f"{value:>{width}.2f}" for value in row)
            for label, row in zip(rows, self.values.tolist(), strict=True)
        ]
        return "\n".join([head, *body])
