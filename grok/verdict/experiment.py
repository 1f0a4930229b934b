"""Reading an experiment: which runs there are, what each is, and whether they may be compared at all."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from grok.errors import BadInput
from grok.milestones import BRIDGE_DECIDES
from grok.reading import read_text, read_yaml
from grok.records import RunRecord
from grok.verdict.curves import Curve, curves_of
from grok.verdict.published import REGIMES

__all__ = ["PRETRAINING", "SCRATCH", "Experiment", "Run", "by_seed"]

PRETRAINING, SCRATCH = "pretraining", "scratch"
_DATA = ("entities", "relations", "out_degree", "ood", "iid", "phi", "k")
_TRANSFER_CLASS = "NewKnowledge"
_KNOWN = "test_inferred_iid"
_PATCHED = re.compile(r"tracing/changed/S\[(\d+),r1\]")
_READ_OUT = re.compile(r"lens/mrr/bridge/S\[(\d+),r1\]")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        directory: where it is.
        regime: exposure regime, or that of its source.
        model: what tells models apart, in words.
        seed: of everything.
        start: `PRETRAINING`, `SCRATCH`, or the milestone (or step) of the source that it was fine-tuned from.
        graph: what fixes the knowledge graph, and how densely it is composed and exposed.
        causal: whether a position sees only those before it.
    """

    directory: Path
    regime: str
    model: str
    seed: int
    start: str
    graph: Mapping[str, Any] = field(hash=False)
    causal: bool = True

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Its `summary.json`."""
        return RunRecord(self.directory).summary() or {}

    @cached_property
    def curves(self) -> dict[tuple[str, str], Curve]:
        """Its curves by name and split."""
        return curves_of(RunRecord(self.directory).rows())

    def curve(self, name: str, split: str) -> Curve:
        """One curve; an empty one if that was not measured."""
        return self.curves.get((name, split), Curve())

    def bridge_found(self, split: str) -> Curve:
        """Bridge Found at any state and position, as published, chance taken away."""
        return self.curve("found/bridge", split).corrected()

    def bridge(self, split: str) -> Curve:
        """The bridge where it is read: its mean reciprocal rank in S[`seat`, r1], chance taken away.

        Where no state decides, the largest of any state at r1 that a later step reads. Empty if none was patched. In a
        model that is not causal, the share of queries whose bridge is found in any state that a later step reads.
        """
        if not self.causal:
            return self.curve("found/bridge_distinct", split).corrected()
        index = _indexed(_READ_OUT, self.curves, split)
        if self.seat is not None:
            return index.get(self.seat, Curve()).corrected()
        inner = [curve.corrected() for place, curve in index.items() if 0 < place < max(index)]
        return _highest(inner) if self._strengths(_KNOWN) else Curve()

    @cached_property
    def seat(self) -> int | None:
        """i of the last state S[i, r1] that decides answers to held-out ID queries at the end: the one that is read.

        Its strength is at least `BRIDGE_DECIDES`. Neither the embedding, which is what is asked, nor the last state,
        which no step reads, counts. None if there is no such state, or none was patched.
        """
        ends = {index: curve.last for index, curve in self._strengths(_KNOWN).items()}
        inner = {index: value for index, value in ends.items() if 0 < index < max(ends)}
        return max((index for index, value in inner.items() if value >= BRIDGE_DECIDES), default=None)

    def decides(self, split: str) -> Curve:
        """Causal strength of S[`seat`, r1], above its floor; of the strongest state where none decides."""
        return self.strength(split) if self.seat is None else self._strengths(split).get(self.seat, Curve())

    def strength(self, split: str) -> Curve:
        """Causal strength of the state S[1, r1], S[2, r1], … that decides most at each step, above its floor."""
        return _highest([curve for index, curve in self._strengths(split).items() if index])

    def _strengths(self, split: str) -> dict[int, Curve]:
        """Causal strength of each S[i, r1] above its floor, by i; none in a model that is not causal.

        There S[i, r1] may know r2, and so the answer: what changes it need not be the bridge.
        """
        if not self.causal:
            return {}
        return {index: curve.above_floor() for index, curve in _indexed(_PATCHED, self.curves, split).items()}

    def flops(self, step: float | None) -> float | None:
        """Floating-point operations up to `step`, those of its source included."""
        if step is None or not self.summary.get("step") or self.summary.get("flops") is None:
            return None
        return float(self.summary["flops"] * step / self.summary["step"] + self.source_flops)

    def hours(self, step: float | None) -> float | None:
        """Wall hours up to `step`, without those of its source."""
        if step is None or not self.summary.get("step") or self.summary.get("wall_seconds") is None:
            return None
        return float(self.summary["wall_seconds"] * step / self.summary["step"] / 3600)

    @property
    def source_flops(self) -> float:
        """What the source had spent when this run started from it."""
        return float((self.summary.get("start") or {}).get("flops") or 0.0)


@dataclass(frozen=True)
class Experiment:
    """The finished runs of a directory, and how many others it has."""

    directory: Path
    runs: tuple[Run, ...]
    unfinished: int

    @classmethod
    def load(cls, directory: str | Path) -> Experiment:
        """Read every run in `directory`: a sweep, or any directory that holds run directories.

        Raises:
            BadInput: if there is no finished run of an exposure regime, or runs have different graphs, or nothing that
                is judged here tells two of them apart.
        """
        place = Path(directory)
        configs = sorted(place.rglob("config.yaml")) if place.is_dir() else []
        read = [(path.parent, _configuration(path)) for path in configs]
        finished = [one for one in read if one[1] and RunRecord(one[0]).is_finished()]
        runs = tuple(run for run in (_run(*one) for one in finished) if run is not None)
        if not any(run.start == PRETRAINING for run in runs):
            told = "no finished run of grok.data.FactExposure in it"
            raise BadInput(f"{directory}: {told}; give the directory of a sweep such as configs/he2026/small.yaml")
        _insist_on_one_graph(runs)
        _insist_on_one_of_each(runs)
        return cls(place, runs, _planned(place, len(read)) - len(finished))

    def select(self, model: str, regime: str | None = None, start: str = PRETRAINING) -> list[Run]:
        """Runs of a model, by seed."""
        chosen = [run for run in self.runs if run.model == model and run.start == start]
        return sorted((run for run in chosen if regime in (None, run.regime)), key=lambda run: (run.regime, run.seed))

    @property
    def models(self) -> list[str]:
        """Models that were pre-trained, the one with most runs first."""
        names = [run.model for run in self.runs]
        trained = {run.model for run in self.runs if run.start == PRETRAINING}
        return sorted(trained, key=lambda name: (-names.count(name), name))

    def regimes(self, model: str, start: str = PRETRAINING) -> list[str]:
        """Regimes that a model was trained in, in the order of the paper."""
        found = {run.regime for run in self.select(model, None, start)}
        return [regime for regime in REGIMES if regime in found] + sorted(found - set(REGIMES))

    def starts(self, model: str) -> list[str]:
        """Where the transfer runs of a model started: from scratch, then the least trained first (median step)."""
        steps: dict[str, list[int]] = {}
        for run in self.runs:
            if run.model == model and run.start != PRETRAINING:
                steps.setdefault(run.start, []).append((run.summary.get("start") or {}).get("step") or 0)
        return sorted(steps, key=lambda start: (start != SCRATCH, statistics.median(steps[start]), start))

    def seeds(self, model: str) -> list[int]:
        """Seeds of a model's runs."""
        return sorted({run.seed for run in self.runs if run.model == model})


def _indexed(pattern: re.Pattern[str], curves: Mapping[tuple[str, str], Curve], split: str) -> dict[int, Curve]:
    """Curves of a split by the state that their name says."""
    names = {name: pattern.fullmatch(name) for name, where in curves if where == split}
    return {int(match[1]): curves[name, split] for name, match in names.items() if match}


def _highest(curves: Sequence[Curve]) -> Curve:
    """The largest value at each step at which any was measured."""
    best: dict[int, float] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            best[step] = max(best.get(step, -math.inf), value)
    steps = tuple(sorted(best))
    values = tuple(best[step] for step in steps)
    return Curve(steps, values, (0.0,) * len(steps), max((curve.n for curve in curves), default=0))


def _planned(directory: Path, begun: int) -> int:
    manifest = directory / "manifest.jsonl"
    return len(read_text(manifest).splitlines()) if manifest.is_file() else begun


def _configuration(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except BadInput:  # an unfinished run, as far as can be known
        content = None
    return content if isinstance(content, dict) and isinstance(content.get("data"), dict) else {}


def _run(directory: Path, config: Mapping[str, Any]) -> Run | None:
    try:
        return _described(directory, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"not the configuration of a run ({type(error).__name__}: {error})"
        raise BadInput(f"{directory / 'config.yaml'}: {told}; restore it, or take the run away") from None


def _described(directory: Path, config: Mapping[str, Any]) -> Run | None:
    data = config["data"].get("init_args") or {}
    if "regime" not in data:
        return None
    start = config.get("start") or {}
    transfer = str(config["data"].get("class_path")).endswith(_TRANSFER_CLASS)
    began = str(start["step"]) if start.get("run") else SCRATCH
    graph = {key: data.get(key) for key in _DATA}
    if missing := [key for key in _DATA[:4] if not isinstance(graph[key], int | float)]:
        raise ValueError(f"data.{missing[0]} is {graph[missing[0]]!r}")
    graph["graph_seed"] = config.get("seed_everything") if data.get("graph_seed") is None else data["graph_seed"]
    return Run(
        directory,
        str(data["regime"]),
        _model(config["model"]["net"]),
        int(config["seed_everything"]),
        began if transfer else PRETRAINING,
        graph,
        _is_causal(config["model"]["net"]),
    )


def _is_causal(net: Mapping[str, Any]) -> bool:
    options = net.get("init_args") or {}
    return "high_cycles" not in options and options.get("causal") is not False


def _model(net: Mapping[str, Any]) -> str:
    """`2 blocks × 2 loops (shared)`, or what a recursive model is."""
    options = net.get("init_args") or {}
    if "high_cycles" in options:
        cycles = f"{options['high_cycles']} × {options['low_cycles']} cycles"
        return f"recursive, {cycles}, mixing {options.get('mixing', 'tokens')}"
    layers, loops = options.get("layers", 1), options.get("loops", 1)
    shared = "shared" if loops > 1 else "unshared"
    return f"{layers} blocks × {loops} loop{'s' if loops != 1 else ''} ({shared})"


def _insist_on_one_graph(runs: Sequence[Run]) -> None:
    """Regimes, starts and models of one seed answer the same tests about the same graph, and seeds one size of it."""
    first = runs[0]
    for run in runs:
        for key in _DATA:
            if run.graph[key] != first.graph[key]:
                raise BadInput(_different(key, run, first))
    by_seed: dict[int, Run] = {}
    for run in runs:
        other = by_seed.setdefault(run.seed, run)
        if run.graph != other.graph:
            raise BadInput(_different("graph_seed", run, other))


def _insist_on_one_of_each(runs: Sequence[Run]) -> None:
    """Two runs of one setting and seed would count as two seeds, or one of them not at all."""
    found: dict[tuple[str, str, int, str], Run] = {}
    for run in runs:
        other = found.setdefault((run.model, run.regime, run.seed, run.start), run)
        if other is not run:
            what = f"{run.model}, {run.regime}, seed {run.seed}, {run.start}"
            told = f"{other.directory} and {run.directory} are both {what}"
            raise BadInput(f"two runs of one setting: {told}; give a directory that holds one of them")


def _different(key: str, one: Run, other: Run) -> str:
    told = " and ".join(f"{run.directory} has data.{key}={run.graph[key]!r}" for run in (other, one))
    return f"runs on different data cannot be compared: {told}; use the same graph, phi and k for all"


def by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    """Runs by seed."""
    return {run.seed: run for run in runs}
