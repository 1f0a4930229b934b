"""The picture that a sweep file asks for by `figure: {x: KEY, y: KEY, value: grok_step}`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grok.errors import BadInput
from grok.report.phase_diagram import Outcome, phase_diagram
from grok.sweep.asked import Asked
from grok.sweep.expansion import argument, canonical, names
from grok.sweep.plan import Sweep
from grok.sweep.status import Report
from grok.sweep.table import keys_of, setting_rows, splits_of

__all__ = ["check_figure", "draw_figure"]

_COUNTED = {"grok_step": "grokked", "memorised_step": "memorised", "delay": "grokked"}


def check_figure(asked: Asked) -> None:
    """Look at `figure` before anything is trained.

    Raises:
        BadInput: if it cannot be drawn.
    """
    figure = asked.get("figure")
    if figure is None:
        return
    if not {"x", "y"} <= set(figure) <= {"x", "y", "value"}:
        raise BadInput(f"figure={figure}: use x, y (two keys that vary) and value (grok_step, …)")
    keys = keys_of(asked)
    for axis in ("x", "y"):
        if figure[axis] not in keys or figure["x"] == figure["y"]:
            raise BadInput(f"figure.{axis}={figure[axis]!r}: use two of the keys that vary: {', '.join(keys)}")
    value = figure.get("value", "grok_step")
    if value not in _COUNTED and not str(value).startswith("accuracy/"):
        raise BadInput(f"figure.value={value!r}: use {', '.join(_COUNTED)} or accuracy/SPLIT")


def draw_figure(sweep: Sweep, found: Sequence[Report]) -> list[Path]:
    """Draw it, once for every setting of the keys that are not its axes; returns the files, none if none is asked for.

    Raises:
        BadInput: if it shows the accuracy of a split that there is not.
    """
    figure = sweep.asked.get("figure")
    if figure is None:
        return []
    x, y, value = figure["x"], figure["y"], figure.get("value", "grok_step")
    rows = setting_rows(sweep, found)
    middle = f"{value}_mean" if value.startswith("accuracy/") else f"{value}_median"
    if middle not in rows[0]:
        splits = [f"accuracy/{split}" for split in splits_of(found)]
        raise BadInput(f"figure.value={value!r}: no such split; use {', '.join(splits) or 'it once there are any'}")
    part = ["block"] if sweep.asked.get("then") else []
    others = [*part, *(key for key in keys_of(sweep.asked) if key not in (x, y))]
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in (row for row in rows if not part or None not in (row[x], row[y])):
        panels.setdefault(canonical({key: row[key] for key in others}), []).append(row)
    files = []
    for panel in panels.values():
        outcomes = {(row[x], row[y]): _outcome(row, value, middle) for row in panel}
        of = {key: panel[0][key] for key in others if not part or panel[0][key] is not None}
        name = "_".join([value.replace("/", "_"), *names([of], list(of))]).rstrip("_")
        title = "\n".join([_title(sweep, found, value), *(f"{key} = {argument(one)}" for key, one in of.items())])
        files += phase_diagram(outcomes, (x, y), value, title, sweep.directory / "figures" / name)
    return files


def _outcome(row: dict[str, Any], value: str, middle: str) -> Outcome:
    reached = row[_COUNTED[value]] if value in _COUNTED else row["finished"]
    return Outcome(row[middle], reached, row["finished"], row["seeds"])


def _title(sweep: Sweep, found: Sequence[Report], value: str) -> str:
    """What the numbers are, over how many seeds, with which threshold and within how many steps."""
    seeds = sorted({row["seeds"] for row in setting_rows(sweep, found)})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    over += " seed" if seeds == [1] else " seeds"
    if value.startswith("accuracy/"):
        return f"{sweep.name}: final accuracy of {value.removeprefix('accuracy/')}, mean over {over}"
    levels = {sweep.value(line, "monitor.threshold", 0.95) for line in sweep.lines}
    steps = {one.max_steps for one in found if one.max_steps}
    split = next((split for one in found for split in one.summary.get("grok_step") or {}), "held-out queries")
    what = {"memorised_step": "training queries"}.get(value, split)
    level = f"{100 * levels.pop():g} %" if len(levels) == 1 else "the threshold"
    within = f"{max(steps):,} steps" if len(steps) == 1 else "the steps given"
    middle = "median of the runs that got there"
    return f"{sweep.name}: {what} at {level}, {middle}, {over}\nhatched: in no run within {within}"
