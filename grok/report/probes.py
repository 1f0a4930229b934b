"""Pictures of linear probes: how well each state can be read out, over training (Wang et al. 2024, figure 8b)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grok.records import RunRecord
from grok.report.cells import Cells, title
from grok.report.style import STYLES, band, finish_steps_axis, mark_milestones, new_figure, save, state_colours

__all__ = ["probe_curves"]


def probe_curves(records: Sequence[RunRecord], probes: Sequence[Sequence[Cells]], path: Path) -> list[Path]:
    """Accuracy of the answers (of the probed split, and the first held-out one), then that of every probe on queries
    that it was not trained on, over the same log steps.

    One line per state S[i, p], p being the position that the story is about; the floor, probes of shuffled labels, is
    dotted. Of several runs the mean, and a band from the lowest to the highest.

    Args:
        records: runs, usually one.
        probes: the `probes/…` grids of each run, the same ones in the same order.
        path: where to write, without suffix.
    """
    shown = [list(runs) for runs in zip(*probes, strict=True)]
    figure = new_figure(8.5, 2.2 + 2.4 * len(shown))
    panels = figure.subplots(1 + len(shown), 1, sharex=True)
    held_out = list((records[0].summary() or {}).get("grok_step", {}))[:1]
    for split, (colour, dashes) in zip(dict.fromkeys([shown[0][0].split, *held_out]), STYLES, strict=False):
        rows = [[row for row in record.rows("accuracy") if row["split"] == split] for record in records]
        curves = [([row["step"] for row in run], [row["value"] for row in run]) for run in rows]
        band(panels[0], curves, colour, dashes, split)
    panels[0].set_ylabel("accuracy of answers", fontsize="small")
    for axes, runs in zip(panels[1:], shown, strict=True):
        rows, column = runs[0].rows, runs[0].story_column
        for row, colour in zip(rows, state_colours(len(rows)), strict=True):
            band(axes, [cells.curve(row, column) for cells in runs], colour, "-", row.replace("]", f", {column}]"))
            band(axes, [cells.curve(row, column, "floor") for cells in runs], colour, ":", None)
        told = title(runs[0].grid).replace("held-out accuracy of a linear probe for the", "probe:")
        axes.set_ylabel(f"{told}\n{runs[0].split}", fontsize="small")
    for axes in panels:
        axes.set_ylim(-0.02, 1.02)
        finish_steps_axis(axes, label=axes is panels[-1])
        mark_milestones(axes, records[0].summary() or {} if len(records) == 1 else {}, label=axes is panels[0])
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return save(figure, path)
