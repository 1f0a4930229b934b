"""The grids of circuit analyses, read back from a run's record."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grok.records import RunRecord

__all__ = ["Cells", "cells_in", "cells_of", "evenly", "nearest", "story_grids", "title"]

_CELL = re.compile(r"(?P<grid>.+)/(?P<row>S\[\d+),(?P<column>[^\]/]+)\](?P<stream>(\.\w+)?)")  # lens/mrr/bridge/S[2,r1]
_NAMED = re.compile(r"(?P<grid>attention/[^/]+)/(?P<row>[^/]+)/(?P<column>.+)")  # attention/mass/2.head0/r1

_NAMES = {
    "lens/mrr": "MRR of the {} by logit lens",
    "lens/probability": "probability of the {} by logit lens",
    "lens/recall@1": "the {} is on top of the logit lens",
    "lens/recall@3": "share of the {} among the top 3 by logit lens",
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

_STORY = {
    "lens/mrr/bridge": "r1",
    "lens/mrr/bridge[0]": "r1",
    "lens/mrr/bridge[1]": "r2",
    "lens/mrr/v1": "e1",
    "lens/mrr/v2": "e2",
    "lens/recall@3/labels": "a",
}
"""Grids of ground truth that no query shows, and the position where the papers find it."""

_DECISIVE = (("r1",), ("e1", "a"))
"""Positions whose strength the papers follow, of two-hop queries and of comparisons."""


def title(grid: str) -> str:
    """What a grid shows, in the papers' words."""
    kind, _, rest = grid.partition("/")
    measure, _, column = rest.partition("/")
    named = {"v1": "first value", "v2": "second value"}.get(column, column.replace("_", " "))
    told = _NAMES.get(f"{kind}/{measure}", f"{kind}/{measure}")
    return told.format(named) if "{}" in told or not column else f"{told} ({named})"


@dataclass(frozen=True)
class Cells:
    """The cells of one grid on one split at every analysed step, from a run's record; `place` is the position that the
    story is about, if it is not the usual one.
    """

    grid: str
    split: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[tuple[int, str, str], Mapping[str, Any]]
    place: str = ""

    @property
    def steps(self) -> list[int]:
        """Analysed steps, ascending."""
        return sorted({step for step, _, _ in self.values})

    def told(self, column: str) -> list[int]:
        """Analysed steps at which some cell of a column has a value, ascending."""
        return sorted({step for step, _, place in self.values if place == column})

    @property
    def story_column(self) -> str:
        """The position that the story is about: by default r1, where a two-hop query has its bridge, or the last."""
        usual = "r1" if "r1" in self.columns else self.columns[-1]
        return self.place if self.place in self.columns else usual

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


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the ascending steps, the first and the last among them, evenly spread over their number."""
    if len(steps) <= most:
        return list(steps)
    return sorted({steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)})


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def cells_of(record: RunRecord) -> list[Cells]:
    """Every grid in the record, see `cells_in`."""
    return cells_in(record.rows())


def cells_in(rows: Iterable[Mapping[str, Any]]) -> list[Cells]:
    """Every grid in the lines of a record, in the order of first appearance."""
    found: dict[tuple[str, str], dict[tuple[int, str, str], Mapping[str, Any]]] = {}
    for line in rows:
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
    """The grids of the story of each split, each with its `place`: hidden ground truth by lens (the bridge, the values
    and labels of a comparison, or else the answer), then the strength.
    """
    grids, found = list(grids), list[Cells]()
    for split in sorted({cells.split for cells in grids}):
        here = {cells.grid: cells for cells in grids if cells.split == split}
        hidden = [replace(here[grid], place=_place(here[grid])) for grid in _STORY if grid in here]
        found += hidden or [here[grid] for grid in ("lens/mrr/answer",) if grid in here]
        for strength in [cells for grid, cells in here.items() if grid.startswith("tracing/")][:1]:
            places = next((one for one in _DECISIVE if set(one) <= set(strength.columns)), ("",))
            found += [replace(strength, place=place) for place in places]
    return found


def _place(cells: Cells) -> str:
    """Where the papers find the ground truth of a grid; both tokens of the one bridge of a two-hop query are in r1."""
    place = _STORY[cells.grid]
    return "r1" if place == "r2" and "r3" not in cells.columns else place
