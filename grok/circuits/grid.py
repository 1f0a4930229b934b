"""`Grid`: a statistic per cell, each with a bootstrap interval over examples, a floor and its number of examples.

Shape legend: N example, `…` cells (the axes of the grid).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Grid", "bootstrap"]

RESAMPLES = 1000


def bootstrap(
    values: Tensor, floor: Tensor | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Tensor, Tensor]:
    """95 % interval of the mean of each cell: percentile bootstrap over examples (Efron 1979).

    Args:
        values: `[N, …]` one value per example and cell; NaN where an example has none.
        floor: `[N, …]` the same examples' floor: the interval is then of the difference of the two means.
        seed: fixes the resamples, the same for every cell.
        resamples: number of resamples.

    Returns:
        `low` and `high` `[…]`; NaN where no example has a value.
    """
    means = _resampled_means(values, seed, resamples)
    if floor is not None:
        means = means - _resampled_means(floor, seed, resamples)
    low, high = torch.nanquantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).float()
    return low.view(values.shape[1:]), high.view(values.shape[1:])


def _resampled_means(values: Tensor, seed: int, resamples: int) -> Tensor:
    """`[R, cells]`; NaN where no example of a resample has a value."""
    flat = values.flatten(1).double().cpu()
    times, known = _times_drawn(len(flat), seed, resamples), ~flat.isnan()
    return (times @ flat.nan_to_num()) / (times @ known.double())


@lru_cache(maxsize=4)  # the same examples are resampled for every grid of every checkpoint
def _times_drawn(n: int, seed: int, resamples: int) -> Tensor:
    """How often each of `n` examples is drawn in each resample: `[R, n]` float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    times = torch.zeros(resamples, n, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


@dataclass(frozen=True)
class Grid:
    """Means over examples, one per cell.

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
        cls, name: str, axes: Mapping[str, tuple[str, ...]], values: Tensor, floor: Tensor | None = None, seed: int = 0
    ) -> Grid:
        """The grid of per-example `values` `[N, …]`, with a `floor` `[M, …]` of per-example values too.

        NaN stands for an example that has no value in a cell.
        """
        values = values.detach().float().cpu()
        low, high = bootstrap(values, seed=seed)
        above = torch.zeros_like(low, dtype=torch.bool)
        if floor is not None:
            floor = floor.detach().float().cpu()
            above = low > floor.nanmean(0) if len(floor) != len(values) else bootstrap(values, floor, seed)[0] > 0
        return cls(
            name=name,
            axes=axes,
            values=values.nanmean(0),
            low=low,
            high=high,
            floor=torch.full_like(low, torch.nan) if floor is None else floor.nanmean(0),
            n=(~values.isnan()).sum(0),
            above_floor=above,
        )

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
