"""What compute bought: FLOPs and hours to each milestone, and the answer to "was the wait worthwhile?"."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from grok.verdict.claims import ANSWERED, FINE_TUNED, ID, NEW_OLD, OOD, VISIBLE
from grok.verdict.curves import Curve, Spread
from grok.verdict.experiment import SCRATCH, Experiment, Run

__all__ = ["MILESTONES", "Purchase", "answer", "purchases", "spelled", "spent"]

MEMORISED = "train_inferred"

LEVELS = {
    "memorised (training 95 %)": (MEMORISED, 0.95),
    "ID 50 %": (ID, 0.5),
    "ID 95 %": (ID, 0.95),
    "OOD 50 %": (OOD, 0.5),
    "OOD 95 %": (OOD, 0.95),
}
"""Milestones that are levels of an accuracy: split and level."""

MILESTONES: dict[str, Callable[[Run], int | None]] = {
    "memorised (training 95 %)": lambda run: run.curve("accuracy", MEMORISED).first(0.95),
    "bridge of ID queries there": lambda run: run.bridge(ID).first(VISIBLE),
    "ID 50 %": lambda run: run.curve("accuracy", ID).first(0.5),
    "ID 95 %": lambda run: run.curve("accuracy", ID).first(0.95),
    "bridge of OOD queries there": lambda run: run.bridge(OOD).first(VISIBLE),
    "OOD 50 %": lambda run: run.curve("accuracy", OOD).first(0.5),
    "OOD 95 %": lambda run: run.curve("accuracy", OOD).first(0.95),
    "end": lambda run: int(run.summary["step"]),
}
"""Milestones of pre-training and the step at which a run got there (None: never)."""


def spelled(flops: float) -> str:
    """FLOPs with a prefix: `3.1 TFLOP`."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOP"
    return f"{flops:.3g} FLOP"


def spent(experiment: Experiment, model: str, regime: str) -> list[tuple[float, float]]:
    """FLOPs (of pre-training and fine-tuning) and final new+old accuracy of each starting point: medians over seeds."""
    points = []
    for start in experiment.starts(model):
        runs = experiment.select(model, regime, start)
        flops = Spread(tuple(run.flops(run.summary["step"]) for run in runs))
        value = Spread(tuple(run.curve("accuracy", NEW_OLD).final for run in runs))
        if runs and not math.isnan(value.median):
            points.append((flops.median, value.median))
    return sorted(points)


@dataclass(frozen=True)
class Purchase:
    """What one stretch of pre-training cost and bought, medians over seeds.

    Args:
        begins: milestone at which it begins.
        ends: milestone at which it ends.
        share: of the whole run's steps.
        flops: spent in it.
        known: what it added to the accuracy on held-out ID queries.
        ood: the same for OOD queries.
    """

    begins: str
    ends: str
    share: float
    flops: float
    known: float
    ood: float


_STRETCHES = ("start", "memorised (training 95 %)", "ID 95 %", "end")


def purchases(experiment: Experiment, model: str, regime: str) -> Iterator[Purchase]:
    """Stretches of pre-training between milestones that all seeds reached."""
    runs = experiment.select(model, regime)

    def step(run: Run, name: str) -> int | None:
        return 0 if name == "start" else MILESTONES[name](run)

    reached = [name for name in _STRETCHES if all(step(run, name) is not None for run in runs)]
    for begins, ends in itertools.pairwise(reached):

        def over(measure: Callable[[Run, int], float], begins: str = begins, ends: str = ends) -> float:
            return Spread(
                tuple(measure(run, step(run, ends) or 0) - measure(run, step(run, begins) or 0) for run in runs)
            ).median

        yield Purchase(
            begins,
            ends,
            over(lambda run, at: at / run.summary["step"]),
            over(lambda run, at: run.flops(at) or 0.0),
            over(lambda run, at: _gained(run.curve("accuracy", ID), at)),
            over(lambda run, at: _gained(run.curve("accuracy", OOD), at)),
        )


def _gained(curve: Curve, step: int) -> float:
    return 0.0 if step == 0 else curve.at(step)


def answer(experiment: Experiment, model: str) -> Iterator[str]:
    """The title's question in plain words, sentence by sentence, each from numbers of the experiment."""
    natural = experiment.select(model, "natural")
    if natural:
        yield _waiting(natural)
    if natural and (exposed := experiment.select(model, "both_full")):
        yield _against_exposure(natural, exposed)
    yield from _for_transfer(experiment, model)


def _waiting(runs: list[Run]) -> str:
    share = Spread(tuple(_after_memorising(run) for run in runs)).median
    if math.isnan(share):
        return "Without exposure nothing was memorised in the steps trained, so that there is no wait to judge."
    at, end = (
        {
            split: Spread(tuple(run.curve("accuracy", split).at(MILESTONES[name](run)) for run in runs)).median
            for split in (ID, OOD)
        }
        for name in ("memorised (training 95 %)", "end")
    )
    return (
        f"Without exposure, {share:.0%} of the compute was spent after the training queries were memorised; it raised "
        f"held-out ID queries from {at[ID]:.0%} to {end[ID]:.0%} and OOD queries from {at[OOD]:.0%} to {end[OOD]:.0%}."
    )


def _after_memorising(run: Run) -> float | None:
    step = run.curve("accuracy", MEMORISED).first(0.95)
    return None if step is None else 1 - step / run.summary["step"]


def _against_exposure(natural: list[Run], exposed: list[Run]) -> str:
    reached = max(0.0, Spread(tuple(run.curve("accuracy", OOD).highest for run in natural)).median)
    steps = Spread(tuple(run.curve("accuracy", OOD).first(reached) for run in exposed))
    flops = Spread(tuple(run.flops(run.curve("accuracy", OOD).first(reached)) for run in exposed))
    waited = Spread(tuple(run.flops(run.curve("accuracy", OOD).first(reached)) for run in natural)).median
    whole = Spread(tuple(run.flops(run.summary["step"]) for run in natural)).median
    spend = whole if math.isnan(waited) else waited
    if reached < ANSWERED / 5:
        return (
            f"Waiting alone answered at most {reached:.0%} of OOD queries: there is nothing to compare exposure with."
        )
    if not steps.known or not flops.known:
        return f"Exposure of both hops did not reach the {reached:.0%} of OOD queries that waiting did."
    compared = spend / flops.median
    told = f"{compared:.1f} times less" if compared >= 1 else f"{1 / compared:.1f} times more"
    return (
        f"The best that waiting reached on OOD queries, {reached:.0%}, training compositions of the OOD facts reached "
        f"at step {steps.median:,.0f}, with {spelled(flops.median)} instead of {spelled(spend)}: {told}."
    )


def _for_transfer(experiment: Experiment, model: str) -> Iterator[str]:
    for regime in experiment.regimes(model, FINE_TUNED):
        values = {
            start: Spread(
                tuple(run.curve("accuracy", NEW_OLD).final for run in experiment.select(model, regime, start))
            )
            for start in (SCRATCH, "memorised", FINE_TUNED)
        }
        if regime in ("natural", "both_full") and all(value.known for value in values.values()):
            scratch, early, late = (values[start].median for start in (SCRATCH, "memorised", FINE_TUNED))
            yield (
                f"For new facts as first hops (*{regime}*), fine-tuning ends at {late:.0%} from the end of the run, "
                f"at {early:.0%} from where it had memorised and at {scratch:.0%} from scratch: the wait bought "
                f"{100 * (late - early):+.0f} points."
            )
