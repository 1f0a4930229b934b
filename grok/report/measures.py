"""Pictures of what a regime brings for the analysis: attention to groups of positions, and measures of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grok.records import RunRecord
from grok.report.cells import evenly
from grok.report.style import STYLES, band, finish_steps_axis, mark_milestones, new_figure, save, state_colours

__all__ = ["Curves", "curves_of", "group_curves", "measure_curves"]

_MOST_LINES = 7
_MOST_PANELS = 8
_DECADES = 2.0  # of a measure, from which on its axis is logarithmic
_MASS = "attention mass"  # whose axis goes from 0 to 1, however small some of it is
_WIDE = 20  # ratio of numbers along x, the same
_MOST_TICKS = 14

Curves = Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]]
"""Lines of the record by the labels of their cell, in order of steps."""


def curves_of(rows: Iterable[Mapping[str, Any]], kind: str) -> dict[tuple[str, str], Curves]:
    """Every grid `KIND/NAME` of the lines of a record, by its name and split."""
    found: dict[tuple[str, str], dict[tuple[str, ...], list[Mapping[str, Any]]]] = {}
    for row in rows:
        parts = row["name"].split("/")
        if parts[0] == kind and len(parts) > 2:
            found.setdefault((parts[1], row["split"]), {}).setdefault(tuple(parts[2:]), []).append(row)
    return {key: dict(cells) for key, cells in found.items()}


def group_curves(record: RunRecord, cells: Curves, split: str, path: Path) -> list[Path]:
    """Attention mass over log steps: one panel per group, one line per head, uniform attention dotted.

    Args:
        record: of the run.
        cells: the grid `groups/mass`, by head and group.
        split: the analysed split.
        path: where to write, without suffix.
    """
    by_group = {labels[::-1]: rows for labels, rows in cells.items()}
    return _over_steps(record, by_group, f"attention to groups of positions, {split}", _MASS, path)


def measure_curves(record: RunRecord, name: str, cells: Curves, split: str, path: Path) -> list[Path]:
    """A measure over log steps, a line per label of its last axis; or over these labels, where they are numbers.

    Args:
        record: of the run.
        name: of the measure.
        cells: its grid.
        split: the measured split.
        path: where to write, without suffix.
    """
    told, _, axis = name.replace("_", " ").partition(" by ")
    if all(_is_number(labels[-1]) for labels in cells) and len({labels[-1] for labels in cells}) > 1:
        return _over_numbers(cells, f"{name.replace('_', ' ')}, {split}", (axis, told), path)
    return _over_steps(record, cells, f"{name.replace('_', ' ')}, {split}", told, path)


def _panels(cells: Curves) -> dict[str, dict[str, Sequence[Mapping[str, Any]]]]:
    """Lines of each panel by their label; what has one axis only has one panel."""
    found: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for labels, rows in cells.items():
        found.setdefault(" ".join(labels[:-1]), {})[labels[-1]] = rows
    return found


def _over_steps(record: RunRecord, cells: Curves, heading: str, measure: str, path: Path) -> list[Path]:
    panels = _panels(cells)
    figure, table = _figure(len(panels))
    for axes, lines in zip(table, panels.values(), strict=False):
        for index, (label, rows) in enumerate(lines.items()):
            colour, dashes = STYLES[index % len(STYLES)]
            band(axes, [([row["step"] for row in rows], [row["value"] for row in rows])], colour, dashes, label)
            known = [row for row in rows if row["floor"] is not None]
            if known:
                band(axes, [([row["step"] for row in known], [row["floor"] for row in known])], colour, ":", None)
        finish_steps_axis(axes)
        mark_milestones(axes, record.summary() or {}, label=False)
    return _finish(figure, table, panels, heading, measure, path)


def _over_numbers(cells: Curves, heading: str, names: tuple[str, str], path: Path) -> list[Path]:
    axis, measure = names
    panels = _panels(cells)
    figure, table = _figure(len(panels))
    for axes, points in zip(table, panels.values(), strict=False):
        steps = sorted({row["step"] for rows in points.values() for row in rows})
        chosen = evenly(steps, _MOST_LINES)
        for step, colour in zip(chosen, state_colours(len(chosen)), strict=True):
            here = sorted((float(x), row) for x, rows in points.items() for row in rows if row["step"] == step)
            axes.plot(
                [x for x, _ in here], [row["value"] for _, row in here], "o-", color=colour, markersize=3,
                label=f"step {step:,}",
            )  # fmt: skip
        floors = [(x, row["floor"]) for x, row in here if row["floor"] is not None]
        if floors:
            axes.plot(*zip(*floors, strict=True), ":", color="#7F7F7F", linewidth=1.0, label="floor")
        places = [x for x, _ in here]
        if places[0] > 0 and places[-1] / places[0] > _WIDE:
            axes.set_xscale("log")
        elif len(places) <= _MOST_TICKS:
            axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.set_xlabel(axis)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return _finish(figure, table, panels, heading, measure, path)


def _figure(count: int) -> tuple[Any, list[Any]]:
    across = min(4, max(1, math.ceil(math.sqrt(min(count, _MOST_PANELS)))))
    down = math.ceil(min(count, _MOST_PANELS) / across)
    figure = new_figure(4.0 * across + 2.0, 3.0 * down + 0.6)
    return figure, list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)


def _finish(
    figure: Any, table: Sequence[Any], panels: Mapping[str, Mapping[str, Any]], heading: str, measure: str, path: Path
) -> list[Path]:
    values = [row["value"] for lines in panels.values() for rows in lines.values() for row in rows]
    for axes, panel in zip(table, panels, strict=False):
        axes.set_title(panel, fontsize="medium")
    for axes in table[len(panels) :]:
        axes.set_visible(False)
    shares = measure == _MASS or (bool(values) and min(values) >= 0 and max(values) <= 1)
    if measure != _MASS and values and min(values) > 0 and math.log10(max(values) / min(values)) > _DECADES:
        table[0].set_yscale("log")
    elif shares:
        table[0].set_ylim(-0.02, 1.02)
    table[0].set_ylabel(measure)
    handles, labels = table[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    left_out = "" if len(panels) <= _MOST_PANELS else f" ({_MOST_PANELS} of {len(panels)})"
    figure.suptitle(heading + left_out, fontsize="medium")
    return save(figure, path)


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
