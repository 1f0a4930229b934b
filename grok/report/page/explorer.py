"""What the circuit explorer of the page shows: states, strengths and attention of single queries, step by step.

Shape legend: C checkpoint, N query, S state, T position, K token of the lens, A attention, H head.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grok.analyses import AnalysisRecord
from grok.report.cells import Cells, evenly, title
from grok.report.page.run import Run

__all__ = ["QUERIES", "explorers"]

Read = Mapping[int, Mapping[str, Tensor]]
"""Tensors of `analysis/` by step and name."""

CHECKPOINTS, QUERIES = 60, 100
_LARGEST = 5_000_000  # bytes of all explorers together, so that a page with charts stays below 12 MB
_NO_RANK = 65_535


def explorers(run: Run) -> list[dict[str, Any]]:
    """One explorer for each split that lens, tracing or attention have looked at, as plain data.

    Args:
        run: whose analysis files are read.
    """
    record = AnalysisRecord(run.directory)
    read = {
        step: {key: tensor for key, tensor in record.read(step).items() if key.split("/")[0] in _KINDS}
        for step in evenly(record.steps(), CHECKPOINTS)
    }
    splits = list(dict.fromkeys(key.split("/")[1] for tensors in read.values() for key in tensors))
    found = [_explorer(run, split, read, _LARGEST // len(splits)) for split in splits]
    return [{**one, "tokens": record.token_names()} for one in found if one is not None]


_KINDS = ("lens", "tracing", "attention")


def _explorer(run: Run, split: str, read: Read, largest: int) -> dict[str, Any] | None:
    grids = [cells for cells in run.cells if cells.split == split and cells.grid.split("/")[0] in ("lens", "tracing")]
    if not grids:
        return None
    grids.sort(key=lambda cells: not cells.grid.startswith("lens/"))  # which looks at every position, in order
    rows = dict.fromkeys(row for cells in grids for row in cells.rows)
    states = sorted(rows, key=lambda row: int(row[2 : row.index("]")]))
    positions = list(dict.fromkeys(column for cells in grids for column in cells.columns))
    analysed = [step for step, tensors in read.items() if any(key.split("/")[1] == split for key in tensors)]
    recorded = {step for cells in grids for step in cells.steps}
    steps = [step for step in analysed if step in recorded]
    if not steps:
        return None
    keys = dict.fromkeys(key for step in steps for key in read[step] if key.split("/")[1] == split)
    kind = next(kind for kind in _KINDS if f"{kind}/{split}/inputs" in keys)
    last = next(read[step] for step in reversed(steps) if f"{kind}/{split}/inputs" in read[step])
    queries = last[f"{kind}/{split}/inputs"]
    columns = [key.split("/")[2] for key in keys if key.startswith("lens/") and key.endswith("/rank")]
    count = min(QUERIES, len(queries))
    while True:
        arrays = {key: one for key in keys if (one := _packed(run, key, read, steps, queries[:count])) is not None}
        if sum(len(one["data"]) for one in arrays.values()) <= largest or count == 1:
            break
        count = max(1, count // 2)
    return {
        "split": split, "steps": steps, "states": states, "positions": positions,
        "measures": [_measure(cells, steps) for cells in grids], "count": count, "columns": columns,
        "queries": queries[:count].tolist(), "truth": _truth(last, split, columns, count),
        "arrays": {key.replace(f"/{split}/", "/"): one for key, one in arrays.items()},
    }  # fmt: skip


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
    return None if value is None or not math.isfinite(value) else round(float(value), 4)


def _packed(run: Run, key: str, read: Read, steps: Sequence[int], queries: Tensor) -> dict[str, Any] | None:
    """A per-query tensor at every checkpoint with the names along its axes, or None if they are not known.

    It stands with the steps at which it was made; `of` is, for every checkpoint, the row of the last of them up to
    there, or -1. Analyses may have examined other queries than the first of them: rows go by the tokens.
    """
    kind, split, *rest = key.split("/")
    wanted = {"lens": rest[-1] in ("rank", "top"), "tracing": rest == ["changed"], "attention": rest == ["patterns"]}
    made = [step for step in steps if key in read[step]]
    named = _names(run, kind, split, read[made[-1]][key].shape) if wanted[kind] else None
    alike = [step for step in made if read[step][key].shape[1:] == read[made[-1]][key].shape[1:]]
    if named is None:
        return None
    found = [_of_queries(read[step][key], read[step][f"{kind}/{split}/inputs"], queries) for step in alike]
    stack, known = torch.stack([one for one, _ in found]), torch.stack([there for _, there in found])
    missing = ~known.view(*known.shape, *(1,) * (stack.ndim - 2))
    if kind == "lens":
        packed, type_ = torch.where((stack < 0) | missing, _NO_RANK, stack.clamp(max=_NO_RANK - 1)), "uint16"
    else:
        shares = (stack.float().nan_to_num() * 200).round().clamp(0, 200)
        packed, type_ = torch.where(stack.isnan() | missing, 255, shares), "uint8"
    rows = [sum(one <= step for one in alike) - 1 for step in steps]
    return named | {
        "shape": list(stack.shape),
        "type": type_,
        "of": rows,
        "steps": alike,
        "data": _base64(packed, type_),
    }


def _of_queries(values: Tensor, inputs: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `values` `[N, …]` that belong to `queries` `[M, T]`, and whether there is one `[M]`."""
    place = {tuple(row): index for index, row in reversed(list(enumerate(inputs.tolist())))}
    rows = torch.tensor([place.get(tuple(query), -1) for query in queries.tolist()])
    return values[rows], rows >= 0


def _names(run: Run, kind: str, split: str, shape: Sequence[int]) -> dict[str, Any] | None:
    """Names along the axes of a tensor, as the grids of the record have them."""
    mine = [cells for cells in run.cells if cells.split == split and cells.grid.startswith(f"{kind}/")]
    if kind == "attention":
        lens = [cells.columns for cells in run.cells if cells.split == split and cells.grid.startswith("lens/")]
        heads = next((list(one.rows) for one in mine if len(one.rows) == shape[1] * shape[2]), None)
        places = next((list(one) for one in [*lens, *(one.columns for one in mine)] if len(one) == shape[4]), None)
        return None if heads is None or places is None else {"heads": heads, "columns": places}
    for cells in mine:
        if (len(cells.rows), len(cells.columns)) == tuple(shape[1:3]):
            return {"rows": list(cells.rows), "columns": list(cells.columns)}
    return None


def _base64(values: Tensor, kind: str) -> str:
    """Little-endian numbers as text; 255 in bytes and 65,535 in pairs of them stand for none."""
    numbers = values.to(torch.int64).numpy().astype("<u2" if kind == "uint16" else "u1")
    return base64.b64encode(numbers.tobytes()).decode()


def _truth(tensors: Mapping[str, Tensor], split: str, columns: Sequence[str], count: int) -> dict[str, list[list[int]]]:
    """Tokens of each column of ground truth for every query, where the record has them."""
    found = {column: tensors.get(f"lens/{split}/{column}/token") for column in columns}
    return {column: tokens[:count].tolist() for column, tokens in found.items() if tokens is not None}
