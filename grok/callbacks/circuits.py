"""The circuit callbacks: thin wrappers that run `grok.circuits` while a model trains, or on its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch

from grok.callbacks.circuit import Analysis, CircuitCallback
from grok.circuits import (
    Counterfactual,
    attention_patterns,
    causal_tracing,
    column,
    columns,
    cosine_lens,
    counterfactuals_for,
    fact_map,
    fourier_analysis,
    full_run_probing,
    immediate_probing,
    linear_probes,
    logit_lens,
    semantic_pairs,
    semantic_patching,
)
from grok.circuits.tracing import MEASURES
from grok.data import AtomicFacts, ModularArithmetic, RegimeDataModule, Split
from grok.errors import Problem, insist
from grok.models import StepModel

__all__ = ["AttentionMaps", "CausalTracing", "CosineLens", "Fourier", "LogitLens", "Probes", "SemanticPatching"]


class LogitLens(CircuitCallback):
    """Logit lens at every state S[i, p], see `grok.circuits.logit_lens`.

    Args:
        columns: ground truth looked for: `answer`, `bridge`, the token shown at a position (`r2`); null means the
            bridge, the token at the last prompt position, and the answer, where the split has them.
        measures: `mrr`, `probability`, `logit`, `rank`, `recall@k`.
        norm: read out through the final norm.
        restrict: rank among the possible answers instead of the whole vocabulary.
        top: tokens kept per state and query in `analysis/`.
        streams: of a model with several streams, `decoded` reads the one that it decodes at S[i], `each` all of them.
        options: see `CircuitCallback`.
    """

    kind = "lens"

    def __init__(
        self,
        columns: Sequence[str] | None = None,
        measures: Sequence[str] = ("mrr",),
        norm: bool = True,
        restrict: bool = False,
        top: int = 3,
        streams: Literal["decoded", "each"] = "decoded",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.columns, self.measures, self.norm, self.restrict, self.top = columns, measures, norm, restrict, top
        self.streams = streams

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        lens = logit_lens(
            model, split, self.columns or _usual_columns(split), norm=self.norm, restrict=self.restrict, top=self.top,
            batch=self.batch, streams=self.streams,
        )  # fmt: skip
        grids = [lens.grid(column, measure) for column in lens.columns for measure in self.measures]
        tensors = {f"{column}/rank": lens.readings[column].rank for column in lens.columns}
        tensors |= {f"{column}/probability": lens.readings[column].probability for column in lens.columns}
        tensors |= {f"{name}/token": column(split, name) for name in lens.columns}
        return Analysis(grids, {**tensors, "top": lens.readings[lens.columns[0]].top})


def _usual_columns(split: Split) -> list[str]:
    shown = [name for name in split.positions if not name.startswith(("t", "answer", "end", "pad"))]  # the prompt
    last = shown[-1] if shown else ""
    bridge = split.truth.get("bridge")
    known = bridge is not None and bool((bridge >= 0).any())
    hops = bridge.shape[1] if bridge is not None and known else 0
    bridges = ["bridge"] * hops if hops < 2 else [f"bridge[{hop}]" for hop in range(hops)]
    return [*bridges, *([last] if last in columns(split) else []), "answer"]


class CausalTracing(CircuitCallback):
    """Causal tracing of every state S[i, p], see `grok.circuits.causal_tracing`.

    Args:
        counterfactuals: `reference`, as the released code of Wang et al. 2024; `valid`, only ones that are queries
            themselves; `other`, the states of other queries of the split, for any regime; null means `reference` for
            two-hop queries and comparisons, and `other` for all else.
        measures: `changed`, `rank`, `flipped`, `probability`, `logit_difference`, see `grok.circuits.tracing.MEASURES`.
        only_correct: count only queries that the unpatched run gets right.
        target: [step, position, ground truth] of another state to look at, such as `[2, r1, bridge]`; null means the
            answer.
        floor: measure counterfactuals that keep the bridge (the value, the answer) beside them; doubles the work.
        restrict: rank among the possible answers instead of the whole vocabulary.
        streams: of a model with several streams, patch them `together`, or `each` by itself.
        options: see `CircuitCallback`.
    """

    kind = "tracing"

    def __init__(
        self,
        counterfactuals: Literal["reference", "valid", "other"] | None = None,
        measures: Sequence[str] = ("changed",),
        only_correct: bool = False,
        target: tuple[int, str, str] | None = None,
        floor: bool = True,
        restrict: bool = False,
        streams: Literal["together", "each"] = "together",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.counterfactuals, self.measures, self.only_correct = counterfactuals, measures, only_correct
        self.target, self.floor, self.restrict, self.streams = target, floor, restrict, streams
        self._drawn: dict[str, tuple[list[Counterfactual], list[Counterfactual]]] = {}

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        if name not in self._drawn:
            self._drawn[name] = self._draw(data, split)
        counterfactuals, floor = self._drawn[name]
        tracing = causal_tracing(
            model, split, counterfactuals, floor if self.floor else None, target=self.target, restrict=self.restrict,
            batch=self.batch, streams=self.streams,
        )  # fmt: skip
        patched = tracing.outcome.patched
        return Analysis(
            [tracing.strength(measure, self.only_correct) for measure in self.measures],
            {
                "rank": patched.rank[..., 0],
                "top": patched.top[..., 0],
                "clean_rank": tracing.outcome.clean.rank[:, 0, 0],
                "exists": tracing.exists,
                "changed": tracing.examples("changed").half(),
                "counterfactuals": torch.stack([one.inputs for one in counterfactuals], 1),
            },
        )

    def _draw(self, data: RegimeDataModule, split: Split) -> tuple[list[Counterfactual], list[Counterfactual]]:
        return counterfactuals_for(data.generated.facts, split, self.counterfactuals)

    def validate(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> None:
        """See `CircuitCallback.validate`."""
        wrong = [measure for measure in self.measures if measure not in MEASURES]
        insist([Problem("measures", wrong, f"use {', '.join(MEASURES)}")] if wrong else [])
        drawn, _ = self._draw(data, split)
        if self.target is None:
            return
        unknown = [measure for measure in self.measures if measure in ("flipped", "logit_difference")]
        if unknown:
            insist([Problem("measures", unknown, "need the counterfactual's answer: use others, or no target")])
        causal_tracing(model, split.take(slice(0, 1)), [one.take(slice(0, 1)) for one in drawn], target=self.target)


class SemanticPatching(CircuitCallback):
    """Cross-query semantic patching, and immediate and full-run probing of the bridge, see `grok.circuits.semantic`.

    Args:
        pairs: pairs of a source and a target query; fewer if there are not so many.
        sources: split of the source queries; null takes sources and targets from the same split.
        only_correct: count only targets that the unpatched run gets right.
        probing: measure immediate and full-run probing too.
        options: see `CircuitCallback`.
    """

    kind = "semantic"

    def __init__(
        self,
        pairs: int = 300,
        sources: str | None = None,
        only_correct: bool = False,
        probing: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.pairs, self.sources, self.only_correct, self.probing = pairs, sources, only_correct, probing

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        facts, sources = self._knowledge(data)
        semantic = semantic_patching(model, split, facts, self.pairs, sources, batch=self.batch)
        grids = [semantic.grid(self.only_correct)]
        if self.probing:
            grids += [immediate_probing(model, split), full_run_probing(model, split, batch=self.batch)]
        pairs = semantic.pairs
        shown = {"target": split.inputs[pairs.target], "source": (sources or split).inputs[pairs.source]}
        tensors = {"success": semantic.success, "correct": semantic.correct, "expected": pairs.expected}
        return Analysis(grids, tensors | {f"{name}_inputs": inputs for name, inputs in shown.items()})

    def _knowledge(self, data: RegimeDataModule) -> tuple[AtomicFacts, Split | None]:
        facts = data.generated.facts
        if not isinstance(facts, AtomicFacts):
            insist([Problem("enabled", True, f"{type(data).__name__} has no atomic facts (h, r) → t: use false")])
        if self.sources is not None and self.sources not in data.splits:
            insist([Problem("sources", self.sources, f"no such split; this regime has {', '.join(data.splits)}")])
        return cast(AtomicFacts, facts), None if self.sources is None else data.splits[self.sources]

    def validate(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> None:
        """See `CircuitCallback.validate`."""
        facts, sources = self._knowledge(data)
        semantic_pairs(split, facts, sources, self.pairs)
        if self.probing:
            full_run_probing(model, split, batch=self.batch)


class CosineLens(CircuitCallback):
    """ID cohesion and OOD alignment of the states of a bridge, and a map of some, see `grok.circuits.similarity`.

    `splits` name where ID facts are taken from; null means `id_atomic`. `examples` null means all facts.

    Args:
        position: whose states are compared.
        least: count entities with at least so many ID facts (one alone is its own centroid).
        mapped: entities in the map of states; 0 makes none.
        options: see `CircuitCallback`.
    """

    kind = "cosine"

    def __init__(self, position: str = "r1", least: int = 2, mapped: int = 6, **options: Any) -> None:
        super().__init__(**options)
        insist(self.check(mapped=mapped))
        self.position, self.least, self.mapped = position, least, mapped

    @staticmethod
    def check(**options: Any) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        mapped = options.get("mapped", 6)
        wrong = (
            [] if 0 <= mapped <= 8 else [Problem("mapped", mapped, "use 0 (no map) to 8 entities, as many as colours")]
        )
        return CircuitCallback.check(**options) + wrong

    def usual_splits(self, data: RegimeDataModule) -> Sequence[str]:
        """The ID atomic facts."""
        if not {"id_atomic", "ood_atomic"} <= set(data.splits):
            have = f"{type(data).__name__} has {', '.join(data.splits)}"
            insist([Problem("cosine.enabled", True, f"needs ID and OOD atomic facts, and {have}: use false")])
        return ["id_atomic"]

    def usual_examples(self, split: Split) -> int | None:
        """All facts."""
        return len(split)

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        unknown = data.splits["ood_atomic"]
        lens = cosine_lens(model, split, unknown, self.position, batch=self.batch)
        grids = [lens.grid(measure, self.least) for measure in ("cohesion", "alignment")]
        tensors = {"entities": lens.entities, "id_facts": lens.id_facts, "ood_facts": lens.ood_facts}
        tensors |= {"cohesion": lens.cohesion, "alignment": lens.alignment}
        if self.mapped:
            drawn = fact_map(model, split, unknown, self.position, entities=self.mapped)
            tensors |= {"map/place": drawn.place, "map/tail": drawn.tail, "map/ood": drawn.ood}
            tensors["map/step"] = torch.tensor(drawn.step)
        return Analysis(grids, tensors)


class Probes(CircuitCallback):
    """Linear probes of every state, see `grok.circuits.linear_probes`. `examples` null means 1,000, or all if fewer.

    Args:
        columns: ground truth that is probed for, one probe each; null means the bridge, or the answer if there is none.
        held_out: share of the groups of queries that is held out.
        ridge: penalty of the ridge regression.
        options: see `CircuitCallback`.
    """

    kind = "probes"

    def __init__(
        self, columns: Sequence[str] | None = None, held_out: float = 0.3, ridge: float = 0.01, **options: Any
    ) -> None:
        super().__init__(**options)
        self.columns, self.held_out, self.ridge = columns, held_out, ridge

    def usual_examples(self, split: Split) -> int | None:
        """A probe needs several examples of each class."""
        return min(1000, len(split))

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        found = [
            linear_probes(model, split, one, held_out=self.held_out, ridge=self.ridge, batch=self.batch)
            for one in self.columns or _usual_columns(split)[:1]
        ]
        tensors = {f"{one.column}/correct": one.correct for one in found}
        return Analysis([one.grid() for one in found], tensors | {f"{one.column}/rows": one.rows for one in found})


class AttentionMaps(CircuitCallback):
    """Where every head looks from the answer, see `grok.circuits.attention_patterns`.

    Args:
        groups: named groups of key positions (`{fact: [h, r1]}`); null means every position by itself.
        query: the position that looks; null means where the answer is read.
        options: see `CircuitCallback`.
    """

    kind = "attention"

    def __init__(self, groups: dict[str, list[str]] | None = None, query: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.groups, self.query = groups, query

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        attention = attention_patterns(model, split, self.batch)
        return Analysis([attention.mass(self.groups, self.query)], {"patterns": attention.patterns.half()})


class Fourier(CircuitCallback):
    """Restricted and excluded loss in modular arithmetic, see `grok.circuits.fourier_analysis`: all p² pairs at a time.

    Args:
        share: of the logits' variance, that the key frequencies should hold.
        most: key frequencies at most.
        options: see `CircuitCallback`; not `examples` and `splits`.
    """

    kind = "fourier"

    def __init__(self, share: float = 0.9, most: int = 5, **options: Any) -> None:
        super().__init__(**options)
        insist(self.check(**options))
        self.share, self.most = share, most

    @staticmethod
    def check(**options: Any) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        given = [(key, options[key]) for key in ("examples", "splits") if options.get(key) is not None]
        fix = "this analysis looks at all p² pairs: leave it out"
        return CircuitCallback.check(**options) + [Problem(key, value, fix) for key, value in given]

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        if not isinstance(data, ModularArithmetic):
            insist([Problem("enabled", True, f"is for ModularArithmetic, not for {type(data).__name__}: use false")])
        found = fourier_analysis(model, cast(ModularArithmetic, data), self.share, self.most, batch=self.batch)
        tensors = {"frequencies": torch.tensor(found.frequencies), "shares": found.shares, "embedding": found.embedding}
        return Analysis([found.loss, found.accuracy], tensors)
