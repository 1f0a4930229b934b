"""The three claims of He et al. 2026 (arXiv 2601.09049), each as checks that a rule decides, seed by seed.

Every check says its rule in words, which the page prints; the numbers in it are the constants below. The same rules are
applied to the published curves where those hold what a rule needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from grok.milestones import BRIDGE_DECIDES, BRIDGE_READABLE
from grok.verdict.curves import Curve, Spread
from grok.verdict.experiment import SCRATCH, Experiment, Run, by_seed
from grok.verdict.published import finetuned, pretrained

__all__ = ["FINE_TUNED", "ID", "MATURE", "NEW_NEW", "NEW_OLD", "OLD_NEW", "OOD", "Check", "Claim", "claims"]

ID, OOD = "test_inferred_iid", "test_inferred_ood"
NEW_OLD, OLD_NEW, NEW_NEW = "test_inferred_new_old", "test_inferred_old_new", "test_inferred_new_new"

ANSWERED, VISIBLE, HIDDEN = 0.5, BRIDGE_READABLE, 0.5
"""Accuracy that counts as answered; MRR of the bridge where it is read (chance taken away) that counts as there, and
below which it is not."""

FAKE = 0.75
"""Accuracy on OOD queries that counts as behavioural grokking without a circuit, where the bridge is hidden."""

TOGETHER = 1.5
"""OOD queries are answered *together* with ID ones if they need at most so many times their steps."""

DECISIVE = BRIDGE_DECIDES
"""Strength above its floor from which a state decides the answer."""

TRANSFERS, FAILS, APART = 0.9, 0.2, 0.3
"""Accuracy of a transfer that works, and of one that does not; distance that makes two accuracies different."""

MAJORITY = 2 / 3
"""Share of seeds in which the core of a claim must pass."""

MATURE = ("natural", "both_full", "hop1_full")
"""Regimes whose models have the whole circuit at the end, by He et al. 2026 (section 5.2)."""

FINE_TUNED = "last"
"""Starting point by which claim 3 is judged: the end of pre-training."""

Outcome = bool | None
"""Of a check in one seed; None where the runs do not hold what it needs."""


Role = Literal["core", "caveat", "beside"]


@dataclass(frozen=True)
class Check:
    """One rule.

    Args:
        rule: in words.
        role: the claim falls with a `core` check; a `caveat` limits it; what is `beside` is told and does not count.
        outcomes: of each seed.
        told: what was measured.
        published: what the published curves say by the same rule; empty if they cannot say anything.
    """

    rule: str
    role: Role
    outcomes: tuple[Outcome, ...]
    told: str
    published: str = ""

    @property
    def known(self) -> list[bool]:
        """Outcomes of the seeds that have one."""
        return [outcome for outcome in self.outcomes if outcome is not None]

    @property
    def passes(self) -> Outcome:
        """Whether it passes in enough of the seeds that can tell; None if too few can."""
        if not self.known or len(self.known) < MAJORITY * len(self.outcomes):
            return None
        return sum(self.known) >= MAJORITY * len(self.known)

    @property
    def always(self) -> bool:
        """Whether it passes in every seed."""
        return bool(self.outcomes) and all(self.outcomes)


Verdict = Literal["holds", "holds with a caveat", "not at this scale", "not measured"]


@dataclass(frozen=True)
class Claim:
    """A claim and its checks."""

    name: str
    text: str
    checks: tuple[Check, ...]

    @property
    def counted(self) -> list[Check]:
        """Checks that count."""
        return [check for check in self.checks if check.role != "beside"]

    @property
    def reasons(self) -> str:
        """Which checks the verdict hangs on, in words."""
        failed = [check.rule for check in self.counted if check.passes is False]
        some = [check.rule for check in self.counted if check.passes and not check.always]
        unknown = [check.rule for check in self.counted if check.passes is None]
        parts = (("Does not pass", failed), ("Passes in some seeds only", some), ("Not measured", unknown))
        return " ".join(f"{told}: {'; '.join(rules)}." for told, rules in parts if rules) or "All checks pass."

    @property
    def verdict(self) -> Verdict:
        """By the rule that the page states."""
        core = [check.passes for check in self.checks if check.role == "core"]
        if None in core:
            return "not measured" if False not in core else "not at this scale"
        if not all(core):
            return "not at this scale"
        return "holds" if all(check.always for check in self.counted) else "holds with a caveat"


def claims(experiment: Experiment, model: str) -> list[Claim]:
    """The three claims for one model."""
    return [_same_path(experiment, model), _dissociation(experiment, model), _transfer(experiment, model)]


# ------------------------------------------------------------------ claim 1


def _same_path(experiment: Experiment, model: str) -> Claim:
    seeds = experiment.seeds(model)
    natural, both = (by_seed(experiment.select(model, regime)) for regime in ("natural", "both_full"))

    def each(judge: Callable[[Run], tuple[Outcome, str]], runs: dict[int, Run]) -> tuple[tuple[Outcome, ...], str]:
        found = [judge(runs[seed]) if seed in runs else (None, "–") for seed in seeds]
        return tuple(outcome for outcome, _ in found), _told(found)

    exposed, waiting = each(_together, both), each(_together, natural)
    late = tuple(None if outcome is None else not outcome for outcome in waiting[0])
    return Claim(
        "1. One path, which absorbs OOD facts",
        "Grokked and non-grokked models use the same inference path; grokking is that facts without compositional "
        "supervision enter a path that exists for ID queries already (section 3).",
        (
            Check(
                f"*both_full*: OOD queries reach {ANSWERED:.0%} within {TOGETHER:g} × the steps of held-out ID queries",
                "core", exposed[0], exposed[1], _published_lag("both_full", together=True),
            ),
            Check(
                f"*natural*: they need more than {TOGETHER:g} × as many, or never get there",
                "core", late, waiting[1], _published_lag("natural", together=False),
            ),
            Check(
                f"*natural*: when held-out ID queries reach {ANSWERED:.0%}, their bridge is there (≥ {VISIBLE:g}) and "
                "the state decides (strength above its floor at least half the accuracy)",
                "core", *each(_path_is_there, natural), "not published: only OOD queries were traced",
            ),
            Check(
                f"*both_full*, end: the state at r1 decides ID and OOD answers alike (strength ≥ {DECISIVE:g} above "
                "its floor)",
                "core", *each(_decides_both, both), "not published: no state was patched",
            ),
            Check(
                f"*both_full*: when OOD queries reach {ANSWERED:.0%}, their bridge is half there (≥ {HIDDEN:g})",
                "caveat", *each(_bridge_first, both), _published_bridge_first(),
            ),
        ),
    )  # fmt: skip


def _lag(ood: int | None, known: int | None) -> tuple[Outcome, str]:
    if known is None:
        return None, "ID never"
    if ood is None:
        return False, f"ID {known:,}, OOD never"
    return ood <= TOGETHER * known, f"ID {known:,}, OOD {ood:,}"


def _together(run: Run) -> tuple[Outcome, str]:
    return _lag(run.curve("accuracy", OOD).first(ANSWERED), run.curve("accuracy", ID).first(ANSWERED))


def _published_lag(regime: str, together: bool) -> str:
    train, target = pretrained(regime, "train_acc").first(0.95), pretrained(regime, "target_found").first(ANSWERED)
    passed, _ = _lag(target, train)
    end, agrees = "never" if target is None else f"step {target:,}", "yes" if passed is together else "no"
    return f"training 95 % at {train:,}, OOD answer found in {ANSWERED:.0%} at {end} ({agrees})"


def _path_is_there(run: Run) -> tuple[Outcome, str]:
    step = run.curve("accuracy", ID).first(ANSWERED)
    bridge, strength = run.bridge(ID).at(step), run.decides(ID).at(step)
    if step is None or math.isnan(bridge):
        return None, "–"
    told = "not measured" if math.isnan(strength) else f"{strength:.2f}"
    there = bridge >= VISIBLE and (None if math.isnan(strength) else strength >= ANSWERED / 2)
    return there, f"{bridge:.2f}, strength {told} at step {step:,}"


def _decides_both(run: Run) -> tuple[Outcome, str]:
    known, ood = run.strength(ID), run.strength(OOD)
    if not known or not ood:
        return None, "–"
    return min(known.last, ood.last) >= DECISIVE, f"ID {known.last:.2f}, OOD {ood.last:.2f}"


def _bridge_first(run: Run) -> tuple[Outcome, str]:
    step = run.curve("accuracy", OOD).first(ANSWERED)
    bridge = run.bridge(OOD).at(step)
    return (None, "–") if math.isnan(bridge) else (bridge >= HIDDEN, f"{bridge:.2f} at step {step:,}")


def _published_bridge_first() -> str:
    step = pretrained("both_full", "target_found").first(ANSWERED)
    value = pretrained("both_full", "bridge_found").at(step)
    return f"{value:.3f} at step {step:,} ({'yes' if value >= HIDDEN else 'no'})"


# ------------------------------------------------------------------ claim 2


def _dissociation(experiment: Experiment, model: str) -> Claim:
    seeds = experiment.seeds(model)
    hop1, hop2, both = (by_seed(experiment.select(model, name)) for name in ("hop1_full", "hop2_full", "both_full"))
    fake = [_fake(*_answers_and_bridge(hop2.get(seed))) for seed in seeds]
    causal = [_uncaused(hop2[seed]) if seed in hop2 else (None, "–") for seed in seeds]
    early = [_early(*_answers_and_bridge(hop1.get(seed))) for seed in seeds]
    control = [_early(*_answers_and_bridge(both.get(seed))) for seed in seeds]
    printed = [judge(pretrained(regime, "target_found"), pretrained(regime, "bridge_found"))
               for judge, regime in ((_fake, "hop2_full"), (_early, "hop1_full"), (_early, "both_full"))]  # fmt: skip
    return Claim(
        "2. Answers and circuit come apart",
        "Behavioural grokking and the formation of the circuit are dissociable: with exposure of the second hop only, "
        "OOD queries are answered without a visible bridge, *fake grokking* (section 4).",
        (
            Check(
                f"*hop2_full*: OOD queries reach {FAKE:.0%} while their bridge is not there (< {HIDDEN:g}): answers "
                "without a bridge",
                "core", tuple(one for one, _ in fake), _told(fake), printed[0][1],
            ),
            Check(
                f"*hop2_full*: when OOD queries reach {FAKE:.0%}, the state at r1 does not decide them either "
                f"(strength < {DECISIVE:g} above its floor): the circuit is absent, not only unreadable",
                "caveat", tuple(one for one, _ in causal), _told(causal), "not published: no state was patched",
            ),
            Check(
                "beside it, the converse, which the paper does not claim: *hop1_full*: their bridge is there "
                f"(≥ {VISIBLE:g}) while less than {ANSWERED:.0%} are answered; a model may show it for having learnt "
                "the atomic facts, so *both_full* is told as a control",
                "beside", tuple(one for one, _ in early), f"{_told(early)} (*both_full*: {_told(control)})",
                f"{printed[1][1]} (*both_full*: {printed[2][1]})",
            ),
        ),
    )  # fmt: skip


def _answers_and_bridge(run: Run | None) -> tuple[Curve, Curve]:
    return (Curve(), Curve()) if run is None else (run.curve("accuracy", OOD), run.bridge(OOD))


def _fake(answers: Curve, bridge: Curve) -> tuple[Outcome, str]:
    if not answers or not bridge:
        return None, "–"
    step = answers.first(FAKE)
    if step is None:
        return False, f"at most {answers.highest:.2f} answered"
    there = bridge.at(step)
    return None if math.isnan(there) else there < HIDDEN, f"bridge {there:.2f} at step {step:,}"


def _early(answers: Curve, bridge: Curve) -> tuple[Outcome, str]:
    if not answers or not bridge:
        return None, "–"
    step = bridge.first(VISIBLE)
    if step is None:
        return False, f"bridge at most {bridge.highest:.2f}"
    answered = answers.at(step)
    return None if math.isnan(answered) else answered < ANSWERED, f"{answered:.2f} answered at step {step:,}"


def _uncaused(run: Run) -> tuple[Outcome, str]:
    step = run.curve("accuracy", OOD).first(FAKE)
    strength = run.strength(OOD).at(step)
    return (None, "–") if math.isnan(strength) else (strength < DECISIVE, f"{strength:.2f} at step {step:,}")


def _told(found: Iterable[tuple[Outcome, str]]) -> str:
    return "; ".join(told for _, told in found)


# ------------------------------------------------------------------ claim 3


def _transfer(experiment: Experiment, model: str) -> Claim:
    seeds = experiment.seeds(model)

    def final(regimes: Sequence[str], start: str, split: str) -> list[float]:
        """For each seed the median over regimes of the final accuracy."""
        runs = [by_seed(experiment.select(model, regime, start)) for regime in regimes]
        return [
            Spread(tuple(one[seed].curve("accuracy", split).final for one in runs if seed in one)).median
            for seed in seeds
        ]

    mature = {split: final(MATURE, FINE_TUNED, split) for split in (NEW_OLD, OLD_NEW, NEW_NEW)}
    scratch, fake = final(MATURE, SCRATCH, NEW_OLD), final(["hop2_full"], FINE_TUNED, NEW_OLD)
    shortcut = _shortcut(experiment, model, seeds)
    return Claim(
        "3. A mature circuit transfers half",
        "A new fact works as the first hop of a query with an old second one, not the other way round, and models "
        "without the circuit do not transfer (section 5.2).",
        (
            Check(
                f"new+old from the end of a mature model ({', '.join(MATURE)}): at least {TRANSFERS:.0%}",
                "core", _judged(mature[NEW_OLD], lambda x: x >= TRANSFERS), _numbers(mature[NEW_OLD]),
                _published_final(MATURE, NEW_OLD),
            ),
            Check(
                f"old+new from the same: at most {FAILS:.0%}",
                "core", _judged(mature[OLD_NEW], lambda x: x <= FAILS), _numbers(mature[OLD_NEW]),
                _published_final(MATURE, OLD_NEW),
            ),
            Check(
                f"new+old is at least {APART:g} better than from scratch",
                "core", _apart(mature[NEW_OLD], scratch), f"from scratch {_numbers(scratch)}",
                _published_final(["scratch"], NEW_OLD),
            ),
            Check(
                f"new+old is at least {APART:g} better than the shortcut *second relation → most frequent tail*",
                "caveat", _apart(mature[NEW_OLD], shortcut), f"shortcut {_numbers(shortcut)}",
                "not published; 0.57–0.68 on data of the published size and recipe (seeds 0–2, three regimes)",
            ),
            Check(
                f"new+new: at most {FAILS:.0%}",
                "caveat", _judged(mature[NEW_NEW], lambda x: x <= FAILS), _numbers(mature[NEW_NEW]),
                _published_final(MATURE, NEW_NEW),
            ),
            Check(
                f"new+old is at least {APART:g} better than from hop2_full (fake grokking does not transfer)",
                "caveat", _apart(mature[NEW_OLD], fake), f"hop2_full {_numbers(fake)}",
                _published_final(["hop2_full"], NEW_OLD),
            ),
        ),
    )  # fmt: skip


def _shortcut(experiment: Experiment, model: str, seeds: Sequence[int]) -> list[float]:
    runs = [by_seed(experiment.select(model, regime, FINE_TUNED)) for regime in MATURE]
    return [
        Spread(tuple(one[seed].curve("baseline/shortcut", NEW_OLD).last for one in runs if seed in one)).median
        for seed in seeds
    ]


def _judged(values: Sequence[float], judge: Callable[[float], bool]) -> tuple[Outcome, ...]:
    return tuple(None if math.isnan(value) else judge(value) for value in values)


def _apart(values: Sequence[float], others: Sequence[float]) -> tuple[Outcome, ...]:
    return _judged([value - other for value, other in zip(values, others, strict=True)], lambda x: x >= APART)


def _numbers(values: Sequence[float]) -> str:
    return "; ".join("–" if math.isnan(value) else f"{value:.2f}" for value in values)


def _published_final(starts: Sequence[str], split: str) -> str:
    curves = [finetuned(start, split) for start in starts]
    sizes = sorted({curve.n for curve in curves})
    number = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,}–{sizes[-1]:,}"
    return f"{', '.join(f'{curve.final:.2f}' for curve in curves)} of {number} queries"
