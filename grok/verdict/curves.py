"""Curves over optimizer steps: when they cross a level, what they are worth above chance, how seeds spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grok.records import crossing

__all__ = ["Curve", "Spread", "band", "curves_of"]


@dataclass(frozen=True)
class Curve:
    """One quantity at the steps at which it was measured, ascending.

    Args:
        steps: optimizer steps.
        values: one for each step.
        floors: what chance gives at each step; 0 where none is known.
        n: queries of one measurement.
    """

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    floors: tuple[float, ...] = ()
    n: int = 0

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def last(self) -> float:
        """The last value; NaN if there is none."""
        return self.values[-1] if self.values else math.nan

    @property
    def final(self) -> float:
        """The median of the last five values: at a constant learning rate a single one may be an outlier."""
        return statistics.median(self.values[-5:]) if self.values else math.nan

    @property
    def highest(self) -> float:
        """The largest value; NaN if there is none."""
        return max(self.values, default=math.nan)

    def corrected(self) -> Curve:
        """Chance taken away, (value - floor) / (1 - floor): 0 is luck, 1 is always; never below 0."""
        values = tuple(
            max(0.0, (value - floor) / (1 - floor)) if floor < 1 else math.nan
            for value, floor in zip(self.values, self.floors, strict=True)
        )
        return Curve(self.steps, values, (0.0,) * len(values), self.n)

    def above_floor(self) -> Curve:
        """Value minus floor: of a strength, which is no share of what chance leaves."""
        values = tuple(value - floor for value, floor in zip(self.values, self.floors, strict=True))
        return Curve(self.steps, values, (0.0,) * len(values), self.n)

    def first(self, level: float) -> int | None:
        """The first step at which the value is at least `level`."""
        index = crossing(self.values, level)
        return None if index is None else self.steps[index]

    def sustained(self, level: float, window: int = 5) -> int | None:
        """The first step from which the median of `window` values is at least `level`, too."""
        index = crossing(self.values, level, window)
        return None if index is None else self.steps[index]

    def at(self, step: int | None) -> float:
        """The value at the measurement nearest to `step`; NaN if none is within a quarter of it."""
        if step is None or not self.steps:
            return math.nan
        nearest = min(range(len(self.steps)), key=lambda index: abs(self.steps[index] - step))
        return self.values[nearest] if abs(self.steps[nearest] - step) <= step / 4 else math.nan


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Curve]:
    """Curves by name and split, from the lines of a run's record."""
    points: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["split"] is not None and row["value"] is not None:
            points.setdefault((row["name"], row["split"]), {})[row["step"]] = row
    curves = {}
    for key, found in points.items():
        ordered = [found[step] for step in sorted(found)]
        curves[key] = Curve(
            tuple(row["step"] for row in ordered),
            tuple(float(row["value"]) for row in ordered),
            tuple(float(row.get("floor") or 0.0) for row in ordered),
            max(int(row.get("n") or 0) for row in ordered),
        )
    return curves


@dataclass(frozen=True)
class Spread:
    """A number over seeds; a seed without one (a level that was never reached) is None."""

    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """The numbers that there are."""
        return [value for value in self.values if value is not None and not math.isnan(value)]

    @property
    def median(self) -> float:
        """The median of the numbers that there are; NaN if there is none."""
        return statistics.median(self.known) if self.known else math.nan

    def told(self, spell: Callable[[float], str]) -> str:
        """`median (smallest–largest)`, with the share of seeds that have a number where not all do; `–` for none."""
        known = self.known
        if not known:
            return "–"
        text, low, high = spell(self.median), spell(min(known)), spell(max(known))
        text += f" ({low}–{high})" if low != high else ""
        return text if len(known) == len(self.values) else f"{text} in {len(known)} of {len(self.values)}"


def band(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that all curves have, and median, smallest and largest value at each."""
    steps = sorted(set.intersection(*(set(curve.steps) for curve in curves))) if curves else []
    columns = [[dict(zip(curve.steps, curve.values, strict=True))[step] for curve in curves] for step in steps]
    return (
        steps,
        [statistics.median(column) for column in columns],
        [min(column) for column in columns],
        [max(column) for column in columns],
    )
