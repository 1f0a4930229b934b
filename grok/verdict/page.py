"""The page: Markdown that says what was claimed, what was found, by which rule, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from grok.milestones import BRIDGE_DECIDES
from grok.verdict.claims import FINE_TUNED, ID, MAJORITY, NEW_NEW, NEW_OLD, OLD_NEW, OOD, Check, Claim, claims
from grok.verdict.cost import LEVELS, MILESTONES, answer, purchases, spelled
from grok.verdict.curves import Spread
from grok.verdict.experiment import SCRATCH, Experiment, Run
from grok.verdict.published import REGIMES, finetuned, pretrained

__all__ = ["page"]

RULES = f"""\
Verdicts follow rules. A check is judged in each seed; it passes if it does in {MAJORITY:.0%} of the seeds that can
tell, and is not measured if fewer can. A claim *holds* if all its checks pass in all seeds; it *holds with a caveat* if
its core checks (bold) pass; otherwise it is *not at this scale*; it is *not measured* if a core check is not. A check
beside the claim does not count.

Answers are exact matches; the end of a fine-tuning, whose learning rate is constant, is the median of its last five
evaluations. *Strength* is the share of answers that change when the state at r1 is replaced by that of another
relation, less the share when it is replaced by that of another fact with the same bridge, at the state after one step
or more where this is largest. *Bridge Found*, as published, is the share of queries whose bridge is the most likely
token at any state and position. A causal model that is trained on atomic facts says the bridge in its last state at r1,
as the answer to h r1, whether or not anything reads it there. So the checks take *the bridge where it is read*: its
mean reciprocal rank under the logit lens in the last state S[i, r1] that decides the answers to held-out ID queries at
the end of the run (strength at least {BRIDGE_DECIDES:g}; neither the embedding nor the last state of all; where none
decides, in the one where it is largest). In a model that is not causal, S[i, r1] may know r2 and the answer: strength
is not measured, and the bridge is the one that is *found*, see below. From what is read or found, what shuffled bridges
give is taken away: (value − floor) / (1 − floor). *Found* in the columns so named below is found in any state that a
later step reads, of queries that show neither bridge nor answer. What is measured at a step is the measurement nearest
to it, within a quarter of the step."""
"""How the verdicts come about, as the page says it."""

_CATEGORIES = {NEW_OLD: "new+old", OLD_NEW: "old+new", NEW_NEW: "new+new"}


def page(experiment: Experiment, model: str, figures: Sequence[Path], command: str) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        experiment: the runs.
        model: the model that the page is about; the others get a line each.
        figures: pictures beside the page.
        command: how the page was made.
    """
    found = {name: claims(experiment, name) for name in experiment.models}
    yield "# Is grokking worthwhile? The three claims of He et al. 2026, re-examined"
    yield ""
    yield from _head(experiment, model, command)
    yield ""
    yield from table(
        ["claim", *experiment.models],
        [[f"**{claim.name}**", *(f"**{found[name][index].verdict}**" for name in experiment.models)]
         for index, claim in enumerate(found[model])],
    )  # fmt: skip
    yield ""
    yield RULES
    pictures = {path.stem: path.name for path in figures if path.suffix == ".png"}
    for index, claim in enumerate(found[model], 1):
        yield ""
        yield from _claim(claim, pictures.get(f"claim{index}"))
    yield ""
    yield from _worth(experiment, model, pictures.get("cost"))
    yield ""
    yield from _numbers(experiment)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _head(experiment: Experiment, model: str, command: str) -> Iterator[str]:
    runs = experiment.select(model)
    graph = runs[0].graph
    tests = {split: runs[0].curve("accuracy", split).n for split in (ID, OOD)}
    yield f"Made by `{command}` from {len(experiment.runs)} finished runs"
    hours = sum(run.hours(run.summary["step"]) or 0.0 for run in experiment.runs)
    flops = sum((run.flops(run.summary["step"]) or 0.0) - run.source_flops for run in experiment.runs)
    yield f"({max(0, experiment.unfinished)} planned ones are missing), which took {hours:.1f} hours in all and"
    yield f"{spelled(flops)}. Details are about *{model}*; every run has its own heat maps in `figures/`."
    yield (
        f"One graph per seed, the same for all regimes and models: {graph['entities']:,} entities, "
        f"{graph['relations']} relations, out-degree {graph['out_degree']}, {graph['ood']:.0%} of the facts OOD; "
        f"seeds {', '.join(map(str, experiment.seeds(model)))}; with seed {runs[0].seed} {tests[ID]:,} held-out ID and "
        f"{tests[OOD]:,} OOD queries."
    )
    yield (
        "The published experiment has 2,000 entities, one run per regime, each on another graph, and about 2,000 OOD "
        "queries; what is said here is about the size trained here."
    )


def _claim(claim: Claim, picture: str | None) -> Iterator[str]:
    yield f"## {claim.name}: {claim.verdict}"
    yield ""
    yield claim.text
    yield ""
    yield claim.reasons
    yield ""
    yield from table(["check", "seeds", "here, seed by seed", "published"], (_check(check) for check in claim.checks))
    if picture:
        yield ""
        yield f"![{claim.name}]({picture})"


def _check(check: Check) -> list[str]:
    rule = f"**{check.rule}**" if check.role == "core" else check.rule
    unknown = len(check.outcomes) - len(check.known)
    passed = f"{sum(check.known)} of {len(check.known)}" if check.known else "not measured"
    passed += f" ({unknown} cannot tell)" if check.known and unknown else ""
    return [rule, passed, check.told, check.published or "–"]


def _worth(experiment: Experiment, model: str, picture: str | None) -> Iterator[str]:
    yield "## Was the wait worthwhile?"
    yield ""
    yield " ".join(answer(experiment, model))
    yield ""
    rows = []
    for regime in experiment.regimes(model):
        for bought in purchases(experiment, model, regime):
            size = bought.flops / 1e12
            each = [
                f"{100 * gain:+.0f} ({100 * gain / size:+.3g})" if size else "–" for gain in (bought.known, bought.ood)
            ]
            stretch = f"{bought.begins} → {bought.ends}"
            rows.append([regime, stretch, f"{bought.share:.0%}", spelled(bought.flops), *each])
    yield "What each stretch of pre-training bought, in points of accuracy (in brackets: points per TFLOP), medians."
    yield ""
    yield from table(["regime", "stretch", "of the run", "spent", "held-out ID", "OOD"], rows)
    if picture:
        yield ""
        yield f"![What compute bought]({picture})"


def _numbers(experiment: Experiment) -> Iterator[str]:
    yield "## Numbers"
    yield ""
    yield "Step of each milestone, and for levels of answers the step from which the median of five evaluations is"
    yield "there; FLOPs and hours up to the first: median (smallest–largest) over the seeds that got there."
    for model in experiment.models:
        yield ""
        yield f"### {model}"
        yield ""
        yield from table(["regime", "seeds", *MILESTONES], _milestone_rows(experiment, model))
        yield ""
        yield from table(
            [
                "regime", "ID", "OOD", "read in", "bridge where it is read ID / OOD", "Bridge Found ID (floor)",
                "Bridge Found OOD (floor)", "answered if found, OOD (floor)", "found if answered, OOD (floor)",
                "strength ID / OOD", "published end: Bridge / Target Found, OOD",
            ],
            (_end_row(experiment, model, regime) for regime in experiment.regimes(model)),
        )  # fmt: skip
        if experiment.starts(model):
            yield ""
            yield "Fine-tuning: exact match at the end (the median of the last five evaluations, as for claim 3), for"
            yield "new+old the highest too; *n* queries with the first seed; shortcut: second relation → most frequent"
            yield "tail in training; Bridge Found as published, at the end; old facts: all ID ones, most not kept."
            yield ""
            columns = ["start", "regime", "seeds", "new facts", *_CATEGORIES.values(), "n", "new+old at best"]
            more = ["shortcut new+old", "chance", "Bridge Found: " + " / ".join(_CATEGORIES.values()), "old facts"]
            yield from table([*columns, *more, "spent"], _transfer_rows(experiment, model))


def _transfer_rows(experiment: Experiment, model: str) -> Iterator[list[str]]:
    for start in experiment.starts(model):
        for regime in experiment.regimes(model, start):
            runs = experiment.select(model, regime, start)
            accuracy = {split: [run.curve("accuracy", split) for run in runs] for split in ("atomic_new", *_CATEGORIES)}
            best = Spread(tuple(curve.highest for curve in accuracy[NEW_OLD]))
            chance = accuracy[NEW_OLD][0].floors
            yield [
                f"**{start}**" if start == FINE_TUNED else start,
                regime,
                str(len(runs)),
                *(Spread(tuple(curve.final for curve in curves)).told(_percent) for curves in accuracy.values()),
                " / ".join(f"{accuracy[split][0].n:,}" for split in _CATEGORIES),
                best.told(_percent),
                _last(runs, "baseline/shortcut", NEW_OLD),
                _percent(chance[-1]) if chance else "–",
                " / ".join(_last(runs, "found/bridge", split) for split in _CATEGORIES),
                Spread(tuple(run.curve("accuracy", "id_atomic").final for run in runs)).told(_percent),
                spelled(Spread(tuple(run.flops(run.summary.get("step")) for run in runs)).median),
            ]
            yield from _published_row(regime, start)


def _published_row(regime: str, start: str) -> Iterator[list[str]]:
    """The run of He et al. beside ours: from the end of a pre-training, or from scratch on the data of *natural*."""
    name = {FINE_TUNED: regime, SCRATCH: SCRATCH if regime == "natural" else ""}.get(start, "")
    if name in (*REGIMES, SCRATCH):
        curves = [finetuned(name, split) for split in _CATEGORIES]
        known = finetuned(name, NEW_OLD, "new_atomic_em")
        ends = [_percent(curve.final) for curve in (known, *curves)]
        sizes, best = " / ".join(f"{curve.n:,}" for curve in curves), _percent(curves[0].highest)
        bridges = " / ".join(_percent(finetuned(name, split, "bridge_found").last) for split in _CATEGORIES)
        yield ["", f"{regime}, He et al.", "1", *ends, sizes, best, "–", "–", bridges, "–", "–"]


def _milestone_rows(experiment: Experiment, model: str) -> Iterator[list[str]]:
    for regime in experiment.regimes(model):
        runs = experiment.select(model, regime)
        cells = []
        for name, step_of in MILESTONES.items():
            steps = [step_of(run) for run in runs]
            told = Spread(tuple(steps)).told(_steps)
            if level := LEVELS.get(name):
                sustained = [run.curve("accuracy", level[0]).sustained(level[1]) for run in runs]
                told += f", sustained {Spread(tuple(sustained)).told(_steps)}"
            flops = Spread(tuple(run.flops(step) for run, step in zip(runs, steps, strict=True)))
            hours = Spread(tuple(run.hours(step) for run, step in zip(runs, steps, strict=True)))
            cells.append(f"{told}; {spelled(flops.median)}, {hours.median:.3f} h" if flops.known else told)
        yield [regime, str(len(runs)), *cells]


def _steps(step: float) -> str:
    return f"{step:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _last(runs: Sequence[Run], name: str, split: str, floor: bool = False) -> str:
    curves = [run.curve(name, split) for run in runs]
    told = Spread(tuple(curve.last for curve in curves)).told(_percent)
    floors = Spread(tuple(curve.floors[-1] if curve.floors else None for curve in curves))
    return f"{told} ({floors.told(_percent)})" if floor and floors.known else told


def _end_row(experiment: Experiment, model: str, regime: str) -> list[str]:
    runs = experiment.select(model, regime)
    strengths, bridges = (
        " / ".join(Spread(tuple(measured(run, split).last for run in runs)).told(_two_digits) for split in (ID, OOD))
        for measured in (Run.strength, Run.bridge)
    )
    published = [pretrained(regime, column) for column in ("bridge_found", "target_found")]
    seats = ["–" if run.seat is None else f"S[{run.seat}, r1]" for run in runs]
    return [
        regime,
        _last(runs, "accuracy", ID),
        _last(runs, "accuracy", OOD),
        "; ".join(dict.fromkeys(seats)),
        bridges,
        _last(runs, "found/bridge", ID, floor=True),
        _last(runs, "found/bridge", OOD, floor=True),
        _last(runs, "found/correct_if_bridge", OOD, floor=True),
        _last(runs, "found/bridge_if_correct", OOD, floor=True),
        strengths,
        " / ".join(f"{curve.last:.2f}" for curve in published) + f" of {published[0].n:,}" if published[0] else "–",
    ]


def _two_digits(value: float) -> str:
    return f"{value:.2f}"
