"""The page: Markdown that says what was claimed, what was found, by which rule, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from grok.verdict.claims import FINE_TUNED, ID, MAJORITY, NEW_NEW, NEW_OLD, OLD_NEW, OOD, Check, Claim, claims
from grok.verdict.cost import MILESTONES, answer, purchases, spelled
from grok.verdict.curves import Spread
from grok.verdict.experiment import Experiment, Run
from grok.verdict.published import pretrained

__all__ = ["page"]

RULES = f"""\
Verdicts follow rules. A check is judged in each seed; it passes if it does in {MAJORITY:.0%} of the seeds that can
tell. A claim *holds* if all its checks pass in all seeds; it *holds with a caveat* if its core checks (bold) pass;
otherwise it is *not at this scale*; it is *not measured* if a core check has no data.

Answers are exact matches; the end of a fine-tuning, whose learning rate is constant, is the median of its last five
evaluations. *Strength* is the share of answers that change when the state at r1 is replaced by that of
another relation, less the share when it is replaced by that of another fact with the same bridge, at the state after
one step or more where this is largest. *Bridge Found*, as published, is the share of queries whose bridge is the most
likely token at any state and position. A causal model that is trained on atomic facts says the bridge in its last state
at r1, as the answer to h r1, whether or not anything reads it there. So the checks take *the bridge where it is read*:
its mean reciprocal rank under the logit lens in the last state S[i, r1] that decides the answers to held-out ID queries
at the end of the run (at least half as strong as the strongest; neither the embedding nor the last state of all). From
either, what shuffled bridges give is taken away: (value − floor) / (1 − floor). *Found* in the last columns below is
found in any state that a later step reads, of queries that show neither bridge nor answer."""
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
    rule = f"**{check.rule}**" if check.core else check.rule
    passed = f"{sum(check.known)} of {len(check.known)}" if check.known else "not measured"
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
    yield "Step of each milestone, FLOPs and hours up to it: median (smallest–largest) over the seeds that got there."
    for model in experiment.models:
        yield ""
        yield f"### {model}"
        yield ""
        yield from table(["regime", "seeds", *MILESTONES], _milestone_rows(experiment, model))
        yield ""
        yield from table(
            [
                "regime", "ID", "OOD", "bridge where it is read ID / OOD", "Bridge Found ID (floor)",
                "Bridge Found OOD (floor)", "answered if found, OOD (floor)", "found if answered, OOD (floor)",
                "strength ID / OOD", "published end: Bridge / Target Found, OOD",
            ],
            (_end_row(experiment, model, regime) for regime in experiment.regimes(model)),
        )  # fmt: skip
        if experiment.starts(model):
            yield ""
            yield "Fine-tuning, exact match at the end (the median of the last five evaluations, as for claim 3); *n*"
            yield "queries with the first seed; shortcut: second relation → most frequent tail in training."
            yield ""
            yield from table(
                [
                    "start",
                    "regime",
                    "seeds",
                    "new facts",
                    *_CATEGORIES.values(),
                    "shortcut new+old",
                    "chance",
                    "n",
                    "spent",
                ],
                _transfer_rows(experiment, model),
            )


def _milestone_rows(experiment: Experiment, model: str) -> Iterator[list[str]]:
    for regime in experiment.regimes(model):
        runs = experiment.select(model, regime)
        cells = []
        for step_of in MILESTONES.values():
            steps = [step_of(run) for run in runs]
            told = Spread(tuple(steps)).told(lambda step: f"{step:,.0f}")
            flops = Spread(tuple(run.flops(step) for run, step in zip(runs, steps, strict=True)))
            hours = Spread(tuple(run.hours(step) for run, step in zip(runs, steps, strict=True)))
            cells.append(f"{told}; {spelled(flops.median)}, {hours.median:.3f} h" if flops.known else told)
        yield [regime, str(len(runs)), *cells]


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
    return [
        regime,
        _last(runs, "accuracy", ID),
        _last(runs, "accuracy", OOD),
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


def _transfer_rows(experiment: Experiment, model: str) -> Iterator[list[str]]:
    for start in experiment.starts(model):
        for regime in experiment.regimes(model, start):
            runs = experiment.select(model, regime, start)
            sizes = " / ".join(f"{runs[0].curve('accuracy', split).n:,}" for split in _CATEGORIES)
            chance = runs[0].curve("accuracy", NEW_OLD).floors
            yield [
                f"**{start}**" if start == FINE_TUNED else start,
                regime,
                str(len(runs)),
                *(
                    Spread(tuple(run.curve("accuracy", split).final for run in runs)).told(_percent)
                    for split in ("atomic_new", *_CATEGORIES)
                ),
                _last(runs, "baseline/shortcut", NEW_OLD),
                _percent(chance[-1]) if chance else "–",
                sizes,
                spelled(Spread(tuple(run.flops(run.summary["step"]) for run in runs)).median),
            ]
