"""Where the runs of a sweep are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grok.errors import BadInput
from grok.sweep.plan import Line, Sweep
from grok.sweep.worker import has_failed, is_running, last_status

__all__ = ["STATES", "Report", "duration", "report", "reports", "status_lines"]

STATES = ("waiting", "blocked", "running", "stopped", "failed", "done")
"""A run is blocked while the one that it starts from has failed."""


@dataclass(frozen=True)
class Report:
    """How far a run is.

    `state` is one of `STATES`, `step` of `max_steps` optimizer steps as of the last evaluation, `grok_step` that of
    the first held-out split.
    """

    line: Line
    state: str
    max_steps: int | None
    status: int | None
    summary: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps as of the last evaluation."""
        return int(self.summary.get("step", 0))

    @property
    def memorised_step(self) -> int | None:
        """First step at which the training queries were answered."""
        return self.summary.get("memorised_step")

    @property
    def grok_step(self) -> int | None:
        """First step at which the first held-out split was answered."""
        steps: Mapping[str, int | None] = self.summary.get("grok_step") or {}
        return next(iter(steps.values()), None)

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimizer steps in which every training query comes once; None if queries are made as the run trains."""
        return self.summary.get("steps_per_epoch")

    @property
    def grok_epoch(self) -> float | None:
        """Epoch at which the first held-out split was answered."""
        step, epoch = self.grok_step, self.steps_per_epoch
        return None if step is None or not epoch else step / epoch

    @property
    def accuracy(self) -> Mapping[str, float | None]:
        """Accuracy of every split at the last evaluation."""
        return self.summary.get("accuracy") or {}

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step, at the pace so far; None if it does not run or the pace is unknown."""
        wall, step = self.summary.get("wall_seconds"), self.step
        if self.state != "running" or not wall or not step or not self.max_steps:
            return None
        return float(wall) / step * max(0, self.max_steps - step)

    @property
    def told(self) -> str:
        """Milestones in a few words."""
        memorised = "not memorised" if self.memorised_step is None else f"memorised {self.memorised_step:,}"
        return f"{memorised}, {'not grokked' if self.grok_step is None else f'grokked {self.grok_step:,}'}"


def report(sweep: Sweep, line: Line) -> Report:
    """How far one run is."""
    status, summary = last_status(sweep, line), None
    try:
        summary = sweep.record(line).summary()
    except BadInput:
        state = "failed"  # the log says more
    else:
        state = _state(sweep, line, summary or {})
    return Report(line, state, sweep.value(line, "trainer.max_steps"), status, summary or {})


def _state(sweep: Sweep, line: Line, summary: Mapping[str, Any]) -> str:
    if summary.get("finished"):
        return "done"
    if is_running(sweep, line):
        return "running"
    if has_failed(sweep, line):
        return "failed"
    if sweep.record(line).has_begun():
        return "stopped"
    source = sweep.source(line)
    return "waiting" if source is None or not has_failed(sweep, source) else "blocked"


def reports(sweep: Sweep) -> list[Report]:
    """How far all runs are."""
    return [report(sweep, line) for line in sweep.lines]


def status_lines(found: Sequence[Report], shown: Sequence[Report]) -> Iterator[str]:
    """Counts over all runs, then a table of the runs `shown`."""
    counts = Counter(one.state for one in found)
    yield f"{len(found)} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    memorised, grokked = (sum(step is not None for step in steps) for steps in (
        [one.memorised_step for one in found], [one.grok_step for one in found]
    ))  # fmt: skip
    yield f"{memorised} have memorised, {grokked} have grokked"
    if not shown:
        return
    width = max(len(one.line.name) for one in shown)
    columns = f"{'step':>17} {'memorised':>9} {'grokked':>9} {'train':>7} {'held out':>8}  time left"
    yield f"{'':>5}  {'run':<{width}}  {'state':<8} {columns}"
    for one in shown:
        steps = f"{one.step:,} / {one.max_steps:,}" if one.max_steps else f"{one.step:,}"
        train, held_out = _shown_splits(one)
        milestones = f"{_number(one.memorised_step):>9} {_number(one.grok_step):>9}"
        shares = f"{_share(train):>7} {_share(held_out):>8}  {duration(one.seconds_left)}"
        run = f"{one.line.index:>5}  {one.line.name:<{width}}  {one.state:<8}"
        yield f"{run} {steps:>17} {milestones} {shares}".rstrip()


def _shown_splits(one: Report) -> tuple[float | None, float | None]:
    """Accuracy of the training split and of the first held-out one."""
    held_out = next(iter(one.summary.get("grok_step") or {}), None)
    train = next((split for split in one.accuracy if split.startswith("train")), None)
    return one.accuracy.get(train or ""), one.accuracy.get(held_out or "")


def _number(step: int | None) -> str:
    return "–" if step is None else f"{step:,}"


def _share(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{100 * accuracy:.1f} %"


def duration(seconds: float | None) -> str:
    """Seconds as a person says it."""
    if seconds is None:
        return ""
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
