"""Which saved step of a finished run a milestone stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grok.errors import BadInput

__all__ = ["BRIDGE_DECIDES", "BRIDGE_READABLE", "MILESTONES", "bridge_step", "series_step"]

MILESTONES = ("last", "before_memorised", "memorised", "bridge", "grokked")
"""Names of steps: the end, before and when the training queries were answered, when a state carried the bridge of
held-out queries, when the first held-out split was answered."""

BRIDGE_READABLE = 0.9
"""Mean reciprocal rank of the bridge under the logit lens from which it counts as readable: for nine queries out of ten
it is then, as a rule, on top of the whole vocabulary."""

BRIDGE_DECIDES = 0.5
"""Strength above its floor from which a state counts as deciding the answer."""

_LENS = re.compile(r"lens/mrr/bridge/(S\[\d+,[^\]]+\])")
_STRENGTH = re.compile(r"tracing/changed/(S\[\d+,[^\]]+\])")
_USUAL = "test_inferred_iid"


def bridge_step(rows: Iterable[Mapping[str, Any]], held_out: Sequence[str] = ()) -> int | None:
    """First step at which a state carries the bridge of held-out queries: it is readable there and decides the answer.

    Readable alone says little: a model that is trained on atomic facts says the bridge at r1, as the answer to h r1,
    long before it composes. What decides is what changes answers more when the bridge is another than when it is not.

    Args:
        rows: the lines of `metrics.jsonl`.
        held_out: held-out splits, most important first, for regimes that have no `test_inferred_iid`.

    Raises:
        BadInput: if lens and tracing have not looked for a bridge.
    """
    readable, deciding = set(), set()
    looked: dict[str, set[str]] = {"lens": set(), "tracing": set()}
    for row in rows:
        if match := _LENS.fullmatch(row["name"]):
            looked["lens"].add(row["split"])
            if row["value"] >= BRIDGE_READABLE:
                readable.add((row["split"], row["step"], match[1]))
        elif match := _STRENGTH.fullmatch(row["name"]):
            looked["tracing"].add(row["split"])
            if row["value"] - (row["floor"] or 0.0) >= BRIDGE_DECIDES:
                deciding.add((row["split"], row["step"], match[1]))
    both = looked["lens"] & looked["tracing"]
    split = next((one for one in (_USUAL, *held_out) if one in both), None)
    if split is None:
        fix = "`grok trace RUN --lens.enabled true --tracing.enabled true` adds them"
        raise BadInput(f"no lens and no tracing on held-out queries in its record; {fix}")
    return min((step for where, step, _ in readable & deciding if where == split), default=None)


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
