"""Which saved step of a finished run a milestone stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grok.errors import BadInput

__all__ = ["BRIDGE_READABLE", "MILESTONES", "bridge_step", "series_step"]

MILESTONES = ("last", "before_memorised", "memorised", "bridge", "grokked")
"""Names of steps: the end, before and when the training queries were answered, when the bridge could be read out of a
state on held-out queries, when the first held-out split was answered."""

BRIDGE_READABLE = 0.9
"""Mean reciprocal rank of the bridge under the logit lens from which it counts as readable: for nine queries out of ten
it is then, as a rule, on top of the whole vocabulary."""

_BRIDGE = re.compile(r"lens/mrr/bridge/S\[(\d+),[^\]]+\]")
_USUAL = "test_inferred_iid"


def bridge_step(rows: Iterable[Mapping[str, Any]], held_out: Sequence[str] = ()) -> int | None:
    """First step at which the bridge could be read, on held-out queries, out of a state that later steps read.

    That is any state but the embedding and the last one: nothing reads the last state at r1, in which a causal model
    that is trained on atomic facts says the bridge as their answer.

    Args:
        rows: the lines of `metrics.jsonl`.
        held_out: held-out splits, most important first, for regimes that have no `test_inferred_iid`.

    Raises:
        BadInput: if the lens has not looked for a bridge.
    """
    lens = [(int(match[1]), row) for row in rows if (match := _BRIDGE.fullmatch(row["name"]))]
    split = next((one for one in (_USUAL, *held_out) if any(row["split"] == one for _, row in lens)), None)
    if split is None:
        raise BadInput("no lens on held-out queries in its record; `grok trace RUN --lens.enabled true` adds it")
    last = max(state for state, _ in lens)
    steps = (
        row["step"]
        for state, row in lens
        if 0 < state < last and row["split"] == split and row["value"] >= BRIDGE_READABLE
    )
    return min(steps, default=None)


def series_step(
    wanted: int | str, saved: Sequence[int], summary: Mapping[str, Any], rows: Iterable[Mapping[str, Any]] = ()
) -> int:
    """The saved step that is meant by `wanted`.

    Args:
        wanted: a saved step, or one of `MILESTONES`. `before_memorised` is the saved step nearest to half the memorised
            step, never step 0, at which nothing has been learnt; `last` the last; the others the first at or after it.
        saved: steps of the checkpoint series, in order.
        summary: `summary.json` of the run.
        rows: the lines of its `metrics.jsonl`; only `bridge` looks at them.

    Raises:
        BadInput: if that step was not saved, naming the nearest ones, or the milestone was never reached.
    """
    if not saved:
        raise BadInput("its checkpoint series is empty")
    if isinstance(wanted, int):
        return _exactly(wanted, saved)
    if wanted == "last":
        return saved[-1]
    step = _step_of(wanted, summary, rows)
    if step is None:
        raise BadInput("it never got there")
    if wanted == "before_memorised":
        before = [one for one in saved if 0 < one < step]
        if not before:
            raise BadInput(f"memorised at step {step:,}, and nothing was saved between step 0 and that")
        return min(before, key=lambda one: abs(one - step / 2))
    after = next((one for one in saved if one >= step), None)
    if after is None:
        raise BadInput(f"reached at step {step:,}, and nothing was saved from there on")
    return after


def _exactly(step: int, saved: Sequence[int]) -> int:
    if step not in saved:
        nearest = sorted(sorted(saved, key=lambda one: abs(one - step))[:2])
        raise BadInput(f"not saved; the nearest saved steps are {' and '.join(map(str, nearest))}")
    return step


def _step_of(milestone: str, summary: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> int | None:
    grokked: Mapping[str, int | None] = summary.get("grok_step") or {}
    if milestone == "bridge":
        return bridge_step(rows, list(grokked))
    return next(iter(grokked.values()), None) if milestone == "grokked" else summary.get("memorised_step")
