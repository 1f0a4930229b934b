"""What came out of a sweep as lines: final values over a key, and accuracies over steps or epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grok.report.phase_diagram import NAMES, in_order, spelled
from grok.report.style import STYLES, band, new_figure, save

__all__ = ["accuracy_curves", "value_lines"]

Span = tuple[float, float, float]
"""Middle, lowest and highest over seeds."""


def value_lines(
    points: Mapping[Any, Mapping[Any, Span]], keys: tuple[str, str | None], value: str, title: str, path: Path
) -> list[Path]:
    """One line per value of a key, with bars from the lowest to the highest seed.

    Args:
        points: by value of the lines' key (None if there is one line), then by value of the key along x.
        keys: along x, and of the lines.
        value: `accuracy/SPLIT`, `grok_step`, `grok_epoch`, `memorised_step` or `delay`.
        title: seeds, threshold and number of steps belong into it.
        path: where to write, without suffix.

    Returns:
        The files written.
    """
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    places = {x: i for i, x in enumerate(in_order(x for line in points.values() for x in line))}
    for index, line in enumerate(in_order(points)):
        found = sorted((places[x], span) for x, span in points[line].items())
        middle = [span[0] for _, span in found]
        below, above = ([abs(span[0] - span[end]) for _, span in found] for end in (1, 2))
        aside = 0.03 * (index - (len(points) - 1) / 2)  # bars of several lines must not hide each other
        label = None if line is None else spelled(line)
        at = [place + aside for place, _ in found]
        axes.errorbar(at, middle, (below, above), label=label, **_style(index), marker="o", markersize=4, capsize=3)
    axes.set_xticks(list(places.values()), [spelled(x) for x in places])
    axes.set_xlabel(keys[0])
    if value.startswith("accuracy/"):
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel(f"final accuracy, {value.removeprefix('accuracy/')}")
    else:
        axes.set_yscale("log")
        axes.set_ylabel(f"{NAMES[value]} (log scale)")
    return _finished(figure, axes, keys[1], title, path)


def accuracy_curves(
    curves: Mapping[Any, Sequence[tuple[list[float], list[float]]]], key: str, over: str, title: str, path: Path
) -> list[Path]:
    """Mean accuracy over log steps or epochs, one line per value of a key; bands from the lowest to the highest seed.

    Args:
        curves: steps (or epochs) and accuracies of each run, by value of the key.
        key: of the lines.
        over: `step` or `epoch`.
        title: of the picture.
        path: where to write, without suffix.

    Returns:
        The files written.
    """
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    for index, line in enumerate(in_order(curves)):
        style = _style(index)
        band(axes, curves[line], style["color"], style["linestyle"], spelled(line))
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("epoch (log scale)" if over == "epoch" else "optimizer step (log scale)")
    axes.set_ylabel("accuracy (exact match)")
    return _finished(figure, axes, key, title, path)


def _style(index: int) -> dict[str, str]:
    colour, dashes = STYLES[index % len(STYLES)]
    return {"color": colour, "linestyle": dashes}


def _finished(figure: Any, axes: Any, lines: str | None, title: str, path: Path) -> list[Path]:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize="medium")
    if lines is not None:
        figure.legend(loc="outside right center", frameon=False, fontsize="small", title=lines)
    return save(figure, path)
