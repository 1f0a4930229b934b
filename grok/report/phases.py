"""Pictures by phase of training: similarity of states over the phases, and one panel per phase (Ye et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grok.records import RunRecord
from grok.report.cells import Cells, title
from grok.report.style import LEVELS, STYLES, band, finish_steps_axis, mark_milestones, new_figure, save, state_colours

__all__ = ["phase_curves", "phase_panels", "phase_steps"]

_LONGEST_LIST = 8
"""Held-out splits drawn in one panel, as many as there are line styles."""


def phase_steps(summary: Mapping[str, Any], analysed: Sequence[int]) -> list[tuple[str, int]]:
    """For every phase that has begun, the step of `analysed` that stands for it: the first from its end on, where what
    the phase has brought about is there; the last one if there is none.
    """
    begun = {name: span for name, span in summary.get("phases", {}).items() if span["begin"] is not None}
    ends = {name: analysed[-1] if span["end"] is None else span["end"] for name, span in begun.items()}
    return [(name, next((step for step in analysed if step >= end), analysed[-1])) for name, end in ends.items()]


def phase_curves(record: RunRecord, cosines: Sequence[Cells], path: Path) -> list[Path]:
    """Accuracies, ID cohesion and OOD alignment of S[i, r1] over log steps, with the phases shaded and named.

    Args:
        record: of the run.
        cosines: `cosine/cohesion` and `cosine/alignment` of the run.
        path: where to write, without suffix.
    """
    summary = record.summary() or {}
    figure = new_figure(9.5, 2 + 2 * (1 + len(cosines)))
    panels = figure.subplots(1 + len(cosines), 1, sharex=True)
    rows = record.rows("accuracy")
    for split, (colour, dashes) in zip(list(summary.get("grok_step", {}))[:_LONGEST_LIST], STYLES, strict=False):
        points = [row for row in rows if row["split"] == split]
        curve = [row["step"] for row in points], [row["value"] for row in points]
        band(panels[0], [curve], colour, dashes, f"{split} (n = {points[-1]['n']})")
    panels[0].set_ylabel("accuracy")
    for axes, cells in zip(panels[1:], cosines, strict=True):
        for state, colour in zip(cells.rows, state_colours(len(cells.rows)), strict=True):
            column = cells.story_column
            band(axes, [cells.curve(state, column)], colour, "-", state.replace("]", f", {column}]"))
            band(axes, [cells.curve(state, column, "floor")], colour, ":", None)
        axes.set_ylabel(f"{title(cells.grid)}\n{cells.split}", fontsize="small")
    for axes in panels:
        axes.set_ylim(min(-0.02, axes.get_ylim()[0]), 1.02)
        finish_steps_axis(axes, label=axes is panels[-1])
        mark_milestones(axes, summary, label=axes is panels[0])
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return save(figure, path)


def phase_panels(cells: Cells, steps: Sequence[tuple[str, int]], path: Path) -> list[Path]:
    """State × position with the numbers in the cells, one panel for each phase that was reached.

    Args:
        cells: one grid of a run's record.
        steps: from `phase_steps`.
        path: where to write, without suffix.
    """
    figure = new_figure(1.5 + 0.9 * len(steps) * max(3, len(cells.columns)), 1.8 + 0.42 * len(cells.rows))
    panels = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    for axes, (name, step) in zip(panels, steps, strict=True):
        table = cells.table(step)
        image = axes.imshow(table, aspect="auto", origin="lower", cmap=LEVELS, vmin=0, vmax=1)
        axes.set_xticks(range(len(cells.columns)), cells.columns)
        axes.set_yticks(range(len(cells.rows)), cells.rows)
        axes.set_title(f"{name}\n(step {step:,})", fontsize="small")
        axes.set_xlabel("position")
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.5 else "black")
    figure.colorbar(image, ax=panels, fraction=0.05)
    panels[0].set_ylabel("state after step i")
    n = max((line["n"] or 0) for line in cells.values.values())
    figure.suptitle(f"{title(cells.grid)}, {cells.split} (n = {n}), at the end of each phase", fontsize="medium")
    return save(figure, path)
