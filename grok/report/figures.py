"""The one place where pictures are made, all from run records; needs matplotlib, the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grok.records import RunRecord

__all__ = ["accuracy_curves"]

# Okabe and Ito's colours, distinguishable with any colour vision, each with a line style of its own.
_STYLES: Sequence[tuple[str, str]] = (
    ("#000000", "-"),
    ("#0072B2", "-"),
    ("#D55E00", "-"),
    ("#009E73", "--"),
    ("#CC79A7", "--"),
    ("#E69F00", ":"),
    ("#56B4E9", "-."),
    ("#7F7F7F", ":"),
)

_TOO_FEW = 50
"""Splits with fewer queries are drawn faintly: their 95 % interval is wider than most effects."""


def accuracy_curves(record: RunRecord, path: Path) -> list[Path]:
    """Accuracy of every split over log steps, with the memorised and grokked steps marked and 95 % intervals.

    Regimes without right and wrong answers get their loss instead.

    Args:
        record: of the run.
        path: where to write, without suffix; `.png` and `.svg` are written.

    Returns:
        The files written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    summary = record.summary() or {}
    rows = record.rows("accuracy")
    name = "accuracy" if rows else "loss"
    rows = rows or record.rows("loss")
    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.subplots()
    splits = list(dict.fromkeys(row["split"] for row in rows))
    for index, split in enumerate(splits):
        colour, dashes = _STYLES[index % len(_STYLES)]
        points = [row for row in rows if row["split"] == split]
        steps = [row["step"] for row in points]
        few = points[-1]["n"] is not None and points[-1]["n"] < _TOO_FEW
        label = f"{split} (n = {points[-1]['n']}{', few' if few else ''})"
        strength = 0.45 if few else 1.0
        axes.plot(steps, [row["value"] for row in points], dashes, color=colour, label=label, alpha=strength)
        if points[0]["low"] is not None and not few:
            low, high = ([row[bound] for row in points] for bound in ("low", "high"))
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel("optimizer step (log scale)")
    axes.set_ylabel("accuracy (exact match)" if name == "accuracy" else "loss")
    if name == "accuracy":
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_yscale("log")
    _mark_milestones(axes, summary)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    with mpl.rc_context({"svg.hashsalt": "grok"}):
        figure.savefig(files[0], dpi=150)
        figure.savefig(files[1], metadata={"Date": None})
    return files


def _mark_milestones(axes: Any, summary: dict[str, Any]) -> None:
    grokked = next(((split, step) for split, step in summary.get("grok_step", {}).items()), (None, None))
    marks = [("memorised", summary.get("memorised_step")), (f"grokked ({grokked[0]})", grokked[1])]
    shown = [(text, step) for text, step in marks if step]
    for index, (text, step) in enumerate(shown):
        axes.axvline(step, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            f"{text}: step {step:,}", (step, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3 + 11 * index),
            textcoords="offset points", ha="center", va="bottom", fontsize="small", color="#333333",
        )  # fmt: skip
