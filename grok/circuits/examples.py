"""Which queries are examined, and the ground truth that is looked for in them.

Shape legend: N query, T position, M token of a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from grok.data.keyed import POSITIVE, keyed_hash
from grok.data.knowledge_graph import keyed_sample
from grok.data.split import Split
from grok.errors import BadInput, Problem, insist
from grok.models import StepModel

__all__ = [
    "EXAMPLES", "analysing", "by_stream", "choose_examples", "column", "columns", "position_index", "state_names",
    "step_range",
]  # fmt: skip

EXAMPLES = 300
"""Queries examined unless asked otherwise (Wang et al. 2024)."""


@contextmanager
def analysing(model: StepModel) -> Iterator[torch.device]:
    """Evaluation mode without gradients, as it was afterwards; gives the device of the model."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def choose_examples(split: Split, count: int | None = None, seed: int = 0, name: str = "the split") -> Split:
    """`count` random queries of `split`, the same for every checkpoint; None means 300, or all if there are fewer.

    Raises:
        BadInput: if the split holds fewer than asked.
    """
    if count is not None and count > len(split):
        insist([Problem("examples", count, f"{name} has {len(split)} queries: use at most as many, or null for all")])
    hashes = keyed_hash("example", seed, torch.arange(len(split))) & POSITIVE
    rows = keyed_sample(min(EXAMPLES if count is None else count, len(split)), hashes)
    return split.take(rows.sort().values.to(split.inputs.device))


def columns(split: Split) -> list[str]:
    """Names of all ground truth that `column` can give: the answer, the tokens shown, token columns of the truth."""
    known = [name for name in split.truth if name not in ("facts", "ood")]
    return ["answer", *known, *(name for name in split.positions if name not in known)]


def column(split: Split, name: str) -> Tensor:
    """Tokens `[N, M]` to look for: `answer`, a position's own token (`r2`), a truth column (`bridge`), or one entry of
    it (`bridge[0]`). -1 where a query has none.

    Raises:
        BadInput: if the split has no such ground truth, naming what it has.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+)\])?", name)
    base, entry = (match[1], match[2]) if match else (name, None)
    if split.targets.is_floating_point():
        raise BadInput(
            Problem("columns", name, "this split's answers are values, not tokens: there is nothing to rank")
        )
    if base == "answer":
        tokens = split.targets[:, :1]
    elif base in split.truth and base not in ("facts", "ood"):
        tokens = split.truth[base].view(len(split), -1)
    elif base in split.positions:
        index = split.positions.index(base)
        tokens = split.inputs[:, index : index + 1]
    else:
        raise BadInput(
            Problem("columns", name, f"no such ground truth in this split; it has {', '.join(columns(split))}")
        )
    if entry is not None:
        if int(entry) >= tokens.shape[1]:
            raise BadInput(Problem("columns", name, f"{base} has {tokens.shape[1]} entries, counted from 0"))
        tokens = tokens[:, int(entry) : int(entry) + 1]
    if len(tokens) and bool((tokens < 0).all()):
        raise BadInput(Problem("columns", name, "no query of this split has one (an atomic query has no bridge)"))
    return tokens


def position_index(split: Split, position: str | int) -> int:
    """Index of a position given by name or number.

    Raises:
        BadInput: if there is no such position, naming those that exist.
    """
    if isinstance(position, int) and -len(split.positions) <= position < len(split.positions):
        return position % len(split.positions)
    if position in split.positions:
        return split.positions.index(str(position))
    names = ", ".join(split.positions)
    raise BadInput(Problem("position", position, f"no such position; this split has {names}"))


def step_range(model: StepModel, steps: Sequence[int] | None, last: int | None = None) -> list[int]:
    """The states S[i] asked for, ascending; None means all from the embedding S[0] to S[`last`] (by default the last).

    Raises:
        BadInput: if a state does not exist, naming those that do.
    """
    last = len(model.steps) if last is None else last
    if not 0 <= last <= len(model.steps):
        raise BadInput(Problem("steps", last, f"no such state; this model has S[0] to S[{len(model.steps)}]"))
    chosen = list(range(last + 1)) if steps is None else sorted(set(steps))
    wrong = [step for step in chosen if not 0 <= step <= last]
    if wrong or not chosen:
        raise BadInput(Problem("steps", wrong or chosen, f"no such state; use S[0] to S[{last}]"))
    return chosen


def by_stream(model: StepModel, steps: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Every stream of every state by itself, as i and stream of each; no streams if the model has only one."""
    if len(model.streams) == 1:
        return tuple(steps), ()
    return tuple(i for i in steps for _ in model.streams), tuple(model.streams) * len(steps)


def state_names(steps: Sequence[int], streams: Sequence[str] = ()) -> tuple[str, ...]:
    """`S[3]`, or `S[3].z_H` where streams are told apart."""
    if not streams:
        return tuple(f"S[{step}]" for step in steps)
    return tuple(f"S[{step}].{stream}" for step, stream in zip(steps, streams, strict=True))
