"""The pictures of a verdict: published curves and ours on the same axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grok.report.style import STYLES, new_figure, save
from grok.verdict.claims import FINE_TUNED, ID, NEW_NEW, NEW_OLD, OLD_NEW, OOD
from grok.verdict.cost import spent
from grok.verdict.curves import Curve, Spread, band
from grok.verdict.experiment import SCRATCH, Experiment, Run
from grok.verdict.published import REGIMES, finetuned, pretrained

__all__ = ["draw"]

MEMORISED = 0.95
"""Training accuracy by which the steps of all curves are counted: the published runs take hundreds of times more."""

NAMES = {
    "natural": "natural", "both_full": "both hops, full", "both_half": "both hops, half", "hop1_full": "hop 1, full",
    "hop2_full": "hop 2, full", SCRATCH: "from scratch",
}  # fmt: skip
CATEGORIES = {NEW_OLD: "new + old", OLD_NEW: "old + new", NEW_NEW: "new + new"}
_PUBLISHED, _DASH = "#000000", (0, (4, 2))
_Measure = Callable[[Run, str], Curve]
_ROWS: tuple[tuple[str, str, _Measure], ...] = (
    ("target_found", "exact match", lambda run, split: run.curve("accuracy", split)),
    ("bridge_found", "Bridge Found, chance taken away", lambda run, split: run.bridge_found(split)),
    ("", "bridge where it is read", lambda run, split: run.bridge(split)),
)
_COLOURS = {ID: STYLES[6][0], OOD: STYLES[2][0]}


def draw(experiment: Experiment, model: str, directory: Path) -> list[Path]:
    """Write `claim1`, `claim2`, `claim3`, `cost` (`.png` and `.svg`) into `directory`; those that there is data for."""
    files = [*_curves(experiment, model, directory / "claim1"), *_portraits(experiment, model, directory / "claim2")]
    if experiment.starts(model):
        files += _transfer(experiment, model, directory / "claim3")
    return files + _cost(experiment, model, directory / "cost")


def _relative(curves: Sequence[Curve], known: Sequence[Curve]) -> tuple[list[float], ...]:
    """Band of curves over steps, in units of the median step at which `known` reach `MEMORISED`; empty if none does."""
    steps, middle, low, high = band([curve for curve in curves if curve])
    units = Spread(tuple(curve.first(MEMORISED) for curve in known))
    return ([step / units.median for step in steps], middle, low, high) if units.known else ([], [], [], [])


def _band(axes: Any, curves: Sequence[Curve], known: Sequence[Curve], colour: str, style: Any, label: str) -> None:
    x, middle, low, high = _relative(curves, known)
    if x:
        axes.plot(x, middle, color=colour, linestyle=style, linewidth=1.8, label=label)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _published(axes: Any, curve: Curve, unit: float, colour: str, label: str | None = None) -> None:
    x = [step / unit for step in curve.steps]
    axes.plot(x, curve.values, color=colour, linestyle=_DASH, linewidth=1, label=label)


def _panel(axes: Any, title: str, label: str | None) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize="medium")
    if label:
        axes.set_ylabel(label)


def _legend(figure: Any, axes: Any) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small")


def _curves(experiment: Experiment, model: str, path: Path) -> list[Path]:
    """Answers, Bridge Found as published, and the bridge where it is read; one column for each regime."""
    regimes = experiment.regimes(model)
    measured_in = [(run, split) for run in experiment.select(model) for split in (ID, OOD)]
    rows = [row for row in _ROWS if any(row[2](*where) for where in measured_in)] or _ROWS[:1]
    figure = new_figure(3.0 * len(regimes) + 2.6, 2.7 * len(rows))
    grid = figure.subplots(len(rows), len(regimes), sharex=True, sharey=True, squeeze=False)
    for column, regime in enumerate(regimes):
        runs = experiment.select(model, regime)
        known = [run.curve("accuracy", "train_inferred") for run in runs]
        for row, (published, told, measured) in enumerate(rows):
            axes = grid[row][column]
            if regime in REGIMES and published:
                unit = float(pretrained(regime, "train_acc").first(MEMORISED) or 1)
                told_published = "He et al.: OOD,\nanswer / bridge found\nat any stage and position"
                _published(axes, pretrained(regime, published), unit, _PUBLISHED, told_published)
            for split, label in ((ID, "here: held-out ID"), (OOD, "here: OOD")):
                _band(axes, [measured(run, split) for run in runs], known, _COLOURS[split], "-", label)
            axes.set_xscale("log")
            title = f"{NAMES.get(regime, regime)} ({len(runs)} seed{'s' if len(runs) != 1 else ''})"
            title += "" if any(curve.first(MEMORISED) for curve in known) else ", never memorised: not shown"
            _panel(axes, title if row == 0 else "", told if column == 0 else None)
            if row == len(rows) - 1:
                axes.set_xlabel(f"steps / step of {MEMORISED:.0%} training accuracy")
    _legend(figure, grid[0][0])
    figure.suptitle(f"Answers and bridge over training: {model}; line: median, band: smallest to largest seed")
    return save(figure, path)


def _portraits(experiment: Experiment, model: str, path: Path) -> list[Path]:
    """Answers against bridge, OOD: on the diagonal both grow together."""
    regimes = experiment.regimes(model)
    figure = new_figure(3.0 * len(regimes) + 1.6, 3.5)
    panels = []
    for index, regime in enumerate(regimes):
        axes = figure.add_subplot(1, len(regimes), index + 1)
        panels.append(axes)
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
        if regime in REGIMES:
            printed = pretrained(regime, "bridge_found").values, pretrained(regime, "target_found").values
            axes.plot(*printed, color=_PUBLISHED, linewidth=0.5, alpha=0.5)
            axes.plot(*printed, ".", color=_PUBLISHED, markersize=2.5, label="He et al.")
        for number, run in enumerate(experiment.select(model, regime)):
            bridge, answers = run.bridge(OOD), run.curve("accuracy", OOD)
            y = [answers.at(step) for step in bridge.steps]
            colour = STYLES[1 + number % 6][0]
            axes.plot(bridge.values, y, color=colour, linewidth=1.2, label=f"here, seed {run.seed}")
            if y:
                axes.plot(bridge.values[-1], y[-1], "o", color=colour, markersize=5)
        axes.set_xlabel("bridge where it is read")
        axes.set_xlim(-0.03, 1.03)
        _panel(axes, NAMES.get(regime, regime), "OOD answered" if index == 0 else None)
    _legend(figure, panels[0])
    figure.suptitle(
        "OOD queries: answers against bridge, each line a run, its end a dot; off the diagonal they come apart"
    )
    return save(figure, path)


def _transfer(experiment: Experiment, model: str, path: Path) -> list[Path]:
    """Fine-tuning curves by regime above, by starting point below; one column for each category."""
    figure = new_figure(14.0, 7.2)
    grid = figure.subplots(2, 3, squeeze=False)
    for column, (split, name) in enumerate(CATEGORIES.items()):
        _by_regime(grid[0][column], experiment, model, split, name, first=column == 0)
        _by_start(grid[1][column], experiment, model, split, first=column == 0)
    _legend(figure, grid[0][0])
    figure.suptitle(f"Transfer to new facts, exact match: {model} (solid) and He et al. 2026 (dashed)")
    return save(figure, path)


def _by_regime(axes: Any, experiment: Experiment, model: str, split: str, name: str, first: bool) -> None:
    wanted = [*((regime, FINE_TUNED) for regime in experiment.regimes(model, FINE_TUNED)), ("natural", SCRATCH)]
    n = 0
    for index, (regime, start) in enumerate(wanted):
        key, colour = SCRATCH if start == SCRATCH else regime, STYLES[index % len(STYLES)][0]
        runs = experiment.select(model, regime, start)
        curves = [run.curve("accuracy", split) for run in runs]
        n = max([n, *(curve.n for curve in curves)])
        known = [run.curve("accuracy", "atomic_new") for run in runs]
        _band(axes, curves, known, colour, "-", NAMES.get(key, key))
        if key in NAMES:
            curve = finetuned(key, split, "new_atomic_em")
            unit = float(curve.first(MEMORISED) or curve.steps[-1])
            _published(axes, finetuned(key, split), unit, colour)
    shortcut = [run.curve("baseline/shortcut", split).last for run in experiment.select(model, None, FINE_TUNED)]
    if shortcut:
        axes.axhline(sorted(shortcut)[len(shortcut) // 2], color="#888888", linestyle=":", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlabel(f"steps / step of {MEMORISED:.0%} new atomic facts")
    _panel(axes, f"{name} (up to {n:,} queries here)", f"from {FINE_TUNED}; dotted: shortcut" if first else None)


def _by_start(axes: Any, experiment: Experiment, model: str, split: str, first: bool) -> None:
    starts = experiment.starts(model)
    regimes = [regime for regime in REGIMES if any(experiment.select(model, regime, start) for start in starts)]
    width = 0.8 / max(1, len(regimes))
    for index, regime in enumerate(regimes):
        for place, start in enumerate(starts):
            values = [run.curve("accuracy", split).final for run in experiment.select(model, regime, start)]
            if not values:
                continue
            x, colour = place + (index - (len(regimes) - 1) / 2) * width, STYLES[index][0]
            axes.bar(x, sorted(values)[len(values) // 2], width * 0.9, color=colour, alpha=0.55)
            axes.plot([x] * len(values), values, ".", color=colour, markersize=4)
    axes.set_xticks(range(len(starts)), [start.replace("_", "\n") for start in starts], fontsize="small")
    _panel(axes, "", "final, by start (dots: seeds)" if first else None)


def _cost(experiment: Experiment, model: str, path: Path) -> list[Path]:
    """What each unit of compute bought: ID, OOD and transfer over floating-point operations."""
    figure = new_figure(14.0, 3.9)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for index, regime in enumerate(experiment.regimes(model)):
        colour, runs = STYLES[index][0], experiment.select(model, regime)
        for axes, split in zip(panels, (ID, OOD), strict=False):
            steps, middle, low, high = band([run.curve("accuracy", split) for run in runs])
            flops = [sum(run.flops(step) or 0.0 for run in runs) / len(runs) for step in steps]
            axes.plot(flops, middle, color=colour, linewidth=1.6, label=NAMES.get(regime, regime))
            axes.fill_between(flops, low, high, color=colour, alpha=0.15, linewidth=0)
        points = spent(experiment, model, regime)
        panels[2].plot([x for x, _ in points], [y for _, y in points], "o-", color=colour, linewidth=1.4, markersize=4)
    for axes, title in zip(panels, ("held-out ID queries", "OOD queries", "new + old after fine-tuning"), strict=True):
        if axes.lines and any(len(line.get_xdata()) for line in axes.lines):
            axes.set_xscale("log")
        axes.set_xlabel("floating-point operations so far")
        _panel(axes, title, "exact match" if axes is panels[0] else None)
    _legend(figure, panels[0])
    figure.suptitle(f"What compute bought: {model}; transfer: each dot a starting point, pre-training included")
    return save(figure, path)
