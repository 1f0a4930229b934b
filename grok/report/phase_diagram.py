"""A phase diagram: what came out of every setting of two keys, and where nothing did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grok.report.style import LEVELS, new_figure, save

__all__ = ["NAMES", "Outcome", "in_order", "phase_diagram", "spelled"]

NAMES = {
    "grok_step": "grok step", "grok_epoch": "grok epoch", "memorised_step": "memorised step",
    "delay": "delay (grok step / memorised step)",
}  # fmt: skip
"""What a value is called along an axis."""

_NOTHING = {"facecolor": "#dddddd", "edgecolor": "#999999", "hatch": "///", "linewidth": 0}


@dataclass(frozen=True)
class Outcome:
    """What came out of the seeds of one setting.

    `value` is the median or mean over the `reached` runs that got there, out of `finished` ones, out of `seeds`.
    """

    value: float | None
    reached: int
    finished: int
    seeds: int


def phase_diagram(
    outcomes: Mapping[tuple[Any, Any], Outcome], keys: tuple[str, str], value: str, title: str, path: Path
) -> list[Path]:
    """A cell for each setting: steps and delays on a logarithmic colour scale, accuracies on one from 0 to 1.

    Where some seeds did not get there, `k/n` says how many did; where none did, the cell is hatched and has no colour,
    because a number that does not exist must not look like a large one.

    Args:
        outcomes: by values of the two keys.
        keys: names of the two axes, x first.
        value: `grok_step`, `memorised_step`, `delay` or `accuracy/SPLIT`.
        title: seeds, threshold and number of steps belong into it.
        path: where to write, without suffix; `.png` and `.svg` are written.

    Returns:
        The files written.
    """
    columns, rows = (in_order(key[axis] for key in outcomes) for axis in (0, 1))
    figure = new_figure(3.2 + 0.95 * max(3, len(columns)), 1.8 + 0.62 * max(2, len(rows)))
    axes = figure.subplots()
    colours = _colours([one.value for one in outcomes.values() if one.value is not None], value)
    for (x, y), one in outcomes.items():
        _draw_cell(axes, columns.index(x), rows.index(y), one, value, colours)
    axes.set_xticks(range(len(columns)), [spelled(one) for one in columns])
    axes.set_yticks(range(len(rows)), [spelled(one) for one in rows])
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlabel(keys[0])
    axes.set_ylabel(keys[1])
    axes.set_title(title, fontsize="medium")
    if colours is not None:
        _colour_bar(figure, axes, colours, value)
    return save(figure, path)


def in_order(values: Iterable[Any]) -> list[Any]:
    """Numbers ascending; anything else as it came."""
    found = list(dict.fromkeys(values))
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found)
    return sorted(found) if numbers else found


def _colours(values: list[float], value: str) -> Any:
    """A colour map with its scale; None if no cell has a value."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    if not values:
        return None
    low, high = min(values), max(values)
    if value.startswith("accuracy/"):
        return ScalarMappable(Normalize(0, 1), LEVELS)
    return ScalarMappable(LogNorm(low, high) if low < high else LogNorm(0.9 * low, 1.1 * high), LEVELS)


def _draw_cell(axes: Any, x: int, y: int, one: Outcome, value: str, colours: Any) -> None:
    from matplotlib.patches import Rectangle

    place = (x - 0.5, y - 0.5)
    if one.value is not None:
        axes.add_patch(Rectangle(place, 1, 1, facecolor=colours.to_rgba(one.value), edgecolor="white", linewidth=1))
        # White on the dark half of cividis.
        ink = "white" if colours.norm(one.value) < 0.5 else "black"
        lines = [_number(one.value, value)]
    else:
        axes.add_patch(Rectangle(place, 1, 1, **(_NOTHING if one.finished else {"facecolor": "white"})))
        axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="white", linewidth=1))
        ink, lines = "black", []
    if one.value is None or one.reached < one.finished:
        lines.append(f"{one.reached}/{one.finished}" if one.finished else "not run")
    if 0 < one.finished < one.seeds:
        lines.append(f"{one.seeds - one.finished} to run")
    box = {"facecolor": "#dddddd", "edgecolor": "none", "pad": 1.5} if one.value is None and one.finished else None
    axes.text(x, y, "\n".join(lines), ha="center", va="center", fontsize="small", color=ink, bbox=box)


def _number(number: float, value: str) -> str:
    if value.startswith("accuracy/"):
        return f"{100 * number:.0f} %"
    return f"{number:,.0f}" if value.endswith("_step") else f"{number:.1f}"


def spelled(value: Any) -> str:
    """A value of a key as it is written along an axis."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _colour_bar(figure: Any, axes: Any, colours: Any, value: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    bar = figure.colorbar(colours, ax=axes, fraction=0.06)
    if value.startswith("accuracy/"):
        bar.set_label(f"final accuracy, {value.removeprefix('accuracy/')}")
        bar.formatter = FuncFormatter(lambda number, _: f"{100 * number:.0f} %")
    else:
        unit = "optimizer steps, " if value.endswith("_step") else ""
        bar.set_label(f"{NAMES[value]} ({unit}log scale)" if unit else f"{NAMES[value]}, log scale")
        bar.locator, bar.minorlocator = LogLocator(subs=(1, 1.5, 2, 3, 5, 7)), NullLocator()
        bar.formatter = FuncFormatter(lambda number, _: f"{number:,.4g}")
    bar.update_ticks()
