"""The one place where pictures are made, all from run records; needs matplotlib, the extra `plots`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grok.analyses import AnalysisRecord
from grok.errors import BadInput
from grok.records import RunRecord
from grok.report.cells import Cells, cells_in, cells_of, nearest, story_grids, title
from grok.report.faithfulness import circuits_of, faithfulness_curves
from grok.report.loop_counts import loop_curves
from grok.report.measures import curves_of, group_curves, measure_curves
from grok.report.phases import phase_curves, phase_panels, phase_steps
from grok.report.probes import probe_curves
from grok.report.style import (
    DIFFERENCES,
    LEVELS,
    STYLES,
    band,
    finish_steps_axis,
    mark_milestones,
    milestones_of,
    new_figure,
    save,
    state_colours,
)

__all__ = [
    "accuracy_curves", "circuit_curves", "draw", "fact_maps", "found_curves", "fourier_curves", "heat_maps", "story",
]  # fmt: skip

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
    summary = record.summary() or {}
    rows = record.rows("accuracy")
    name = "accuracy" if rows else "loss"
    rows = rows or record.rows("loss")
    figure = new_figure(8.5, 4.5)
    axes = figure.subplots()
    splits = list(dict.fromkeys(row["split"] for row in rows))
    for index, split in enumerate(splits):
        colour, dashes = STYLES[index % len(STYLES)]
        points = [row for row in rows if row["split"] == split]
        steps = [row["step"] for row in points]
        few = points[-1]["n"] is not None and points[-1]["n"] < _TOO_FEW
        label = f"{split} (n = {points[-1]['n']}{', few' if few else ''})"
        strength = 0.45 if few else 1.0
        axes.plot(steps, [row["value"] for row in points], dashes, color=colour, label=label, alpha=strength)
        if points[0]["low"] is not None and not few:
            low, high = ([row[bound] for row in points] for bound in ("low", "high"))
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    finish_steps_axis(axes)
    axes.set_ylabel("accuracy (exact match)" if name == "accuracy" else "loss")
    if name == "accuracy":
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_yscale("log")
    mark_milestones(axes, summary)
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return save(figure, path)


def heat_maps(cells: Cells, before: int, after: int, names: tuple[str, str], path: Path) -> list[Path]:
    """State × position with the numbers in the cells: before, after, and the difference (Wang et al. 2024, figure 4b).

    Args:
        cells: one grid of a run's record.
        before: step of the first panel.
        after: step of the second panel.
        names: what the two steps are.
        path: where to write, without suffix.
    """
    first, last = cells.table(before), cells.table(after)
    change = [[b - a for a, b in zip(one, two, strict=True)] for one, two in zip(first, last, strict=True)]
    figure = new_figure(3 + 2.2 * max(3, len(cells.columns)), 1.8 + 0.42 * len(cells.rows))
    panels = figure.subplots(1, 3, sharey=True)
    titles = (f"{names[0]} (step {before:,})", f"{names[1]} (step {after:,})", "difference")
    finite = [abs(v) for table in (first, last) for row in table for v in row if not math.isnan(v)]
    top = max([1.0, *finite])
    for axes, table, panel in zip(panels, (first, last, change), titles, strict=True):
        limits = (
            {"cmap": DIFFERENCES, "vmin": -top, "vmax": top}
            if table is change
            else {"cmap": LEVELS, "vmin": 0, "vmax": top}
        )
        image = axes.imshow(table, aspect="auto", origin="lower", **limits)
        axes.set_xticks(range(len(cells.columns)), cells.columns)
        axes.set_yticks(range(len(cells.rows)), cells.rows)
        axes.set_title(panel, fontsize="medium")
        axes.set_xlabel("to position" if cells.grid.startswith("attention") else "position")
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    # White on the dark end of cividis, and on both ends of the map of differences.
                    dark = abs(value) > 0.6 * top if table is change else value < 0.5 * top
                    shown = f"{round(value, 2) + 0.0:.2f}"  # no -0.00
                    axes.text(x, y, shown, ha="center", va="center", color="white" if dark else "black")
        figure.colorbar(image, ax=axes, fraction=0.05)
    panels[0].set_ylabel("step and head" if cells.grid.startswith("attention") else "state after step i")
    n = max((line["n"] or 0) for line in cells.values.values())
    figure.suptitle(f"{title(cells.grid)}, {cells.split} (n = {n})", fontsize="medium")
    return save(figure, path)


def circuit_curves(record: RunRecord, path: Path) -> list[Path]:
    """Accuracies, what the lens reads and what the states decide, over the same log steps; floors dotted.

    Args:
        record: of a run with circuit analyses.
        path: where to write, without suffix.

    Raises:
        BadInput: if the record has none.
    """
    grids = story_grids(cells_of(record))
    if not grids:
        raise BadInput(f"{record.directory}: no circuit analysis in the record; `grok trace` makes one")
    figure = new_figure(8.5, 2.2 + 2.2 * len(grids))
    panels = figure.subplots(1 + len(grids), 1, sharex=True)
    summary = record.summary() or {}
    _accuracy_panel(panels[0], [record], _story_splits(summary))
    for axes, cells in zip(panels[1:], grids, strict=True):
        _state_panel(axes, [cells])
        axes.set_ylabel(f"{_short(cells.grid)}\n{cells.split}", fontsize="small")
    for axes in panels:
        finish_steps_axis(axes, label=axes is panels[-1])
        mark_milestones(axes, summary, label=axes is panels[0])
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return save(figure, path)


def story(groups: Mapping[str, Sequence[RunRecord]], split: str, path: Path) -> list[Path]:
    """The story of the papers, over seeds: accuracies and the `story_grids` (the bridge in S[i, r1], and its strength);
    one column per model.

    Lines are means over runs, bands reach from the lowest to the highest run, dotted lines are floors; the shaded spans
    mark the memorised and grokked steps of all runs.

    Args:
        groups: runs of each model by its name, all evaluated and analysed at the same steps.
        split: the analysed split.
        path: where to write, without suffix.

    Raises:
        BadInput: if a run lacks the analyses.
    """
    every = [
        [[cells for cells in story_grids(cells_of(record)) if cells.split == split] for record in records]
        for records in groups.values()
    ]
    panels = max(2, *(len(cells) for wanted in every for cells in wanted))
    figure = new_figure(5.5 * len(groups) + 1, 2 + 3 * panels)
    table = figure.subplots(1 + panels, len(groups), sharex=True, sharey="row", squeeze=False)
    for column, ((name, records), wanted) in enumerate(zip(groups.items(), every, strict=True)):
        short = [str(record.directory) for record, cells in zip(records, wanted, strict=True) if len(cells) < panels]
        if short:
            raise BadInput(f"{', '.join(short)}: no lens and tracing of {split} in the record; `grok trace` makes them")
        summaries = [record.summary() or {} for record in records]
        _accuracy_panel(table[0][column], records, _story_splits(summaries[0]))
        for row in range(1, 1 + panels):
            _state_panel(table[row][column], [cells[row - 1] for cells in wanted])
            table[row][0].set_ylabel(_short(wanted[0][row - 1].grid))
        seeds = f"{len(records)} seed{'s' if len(records) > 1 else ''}"
        table[0][column].set_title(f"{name}, {seeds}", fontsize="medium", pad=26)
        for axes in table[:, column]:
            finish_steps_axis(axes, label=axes is table[-1][column])
            _mark_spans(axes, summaries, label=axes is table[0][column])
        table[0][column].set_ylabel("accuracy" if column == 0 else "")
    for row in table:
        row[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return save(figure, path)


def _short(grid: str) -> str:
    return title(grid).replace("share of answers ", "answers ").replace(" by logit lens", "")


def _story_splits(summary: Mapping[str, Any]) -> list[str]:
    """The memorised split and the first two held-out ones."""
    held_out = list(summary.get("grok_step", {}))[:2]
    others = [split for split in summary.get("accuracy", {}) if split.startswith("train") and split not in held_out]
    return [*others[:1], *held_out]


def _accuracy_panel(axes: Any, records: Sequence[RunRecord], splits: Sequence[str]) -> None:
    for split, (colour, dashes) in zip(splits, STYLES, strict=False):
        curves, sizes = [], set()
        for record in records:
            rows = [row for row in record.rows("accuracy") if row["split"] == split]
            curves.append(([row["step"] for row in rows], [row["value"] for row in rows]))
            sizes |= {row["n"] for row in rows}
        span = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)}–{max(sizes)}"
        few = max(sizes) < _TOO_FEW
        band(axes, curves, colour, dashes, f"{split} (n = {span}{', few' if few else ''})", 0.45 if few else 1.0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("accuracy")


def _state_panel(axes: Any, runs: Sequence[Cells]) -> None:
    """One line per state at the position that the story is about, with its floor dotted."""
    rows, column = runs[0].rows, runs[0].story_column
    for row, colour in zip(rows, state_colours(len(rows)), strict=True):
        label = row.replace("]", f", {column}]")
        band(axes, [cells.curve(row, column) for cells in runs], colour, "-", label)
        floors = [cells.curve(row, column, "floor") for cells in runs]
        if any(values for _, values in floors):
            band(axes, floors, colour, ":", None)
    if all(0 <= cell["value"] <= 1 for cells in runs for cell in cells.values.values()):
        axes.set_ylim(-0.02, 1.02)


def _mark_spans(axes: Any, summaries: Sequence[Mapping[str, Any]], label: bool) -> None:
    """From the earliest to the latest run, where they memorised and where they grokked."""
    steps: dict[str, list[int]] = {}
    for summary in summaries:
        for text, step in milestones_of(summary):
            steps.setdefault(text.partition(" ")[0], []).append(step)
    for index, (text, reached) in enumerate(steps.items()):
        axes.axvspan(min(reached), max(reached), color="#888888", alpha=0.25, linewidth=1)
        if label:
            axes.annotate(
                f"{text} ({len(reached)} of {len(summaries)})", (math.sqrt(min(reached) * max(reached)), 1.0),
                xycoords=("data", "axes fraction"), xytext=(0, 2 + 10 * index), textcoords="offset points",
                ha="center", va="bottom", fontsize="x-small", color="#333333",
            )  # fmt: skip


def fact_maps(record: RunRecord, steps: tuple[int, int], names: tuple[str, str], split: str, path: Path) -> list[Path]:
    """Maps of the states of the facts that lead to a few entities: ID facts filled, OOD facts as open rings.

    Args:
        record: of a run whose cosine lens made maps.
        steps: of the left and the right panel.
        names: what the two steps are.
        split: where the ID facts are from.
        path: where to write, without suffix.
    """
    figure = new_figure(9, 4.2)
    for axes, step, name in zip(figure.subplots(1, 2), steps, names, strict=True):
        tensors = AnalysisRecord(record.directory).read(step)
        place, tail, ood = (tensors[f"cosine/{split}/map/{key}"] for key in ("place", "tail", "ood"))
        state = int(tensors[f"cosine/{split}/map/step"])
        for entity, (colour, _) in zip(sorted(set(tail.tolist())), STYLES, strict=False):
            for there, style in ((~ood, {"facecolors": colour}), (ood, {"facecolors": "none", "linewidths": 1.8})):
                chosen = place[(tail == entity) & there]
                label = f"entity {entity}" if style["facecolors"] != "none" else None
                axes.scatter(*chosen.T.tolist(), s=46, edgecolors=colour, label=label, **style)
        axes.set_title(f"{name} (step {step:,}): S[{state}]", fontsize="medium")
        axes.set_xlabel("MDS 1")
        axes.set_ylabel("MDS 2")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    figure.suptitle("States of atomic facts by tail (cosine distances; filled: ID, open: OOD)", fontsize="medium")
    return save(figure, path)


_FOUND = {
    "found/bridge": "bridge found anywhere",
    "found/bridge_distinct": "bridge found where a later step reads",
    "found/bridge_at_slot": "bridge found at the answer slot",
    "found/target": "target found anywhere",
    "found/correct": "answer right",
}


def found_curves(record: RunRecord, path: Path) -> list[Path]:
    """Bridge Found, Target Found and true accuracy of each split over log steps, floors dotted (He et al. 2026, figure
    2, whose "accuracy" is Target Found).
    """
    rows = [row for row in record.rows() if row["name"] in _FOUND and row["step"]]
    splits = list(dict.fromkeys(row["split"] for row in rows))
    figure = new_figure(4.2 * len(splits) + 2.5, 4.2)
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        here = [row for row in rows if row["split"] == split]
        for (name, label), (colour, dashes) in zip(_FOUND.items(), STYLES, strict=False):
            points = [row for row in here if row["name"] == name]
            steps = [row["step"] for row in points]
            axes.plot(steps, [row["value"] for row in points], dashes, color=colour, label=label)
            known = [row for row in points if row["floor"] is not None]
            floor = [row["floor"] for row in known]
            axes.plot([row["step"] for row in known], floor, ":", color=colour, alpha=0.7, linewidth=1.0)
        finish_steps_axis(axes)
        axes.set_ylim(-0.02, 1.02)
        n = max(row["n"] for row in here)
        axes.set_title(f"{split} (n = {n}{', few' if n < _TOO_FEW else ''})", fontsize="medium", pad=26)
        mark_milestones(axes, record.summary() or {}, label=axes is panels[0])
    panels[0].set_ylabel("share of queries (dotted: by chance)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    return save(figure, path)


def fourier_curves(record: RunRecord, path: Path) -> list[Path]:
    """Loss of all, of the key frequencies only, and of all but those, over log steps (Nanda et al. 2023, figure 7)."""
    figure = new_figure(8.5, 4.5)
    axes = figure.subplots()
    shown = (("full", "train"), ("full", "test"), ("restricted", "test"), ("excluded", "train"))
    for (logits, pairs), (colour, dashes) in zip(shown, STYLES, strict=False):
        rows = [row for row in record.rows(f"fourier/loss/{logits}/{pairs}") if row["step"]]
        label = {"full": "loss", "restricted": "restricted loss", "excluded": "excluded loss"}[logits]
        steps, values = [row["step"] for row in rows], [row["value"] for row in rows]
        axes.plot(steps, values, dashes, color=colour, label=f"{label}, {pairs}")
    finish_steps_axis(axes)
    axes.set_yscale("log")
    axes.set_ylabel("cross-entropy")
    mark_milestones(axes, record.summary() or {})
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return save(figure, path)


def draw(run: str | Path) -> list[Path]:
    """All pictures of a run, from its record, into `figures/`; returns the files."""
    record, directory = RunRecord(run), Path(run) / "figures"
    rows = record.rows()
    if not rows:
        raise BadInput(f"{record.metrics_path}: no record to draw")
    files = accuracy_curves(record, directory / "accuracy")
    grids = cells_in(rows)
    if story_grids(grids):
        files += circuit_curves(record, directory / "circuit")
    if record.rows("found/bridge"):
        files += found_curves(record, directory / "found")
    if record.rows("fourier/loss/full/test"):
        files += fourier_curves(record, directory / "fourier")
    if any(row["name"].startswith("loops/accuracy/") for row in rows):
        files += loop_curves(record, directory / "loops")
    for split, circuit in circuits_of(rows).items():
        if any(row["step"] for told in circuit.shares.values() for row in told):
            files += faithfulness_curves(record, circuit, split, directory / f"faithfulness_{split}")
    for kind in ("groups", "measures"):
        for (name, split), curves in curves_of(rows, kind).items():
            if kind == "groups":
                files += group_curves(record, curves, split, directory / f"groups_{split}")
            else:
                files += measure_curves(record, name, curves, split, directory / f"measures_{name}_{split}")
    if probes := [cells for cells in grids if cells.grid.startswith("probes/")]:
        files += probe_curves([record], [probes], directory / "probes")
    cosine = [cells for name in ("cohesion", "alignment") for cells in grids if cells.grid == f"cosine/{name}"]
    if cosine:
        files += phase_curves(record, cosine, directory / "cosine")
    summary = record.summary() or {}
    memorised = summary.get("memorised_step")
    names = ("nearest to memorised" if memorised else "first", "last")
    for cells in grids:
        steps = cells.steps
        before = nearest(steps, memorised)
        name = f"{cells.grid}_{cells.split}".replace("/", "_").replace("@", "_at_")
        files += heat_maps(cells, before, steps[-1], names, directory / name)
        if cells.grid.startswith("semantic/") and (reached := phase_steps(summary, steps)):
            files += phase_panels(cells, reached, directory / f"{name}_by_phase")
        if cells.grid == "cosine/cohesion" and f"cosine/{cells.split}/map/place" in AnalysisRecord(run).read(before):
            files += fact_maps(record, (before, steps[-1]), names, cells.split, directory / f"fact_map_{cells.split}")
    return files
