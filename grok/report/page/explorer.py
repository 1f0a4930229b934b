"""What the circuit explorer of the page shows: states, strengths and attention of single queries, step by step.

Shape legend: C checkpoint, N query, S state, T position, K token of the lens, A attention, H head.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grok.analyses import AnalysisRecord
from grok.report.cells import Cells, title
from grok.report.page.run import Run

__all__ = ["QUERIES", "explorers"]

CHECKPOINTS, QUERIES = 60, 100
_LARGEST = 6_000_000  # bytes of one explorer, so that a page with several stays below 12 MB
_NO_RANK = 65_535


def explorers(run: Run) -> list[dict[str, Any]]:
    """One explorer for each split that lens, tracing or attention have looked at, as plain data.

    Args:
        run: whose analysis files are read.
    """
    record = AnalysisRecord(run.directory)
    steps = _spread(record.steps())
    if not steps:
        return []
    read = {step: record.read(step) for step in steps}
    splits = dict.fromkeys(
        key.split("/")[1] for tensors in read.values() for key in tensors if key.split("/")[0] in _KINDS
    )
    found = [_explorer(run, split, read) for split in splits]
    return [{**one, "tokens": record.token_names()} for one in found if one is not None]


_KINDS = ("lens", "tracing", "attention")


def _explorer(run: Run, split: str, read: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Any] | None:
    grids = [cells for cells in run.cells if cells.split == split and cells.grid.split("/")[0] in ("lens", "tracing")]
    if not grids:
        return None
    lens = next((cells for cells in grids if cells.grid.startswith("lens/")), None)
    shape = lens or grids[0]
    steps = [step for step, tensors in read.items() if any(key.split("/")[1] == split for key in tensors)]
    steps = [step for step in steps if step in shape.steps]
    inputs = next(
        read[steps[-1]][f"{kind}/{split}/inputs"] for kind in _KINDS if f"{kind}/{split}/inputs" in read[steps[-1]]
    )
    heads = next(
        (list(cells.rows) for cells in run.cells if (cells.grid, cells.split) == ("attention/mass", split)), []
    )
    told: dict[str, Any] = {
        "split": split, "heads": heads, "steps": steps, "states": list(shape.rows), "positions": list(shape.columns),
        "measures": [_measure(cells, steps) for cells in grids],
    }  # fmt: skip
    count = min(QUERIES, len(inputs))
    while True:
        arrays = _arrays(read, split, steps, count)
        size = sum(len(one["data"]) for one in arrays.values())
        if size <= _LARGEST or count == 1:
            break
        count = max(1, count // 2)
    columns = [
        key.split("/")[2] for key in read[steps[-1]] if key.startswith(f"lens/{split}/") and key.endswith("/rank")
    ]
    return told | {"count": count, "queries": inputs[:count].tolist(), "columns": columns, "arrays": arrays,
                   "truth": _truth(read[steps[-1]], split, columns, count)}  # fmt: skip


def _measure(cells: Cells, steps: Sequence[int]) -> dict[str, Any]:
    """Means over all examined queries, `[C][S][T]`, with floors, for the averaged view."""

    def table(step: int, key: str) -> list[list[float | None]]:
        return [
            [_number(cells.values.get((step, row, column), {}).get(key)) for column in cells.columns]
            for row in cells.rows
        ]

    return {
        "name": cells.grid, "title": title(cells.grid), "rows": list(cells.rows), "columns": list(cells.columns),
        "values": [table(step, "value") for step in steps], "floors": [table(step, "floor") for step in steps],
        "low": [table(step, "low") for step in steps], "high": [table(step, "high") for step in steps],
        "n": max((int(cell["n"] or 0) for cell in cells.values.values()), default=0),
    }  # fmt: skip


def _number(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def _arrays(read: Mapping[int, Mapping[str, Tensor]], split: str, steps: Sequence[int], count: int) -> dict[str, Any]:
    """Per-query tensors, packed: `lens/…/rank`, `lens/top`, `tracing/changed`, `attention/patterns`.

    An analysis that was made less often stands with the steps at which it was made; `of` is, for every checkpoint, the
    row of the last of them up to there.
    """
    found = {}
    for key in read[steps[-1]]:
        kind, of, *rest = key.split("/")
        name = "/".join([kind, *rest])
        wanted = rest[-1] in ("rank", "top") if kind == "lens" else name in ("tracing/changed", "attention/patterns")
        if of != split or not wanted:
            continue
        made = [step for step in steps if key in read[step]]
        stack = torch.stack([read[step][key][:count] for step in made])
        if kind == "lens":
            packed, kind_of = torch.where(stack < 0, _NO_RANK, stack.clamp(max=_NO_RANK - 1)), "uint16"
        else:
            packed, kind_of = torch.where(stack.isnan(), 255, (stack.float() * 200).round().clamp(0, 200)), "uint8"
        rows = [max(0, sum(one <= step for one in made) - 1) for step in steps]
        found[name] = {"shape": list(stack.shape), "type": kind_of, "of": rows, "data": _base64(packed, kind_of)}
    return found


def _base64(values: Tensor, kind: str) -> str:
    """Little-endian numbers as text; 255 in bytes and 65,535 in pairs of them stand for none."""
    numbers = values.to(torch.int64).numpy().astype("<u2" if kind == "uint16" else "u1")
    return base64.b64encode(numbers.tobytes()).decode()


def _truth(tensors: Mapping[str, Tensor], split: str, columns: Sequence[str], count: int) -> dict[str, list[list[int]]]:
    """Tokens of each column of ground truth for every query, where the record has them."""
    found = {column: tensors.get(f"lens/{split}/{column}/token") for column in columns}
    return {column: tokens[:count].tolist() for column, tokens in found.items() if tokens is not None}


def _spread(steps: Sequence[int]) -> list[int]:
    """At most `CHECKPOINTS` of the steps, the first and the last among them."""
    if len(steps) <= CHECKPOINTS:
        return list(steps)
    return sorted({steps[round(i * (len(steps) - 1) / (CHECKPOINTS - 1))] for i in range(CHECKPOINTS)})
