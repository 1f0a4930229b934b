"""One look for all pictures: colours that any eye can tell apart, axes in the papers' words, PNG and SVG."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grok.phases import numeral

__all__ = [
    "LEVELS",
    "STYLES",
    "band",
    "finish_steps_axis",
    "mark_milestones",
    "milestones_of",
    "new_figure",
    "save",
    "state_colours",
]

# Okabe and Ito's colours, distinguishable with any colour vision, each with a line style of its own.
STYLES: Sequence[tuple[str, str]] = (
    ("#000000", "-"),
    ("#0072B2", "-"),
    ("#D55E00", "-"),
    ("#009E73", "--"),
    ("#CC79A7", "--"),
    ("#E69F00", ":"),
    ("#56B4E9", "-."),
    ("#7F7F7F", ":"),
)

LEVELS, DIFFERENCES = "cividis", "PuOr_r"
"""Colour maps of values and of differences, both readable without red or green."""


def new_figure(width: float, height: float) -> Any:
    """An empty figure, `width` × `height` inches, that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def state_colours(count: int) -> list[Any]:
    """A colour for each of the states S[0] … S[count - 1], dark to light."""
    from matplotlib import colormaps

    return [colormaps[LEVELS](0.95 * index / max(1, count - 1)) for index in range(count)]


def band(
    axes: Any,
    curves: Sequence[tuple[Sequence[float], Sequence[float]]],
    colour: Any,
    dashes: str,
    label: str | None,
    alpha: float = 1.0,
) -> None:
    """Mean over runs at every step that all share, if there is one; a band from lowest to highest if several runs."""
    common = sorted(set.intersection(*(set(steps) for steps, _ in curves)) - {0})  # a log axis has no 0
    if not common:
        return
    by_step = [dict(zip(steps, values, strict=True)) for steps, values in curves]
    columns = [[run[step] for run in by_step] for step in common]
    faint = {"alpha": 0.7, "linewidth": 1.0} if label is None else {"alpha": alpha, "linewidth": 1.6}
    axes.plot(common, [statistics.fmean(column) for column in columns], dashes, color=colour, label=label, **faint)
    if len(curves) > 1 and label is not None:
        axes.fill_between(
            common, *zip(*((min(c), max(c)) for c in columns), strict=True), color=colour, alpha=0.15, linewidth=0
        )


def finish_steps_axis(axes: Any, label: bool = True) -> None:
    """Logarithmic optimizer steps along x, a light grid, no box."""
    axes.set_xscale("log")
    if label:
        axes.set_xlabel("optimizer step (log scale)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def milestones_of(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What is marked in curves: the memorised step, and the grokked step of the first held-out split."""
    grokked = next(((split, step) for split, step in summary.get("grok_step", {}).items()), (None, None))
    marks = [("memorised", summary.get("memorised_step")), (f"grokked ({grokked[0]})", grokked[1])]
    return [(text, step) for text, step in marks if step]


def mark_milestones(axes: Any, summary: Mapping[str, Any], label: bool = True) -> None:
    """Vertical lines at the milestones, named above the axes if `label`; of a regime with phases, these instead."""
    if summary.get("phases"):
        _mark_phases(axes, summary["phases"], label)
        return
    for index, (text, step) in enumerate(milestones_of(summary)):
        axes.axvline(step, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
        if label:
            axes.annotate(
                f"{text}: step {step:,}", (step, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3 + 11 * index),
                textcoords="offset points", ha="center", va="bottom", fontsize="small", color="#333333",
            )  # fmt: skip


def _mark_phases(axes: Any, phases: Mapping[str, Mapping[str, Any]], label: bool) -> None:
    """Shade the phases of `summary.json` in turn, from light to dark, and name them above the axes if `label`."""
    left, right = axes.get_xlim()
    for index, (name, span) in enumerate(phases.items()):
        if span["begin"] is None:
            break
        begin, end = max(left, span["begin"]), right if span["end"] is None else span["end"]
        axes.axvspan(begin, max(begin, end), color="#555555", alpha=0.04 + 0.06 * index, linewidth=0)
        if span["end"] is not None:
            axes.axvline(end, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
        if label:
            until = "" if span["end"] is None else f" to step {end:,}"
            axes.annotate(
                f"{numeral(phases, name)}: {name}{until}", (max(begin, end), 1.0),
                xycoords=("data", "axes fraction"), xytext=(0, 3 + 11 * index), textcoords="offset points",
                ha="right", va="bottom", fontsize="small", color="#333333",
            )  # fmt: skip
    axes.set_xlim(left, right)


def save(figure: Any, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg, the same bytes for the same picture."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
    with mpl.rc_context({"svg.hashsalt": "grok"}):
        figure.savefig(files[0], dpi=150)
        figure.savefig(files[1], metadata={"Date": None})
    return files
