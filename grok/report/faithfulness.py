"""Pictures of how well a small circuit keeps and takes the accuracy, and of its nodes, over training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from grok.records import RunRecord
from grok.report.style import LEVELS, STYLES, finish_steps_axis, mark_milestones, new_figure, save

__all__ = ["RECORDED", "CircuitRows", "circuits_of", "faithfulness_curves"]

Rows = list[Mapping[str, Any]]

RECORDED = re.compile(
    r"(?P<share>faithfulness|completeness)/\w+/circuit|circuit/nodes|ablation/\w+/changed/(?P<node>.+@.+)"
)
"""Names of the lines of the analysis `faithfulness`."""


@dataclass(frozen=True)
class CircuitRows:
    """Lines of the record about the circuit of one split: shares by name, sizes, and those of each node by label."""

    shares: dict[str, Rows]
    sizes: Rows
    nodes: dict[str, Rows]

    @property
    def ordered(self) -> list[str]:
        """Labels of all nodes that are in the circuit at any step of training, by step of the model and position."""
        return sorted(self.nodes, key=lambda label: (int(label.partition(".")[0]), label.partition("@")[2], label))

    def changed(self, steps: Sequence[int]) -> list[list[float | None]]:
        """Share of answers changed without each node (rows, as `ordered`) at each step; None where it is not in."""
        tables = [{row["step"]: row["value"] for row in self.nodes[label]} for label in self.ordered]
        return [[table.get(step) for step in steps] for table in tables]


def circuits_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, CircuitRows]:
    """What the analysis `faithfulness` has recorded, by split."""
    found: dict[str, CircuitRows] = {}
    for row in rows:
        match = RECORDED.fullmatch(row["name"])
        if match is None or row["split"] is None:
            continue
        here = found.setdefault(row["split"], CircuitRows({}, [], {}))
        if match["share"]:
            here.shares.setdefault(match["share"], []).append(row)
        elif match["node"]:
            here.nodes.setdefault(match["node"], []).append(row)
        else:
            here.sizes.append(row)
    return found


def faithfulness_curves(record: RunRecord, circuit: CircuitRows, split: str, path: Path) -> list[Path]:
    """Faithfulness and completeness over log steps, and below them what each node of the circuit does.

    Args:
        record: of the run.
        circuit: its lines.
        split: whose queries were answered.
        path: where to write, without suffix.
    """
    labels, steps = circuit.ordered, [row["step"] for row in circuit.sizes if row["step"]]
    figure = new_figure(9, 4.2 + 0.2 * len(labels))
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, 0.6 + 0.2 * len(labels)])
    for (name, rows), (colour, dashes) in zip(circuit.shares.items(), STYLES[1:], strict=False):
        shown = [row for row in rows if row["step"]]
        x = [row["step"] for row in shown]
        top.plot(x, [row["value"] for row in shown], dashes, color=colour, label=name)
        top.fill_between(
            x, *([row[end] for row in shown] for end in ("low", "high")), color=colour, alpha=0.15, linewidth=0
        )
        top.plot(x, [row["floor"] for row in shown], ":", color=colour, linewidth=1.0, label=f"floor of {name}")
    top.set_ylabel("share of the accuracy")
    if steps and labels:
        edges = [steps[0] * 0.95, *((a * b) ** 0.5 for a, b in pairwise(steps)), steps[-1] * 1.05]
        values = [[float("nan") if one is None else one for one in row] for row in circuit.changed(steps)]
        image = below.pcolormesh(edges, range(len(labels) + 1), values, cmap=LEVELS, vmin=0, vmax=1)
        below.set_yticks([index + 0.5 for index in range(len(labels))], labels, fontsize="x-small")
        figure.colorbar(image, ax=below, label="answers changed\nwithout the node")
    for axes in (top, below):
        finish_steps_axis(axes, label=axes is below)
        mark_milestones(axes, record.summary() or {}, label=axes is top)
    top.set_ylim(-0.3, 1.3)  # while hardly any answer is right, intervals of shares of them go anywhere
    top.legend(loc="upper left", frameon=False, fontsize="small")
    figure.suptitle(f"The circuit, {split} (blank: the node is not in it)", fontsize="medium")
    return save(figure, path)
