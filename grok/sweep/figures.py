"""The pictures that a sweep file asks for by `figure`: one of these, or a list of them.

- `{x: KEY, y: KEY, value: grok_step}`: a diagram with a cell for each setting of two keys.
- `{x: KEY, lines: KEY, value: accuracy/SPLIT}`: what came out over a key, one line per value of another (or none).
- `{curves: SPLIT, lines: KEY, over: step}`: accuracy over steps or epochs, one line per value of a key.

Each is drawn once for every setting of the keys that are neither its axes nor determined by them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from grok.errors import BadInput
from grok.report.phase_diagram import Outcome, phase_diagram
from grok.report.sweep_curves import accuracy_curves, value_lines
from grok.sweep.asked import Asked
from grok.sweep.expansion import argument, canonical, names
from grok.sweep.plan import Sweep
from grok.sweep.status import Report
from grok.sweep.table import keys_of, part_of, setting_rows, shown, splits_of

__all__ = ["check_figures", "draw_figures"]

_COUNTED = {"grok_step": "grokked", "grok_epoch": "grokked", "memorised_step": "memorised", "delay": "grokked"}
_FORMS = "use {x, y, value}, {x, lines, value} or {curves, lines, over}"
Figure = dict[str, Any]


def _asked_for(asked: Asked) -> list[Figure]:
    figures = asked.get("figure") or []
    return figures if isinstance(figures, list) else [figures]


def check_figures(asked: Asked) -> None:
    """Look at `figure` before anything is trained.

    Raises:
        BadInput: if it cannot be drawn.
    """
    keys, figures = keys_of(asked), _asked_for(asked)
    for figure in figures:
        if "curves" in figure:
            required, axes = {"curves", "lines"}, ["lines"]
        else:
            required, axes = {"x"}, [axis for axis in ("x", "y", "lines") if figure.get(axis) is not None]
        allowed = (
            {"curves", "lines", "over"} if "curves" in figure else {"x", "y" if "y" in figure else "lines", "value"}
        )
        if not required <= set(figure) <= allowed:
            raise BadInput(f"figure={figure}: {_FORMS}")
        for axis in axes:
            if figure[axis] not in keys or [figure[one] for one in axes].count(figure[axis]) > 1:
                several = "different ones" if len(axes) > 1 else "one"
                raise BadInput(
                    f"figure.{axis}={figure[axis]!r}: use {several} of the keys that vary: {', '.join(keys)}"
                )
        if figure.get("over", "step") not in ("step", "epoch"):
            raise BadInput(f"figure.over={figure['over']!r}: use step or epoch")
        if not isinstance(figure.get("curves", ""), str):
            raise BadInput(f"figure.curves={figure['curves']!r}: use the name of one split")
        if "curves" not in figure:
            _check_value(figure.get("value", "grok_step"))
    if twice := [figure for place, figure in enumerate(figures) if figure in figures[:place]]:
        raise BadInput(f"figure={twice[0]}: is asked for twice; leave one out")


def _check_value(value: Any) -> None:
    if not isinstance(value, str) or (value not in _COUNTED and not value.startswith("accuracy/")):
        raise BadInput(f"figure.value={value!r}: use {', '.join(_COUNTED)} or accuracy/SPLIT")


def draw_figures(sweep: Sweep, found: Sequence[Report]) -> list[Path]:
    """Draw what is asked for; returns the files, none while no run has been evaluated.

    Raises:
        BadInput: if a picture shows the accuracy of a split that there is not.
    """
    files: list[Path] = []
    if not splits_of(found):
        return files
    for figure in _asked_for(sweep.asked):
        draw = _draw_curves if "curves" in figure else _draw_diagram if "y" in figure else _draw_lines
        files += draw(sweep, found, figure)
    return files


def _panels(sweep: Sweep, rows: Sequence[Figure], axes: Sequence[str]) -> list[tuple[Figure, list[Figure]]]:
    """Rows by the setting of the keys that the axes do not determine, with that setting."""
    part = ["block"] if sweep.asked.get("then") else []
    rows = [row for row in rows if not part or None not in [row[axis] for axis in axes]]
    others = [*part, *(key for key in keys_of(sweep.asked) if key not in axes and not _determined(rows, key, axes))]
    panels: dict[str, list[Figure]] = {}
    for row in rows:
        panels.setdefault(canonical({key: row[key] for key in others}), []).append(row)
    return [
        ({key: panel[0][key] for key in others if not part or panel[0][key] is not None}, panel)
        for panel in panels.values()
    ]


def _determined(rows: Sequence[Figure], key: str, axes: Sequence[str]) -> bool:
    """Whether a key has one value for each setting of the axes, and not the same for all."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(canonical({axis: row[axis] for axis in axes}), set()).add(canonical({key: row[key]}))
    return all(len(values) == 1 for values in found.values()) and len(set().union(*found.values())) > 1


def _path(sweep: Sweep, figure: Figure, of: Figure, *name: str | None) -> Path:
    """Where a picture goes: named by what it shows, by its keys where there are several, and by its setting."""
    keys = [str(one) for one in name if one is not None]
    if figure == sweep.asked["figure"] and "y" in figure:
        keys = keys[:1]  # the one diagram of a sweep
    parts = [*keys, *names([of], list(of))] if of else keys
    return sweep.directory / "figures" / "_".join(parts).replace("/", "_")


def _told(title: str, of: Figure) -> str:
    return "\n".join([title, *(f"{key} = {argument(one)}" for key, one in of.items())])


def _middle(value: str, rows: Sequence[Figure], found: Sequence[Report]) -> str:
    """Name of the column that is drawn."""
    middle = f"{value}_mean" if value.startswith("accuracy/") else f"{value}_median"
    if middle not in rows[0]:
        splits = [f"accuracy/{split}" for split in splits_of(found)]
        raise BadInput(f"figure.value={value!r}: no such split; use {', '.join(splits) or 'it once there are any'}")
    return middle


def _reached(row: Figure, value: str) -> int:
    return int(row[_COUNTED[value]] if value in _COUNTED else row["finished"])


def _draw_diagram(sweep: Sweep, found: Sequence[Report], figure: Figure) -> list[Path]:
    x, y, value = figure["x"], figure["y"], figure.get("value", "grok_step")
    rows = setting_rows(sweep, found)
    middle, files = _middle(value, rows, found), []
    for of, panel in _panels(sweep, rows, (x, y)):
        outcomes = {
            (row[x], row[y]): Outcome(row[middle], _reached(row, value), row["finished"], row["seeds"]) for row in panel
        }
        title = _told(_title(sweep, found, value), of)
        files += phase_diagram(outcomes, (x, y), value, title, _path(sweep, figure, of, value, "over", x, y))
    return files


def _draw_lines(sweep: Sweep, found: Sequence[Report], figure: Figure) -> list[Path]:
    x, lines, value = figure["x"], figure.get("lines"), figure.get("value", "grok_step")
    rows = setting_rows(sweep, found)
    middle, files = _middle(value, rows, found), []
    for of, panel in _panels(sweep, rows, (x, lines) if lines else (x,)):
        points: dict[Any, dict[Any, tuple[float, float, float]]] = {}
        for row in (row for row in panel if row[middle] is not None):
            span = (row[middle], row[f"{value}_min"], row[f"{value}_max"])
            points.setdefault(row[lines] if lines else None, {})[row[x]] = span
        title = _told(_title(sweep, found, value, cells=False), of)
        files += value_lines(points, (x, lines), value, title, _path(sweep, figure, of, value, "over", x, lines))
    return files


def _draw_curves(sweep: Sweep, found: Sequence[Report], figure: Figure) -> list[Path]:
    split, key, over = figure["curves"], figure["lines"], figure.get("over", "step")
    runs = [
        {**part_of(sweep, one.line), **{k: shown(sweep, one.line, k) for k in keys_of(sweep.asked)}, "run": one}
        for one in found
        if one.state == "done"
    ]
    if not any(one.accuracy.get(split) is not None for one in found):
        raise BadInput(f"figure.curves={split!r}: no such split; use {', '.join(splits_of(found)) or 'it later'}")
    files = []
    for of, panel in _panels(sweep, runs, (key,)):
        groups: dict[Any, list[Report]] = {}
        for row in panel:
            groups.setdefault(row[key], []).append(row["run"])
        curves = {value: _curves(sweep, group, split, over) for value, group in groups.items()}
        title = _told(
            f"{sweep.name}: {split}, mean and range over {_seeds(len(group) for group in groups.values())}", of
        )
        files += accuracy_curves(curves, key, over, title, _path(sweep, figure, of, split, "over", over, key))
    return files


def _curves(sweep: Sweep, group: Sequence[Report], split: str, over: str) -> list[tuple[list[float], list[float]]]:
    """Steps or epochs, and accuracies of each run; seeds may differ in their rows, so an epoch is the mean one."""
    lengths = [one.steps_per_epoch for one in group]
    if over == "epoch" and (endless := [one for one in group if one.steps_per_epoch is None]):
        told = f"{endless[0].line.name} has no epochs, its queries are made as it trains"
        raise BadInput(f"figure.over='epoch': {told}: use step")
    unit = statistics.fmean(cast(list[float], lengths)) if over == "epoch" else 1.0
    found = []
    for one in group:
        rows = [row for row in sweep.record(one.line).rows("accuracy") if row["split"] == split]
        found.append(([row["step"] / unit for row in rows], [row["value"] for row in rows]))
    return found


def _seeds(counts: Any) -> str:
    """How many seeds a setting has."""
    known = sorted(set(counts))
    over = f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return f"{over} seed" if known == [1] else f"{over} seeds"


def _title(sweep: Sweep, found: Sequence[Report], value: str, cells: bool = True) -> str:
    """What the numbers are, over how many seeds, with which threshold and within how many steps."""
    over = _seeds(row["seeds"] for row in setting_rows(sweep, found))
    if value.startswith("accuracy/"):
        return f"{sweep.name}: final accuracy of {value.removeprefix('accuracy/')}, mean over {over}"
    levels = {sweep.value(line, "monitor.threshold", 0.95) for line in sweep.lines}
    steps = {one.max_steps for one in found if one.max_steps}
    split = next((split for one in found for split in one.summary.get("grok_step") or {}), "held-out queries")
    what = {"memorised_step": "training queries"}.get(value, split)
    level = f"{100 * levels.pop():g} %" if len(levels) == 1 else "the threshold"
    within = f"{max(steps):,} steps" if len(steps) == 1 else "the steps given"
    middle = "median of the runs that got there"
    return f"{sweep.name}: {what} at {level}, {middle}, {over}\n" + (
        f"hatched: in no run within {within}" if cells else f"no point: in no run within {within}"
    )
