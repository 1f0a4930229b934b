"""Pictures about numbers of loops: accuracy with other numbers than trained, and the circuit loop by loop."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grok.analyses import AnalysisRecord
from grok.errors import BadInput
from grok.records import RunRecord
from grok.report.cells import cells_of
from grok.report.style import STYLES, new_figure, save, state_colours

__all__ = ["loop_curves", "loop_story"]

_MOST_LINES = 7


def loop_curves(record: RunRecord, path: Path) -> list[Path]:
    """Accuracy over the number of loops at test, a panel per split and a line per analysed step, floors dotted; the
    number of loops in training is marked.

    Args:
        record: of a run with the analysis `loops`.
        path: where to write, without suffix.
    """
    rows = [row for row in record.rows() if row["name"].startswith("loops/accuracy/")]
    splits, steps = (list(dict.fromkeys(row[key] for row in rows)) for key in ("split", "step"))
    chosen = _spread([step for step in sorted(steps) if step > 0] or steps)
    figure = new_figure(4.2 * len(splits) + 2.5, 4.2)
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        for step, colour in zip(chosen, state_colours(len(chosen)), strict=True):
            here = [row for row in rows if (row["split"], row["step"]) == (split, step)]
            points = sorted((int(row["name"].rpartition("/")[2]), row["value"]) for row in here)
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=f"step {step:,}")
        floors = {row["floor"] for row in here} - {None}
        for floor in floors:
            axes.axhline(floor, color="#7F7F7F", linestyle=":", linewidth=1.0)
        trained = int(AnalysisRecord(record.directory).read(chosen[-1])[f"loops/{split}/trained"])
        axes.axvline(trained, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            f"trained with {trained}", (trained, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", va="bottom", fontsize="small", color="#333333",
        )  # fmt: skip
        _finish(axes, [count for count, _ in points], "loops at test")
        axes.set_title(f"{split} (n = {here[0]['n']})", fontsize="medium", pad=18)
    panels[0].set_ylabel("accuracy")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    return save(figure, path)


def loop_story(runs: Mapping[int, Sequence[RunRecord]], layers: int, splits: Sequence[str], path: Path) -> list[Path]:
    """Final accuracies over the number of loops in training, and the circuit: the bridge in S[i, r1] by logit lens, and
    by how much the strength of S[i, r1] is above its floor, step by step.

    Points are runs, in the circuit at the ends of loops; lines are medians of runs.

    Args:
        runs: runs by their number of loops in training.
        layers: blocks of a loop.
        splits: evaluation splits whose accuracy is drawn; the circuit is that of the first.
        path: where to write, without suffix.

    Raises:
        BadInput: if a run lacks the analyses.
    """
    figure = new_figure(14, 4.2)
    accuracies, bridge, strength = figure.subplots(1, 3)
    counts = sorted(runs)
    for split, (colour, dashes) in zip(splits, STYLES[1:], strict=False):
        seen = {n: [(record.summary() or {})["accuracy"][split] for record in runs[n]] for n in counts}
        _median(accuracies, seen, colour, dashes, split)
        _points(accuracies, seen, colour)
    accuracies.set_ylabel("final accuracy (points: seeds)")
    _finish(accuracies, counts, "loops in training and at test")
    for n, colour in zip(counts, state_colours(len(counts)), strict=True):
        for axes, grid in ((bridge, "lens/mrr/bridge"), (strength, "tracing/changed")):
            seen = _by_state(runs[n], n * layers, splits[0], grid)
            _median(axes, seen, colour, "-", f"trained with {n}")
            _points(axes, {i: seen[i] for i in range(layers, n * layers + 1, layers)}, colour)
    for axes, told in ((bridge, "bridge: MRR by logit lens"), (strength, "strength above its floor")):
        _finish(axes, [1, *(n * layers for n in counts)], f"i of S[i, r1] (points: ends of loops, every {layers})")
        axes.set_ylabel(f"{told}, {splits[0]}", fontsize="small")
        axes.legend(loc="best", frameon=False, fontsize="small")
    accuracies.legend(loc="best", frameon=False, fontsize="small")
    return save(figure, path)


def _by_state(records: Sequence[RunRecord], steps: int, split: str, grid: str) -> dict[int, list[float]]:
    """Final value in S[i, r1], i = 1 … `steps`, of every run; of a strength what is above the floor."""
    found: dict[int, list[float]] = {i: [] for i in range(1, steps + 1)}
    for record in records:
        cells = next((one for one in cells_of(record) if (one.grid, one.split) == (grid, split)), None)
        if cells is None:
            raise BadInput(f"{record.directory}: no {grid} of {split} in the record; `grok trace` makes it")
        for i, values in found.items():
            values.append(cells.excess(cells.steps[-1], f"S[{i}]", "r1", floor=grid.startswith("tracing")))
    return found


def _median(axes: Any, seen: Mapping[int, Sequence[float]], colour: Any, dashes: str, label: str) -> None:
    axes.plot(list(seen), [statistics.median(values) for values in seen.values()], dashes, color=colour, label=label)


def _points(axes: Any, seen: Mapping[int, Sequence[float]], colour: Any) -> None:
    for n, values in seen.items():
        axes.plot([n] * len(values), values, "o", color=colour, markersize=4, alpha=0.7)


def _finish(axes: Any, counts: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _spread(steps: Sequence[int]) -> list[int]:
    """At most seven of the ascending steps, the first and the last among them, evenly spread over their logarithms."""
    if len(steps) <= _MOST_LINES:
        return list(steps)
    ratio = math.log(steps[-1] / steps[0]) / (_MOST_LINES - 1)
    wanted = [steps[0] * math.exp(ratio * index) for index in range(_MOST_LINES)]
    return sorted({min(steps, key=lambda step, at=at: abs(math.log(step / at))) for at in wanted})  # type: ignore[misc]
