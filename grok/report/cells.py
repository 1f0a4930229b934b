"""The grids of circuit analyses, read back from a run's record."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grok.records import RunRecord

__all__ = ["Cells", "cells_of", "nearest", "story_grids", "title"]

_CELL = re.compile(r"(?P<grid>.+)/(?P<row>S\[\d+),(?P<column>[^\]/]+)\](?P<stream>(\.\w+)?)")  # lens/mrr/bridge/S[2,r1]
_NAMED = re.compile(r"(?P<grid>attention/[^/]+)/(?P<row>[^/]+)/(?P<column>.+)")  # attention/mass/2.head0/r1

_NAMES = {
    "lens/mrr": "MRR of the {} by logit lens",
    "lens/probability": "probability of the {} by logit lens",
    "lens/recall@1": "the {} is on top of the logit lens",
    "tracing/changed": "strength: share of answers changed",
    "tracing/rank": "strength: share of answers no longer right",
    "tracing/flipped": "share of answers that become the counterfactual's",
    "semantic/success": "answers that follow the source's bridge",
    "immediate/recall@1": "immediate probing of the {}",
    "full_run/recall@1": "full-run probing of the {}",
    "probes/accuracy": "held-out accuracy of a linear probe for the {}",
    "cosine/cohesion": "ID cohesion (cosine)",
    "cosine/alignment": "OOD alignment (cosine)",
    "attention/mass": "attention from the answer position",
}


def title(grid: str) -> str:
    """What a grid shows, in the papers' words."""
    kind, _, rest = grid.partition("/")
    measure, _, column = rest.partition("/")
    told, named = _NAMES.get(f"{kind}/{measure}", f"{kind}/{measure}"), column.replace("_", " ")
    return told.format(named) if "{}" in told or not column else f"{told} ({named})"


@dataclass(frozen=True)
class Cells:
    """The cells of one grid on one split at every analysed step, from a run's record."""

    grid: str
    split: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[tuple[int, str, str], Mapping[str, Any]]

    @property
    def steps(self) -> list[int]:
        """Analysed steps, ascending."""
        return sorted({step for step, _, _ in self.values})

    def told(self, column: str) -> list[int]:
        """Analysed steps at which some cell of a column has a value, ascending."""
        return sorted({step for step, _, place in self.values if place == column})

    @property
    def story_column(self) -> str:
        """The position that the story is about: r1, where a two-hop query has its bridge, or the last one."""
        return "r1" if "r1" in self.columns else self.columns[-1]

    def excess(self, step: int, row: str, column: str, floor: bool = True) -> float:
        """Value above its floor, or above 0 if `floor` is False or none is known."""
        cell = self.values.get((step, row, column))
        return -math.inf if cell is None else _number(cell["value"]) - (cell["floor"] or 0.0) * floor

    def curve(self, row: str, column: str, key: str = "value") -> tuple[list[int], list[float]]:
        """Steps and values of one cell."""
        found = [
            (step, self.values[step, row, column][key]) for step in self.steps if (step, row, column) in self.values
        ]
        found = [(step, value) for step, value in found if value is not None]
        return [step for step, _ in found], [value for _, value in found]

    def table(self, step: int, key: str = "value") -> list[list[float]]:
        """Values at one step, `[row][column]`; NaN where there is none."""
        return [
            [_number(self.values.get((step, row, column), {}).get(key)) for column in self.columns] for row in self.rows
        ]


def nearest(steps: Sequence[int], step: int | None) -> int:
    """The analysed step nearest to `step`, the first one if that is None."""
    return steps[0] if step is None else min(steps, key=lambda one: abs(one - step))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def cells_of(record: RunRecord) -> list[Cells]:
    """Every grid in the record, in the order of first appearance."""
    found: dict[tuple[str, str], dict[tuple[int, str, str], Mapping[str, Any]]] = {}
    for line in record.rows():
        match = _CELL.fullmatch(line["name"]) or _NAMED.fullmatch(line["name"])
        if match and line["split"] is not None:
            row = f"{match['row']}]{match['stream']}" if match.re is _CELL else match["row"]
            found.setdefault((match["grid"], line["split"]), {})[line["step"], row, match["column"]] = line
    return [
        Cells(
            grid=grid,
            split=split,
            rows=tuple(dict.fromkeys(row for _, row, _ in values)),
            columns=tuple(dict.fromkeys(column for _, _, column in values)),
            values=values,
        )
        for (grid, split), values in found.items()
    ]  # fmt: skip


def story_grids(grids: Iterable[Cells]) -> list[Cells]:
    """The grids of the story, a pair per split: the bridge (or else the answer) by lens, then the strength."""
    order = ("lens/mrr/bridge", "lens/mrr/answer")
    chosen: dict[tuple[str, str], Cells] = {}
    for cells in sorted(grids, key=lambda cells: order.index(cells.grid) if cells.grid in order else len(order)):
        kind = "lens" if cells.grid in order else cells.grid.partition("/")[0]
        if kind == "tracing" or cells.grid in order:
            chosen.setdefault((cells.split, kind), cells)
    return [chosen[key] for key in sorted(chosen)]
