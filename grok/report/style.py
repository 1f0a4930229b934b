"""One look for all pictures: colours that any eye can tell apart, axes in the papers' words, PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "LEVELS",
    "STYLES",
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
    """Vertical lines at the milestones, named above the axes if `label`."""
    for index, (text, step) in enumerate(milestones_of(summary)):
        axes.axvline(step, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
        if label:
            axes.annotate(
                f"{text}: step {step:,}", (step, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3 + 11 * index),
                textcoords="offset points", ha="center", va="bottom", fontsize="small", color="#333333",
            )  # fmt: skip


def save(figure: Any, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg, the same bytes for the same picture."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
    with mpl.rc_context({"svg.hashsalt": "grok"}):
        figure.savefig(files[0], dpi=150)
        figure.savefig(files[1], metadata={"Date": None})
    return files
