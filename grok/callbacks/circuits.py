"""The circuit callbacks: thin wrappers that run `grok.circuits` while a model trains, or on its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from grok.callbacks.circuit import Analysis, CircuitCallback
from grok.circuits import (
    Counterfactual,
    causal_tracing,
    columns,
    composition_counterfactuals,
    logit_lens,
    other_queries,
    same_bridge_counterfactuals,
)
from grok.circuits.tracing import MEASURES
from grok.data import RegimeDataModule, Split
from grok.errors import BadInput, Problem, insist
from grok.models import StepModel

__all__ = ["CausalTracing", "LogitLens"]


class LogitLens(CircuitCallback):
    """Logit lens at every state S[i, p], see `grok.circuits.logit_lens`.

    Args:
        columns: ground truth looked for: `answer`, `bridge`, the token shown at a position (`r2`); null means the
            bridge, the token at the last prompt position, and the answer, where the split has them.
        measures: `mrr`, `probability`, `logit`, `rank`, `recall@k`.
        norm: read out through the final norm.
        restrict: rank among the possible answers instead of the whole vocabulary.
        top: tokens kept per state and query in `analysis/`.
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
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.columns, self.measures, self.norm, self.restrict, self.top = columns, measures, norm, restrict, top

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        lens = logit_lens(
            model, split, self.columns or _usual_columns(split), norm=self.norm, restrict=self.restrict, top=self.top,
            batch=self.batch,
        )  # fmt: skip
        grids = [lens.grid(column, measure) for column in lens.columns for measure in self.measures]
        tensors = {f"{column}/rank": lens.readings[column].rank for column in lens.columns}
        tensors |= {f"{column}/probability": lens.readings[column].probability for column in lens.columns}
        return Analysis(grids, {**tensors, "top": lens.readings[lens.columns[0]].top})


def _usual_columns(split: Split) -> list[str]:
    last = split.positions[int(split.at[0, 0])] if len(split) else ""
    bridge = split.truth.get("bridge")
    known = bridge is not None and bool((bridge >= 0).any())
    return [*(["bridge"] if known else []), *([last] if last in columns(split) else []), "answer"]


class CausalTracing(CircuitCallback):
    """Causal tracing of every state S[i, p], see `grok.circuits.causal_tracing`.

    Args:
        counterfactuals: `reference`, as the released code of Wang et al. 2024; `valid`, only ones that are queries
            themselves; `other`, the states of other queries of the split, for any regime; null means `reference` for
            two-hop queries and `other` for all else.
        measures: `changed`, `rank`, `flipped`, `probability`, `logit_difference`, see `grok.circuits.tracing.MEASURES`.
        only_correct: count only queries that the unpatched run gets right.
        floor: measure counterfactuals that keep the bridge (or the answer) beside them; doubles the work.
        restrict: rank among the possible answers instead of the whole vocabulary.
        options: see `CircuitCallback`.
    """

    kind = "tracing"

    def __init__(
        self,
        counterfactuals: Literal["reference", "valid", "other"] | None = None,
        measures: Sequence[str] = ("changed",),
        only_correct: bool = False,
        floor: bool = True,
        restrict: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.counterfactuals, self.measures, self.only_correct = counterfactuals, measures, only_correct
        self.floor, self.restrict = floor, restrict
        self._drawn: dict[str, tuple[list[Counterfactual], list[Counterfactual]]] = {}

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        if name not in self._drawn:
            self._drawn[name] = self._draw(data, split)
        counterfactuals, floor = self._drawn[name]
        tracing = causal_tracing(
            model, split, counterfactuals, floor if self.floor else None, restrict=self.restrict, batch=self.batch
        )
        patched = tracing.outcome.patched
        return Analysis(
            [tracing.strength(measure, self.only_correct) for measure in self.measures],
            {
                "rank": patched.rank[..., 0],
                "top": patched.top[..., 0],
                "clean_rank": tracing.outcome.clean.rank[:, 0, 0],
                "exists": tracing.exists,
                "inputs": torch.stack([one.inputs for one in counterfactuals], 1),
            },
        )

    def _draw(self, data: RegimeDataModule, split: Split) -> tuple[list[Counterfactual], list[Counterfactual]]:
        facts = data.generated.facts
        two_hop = facts is not None and "bridge" in split.truth and bool((split.truth["bridge"] >= 0).all())
        kind = self.counterfactuals or ("reference" if two_hop else "other")
        if kind == "other":
            return other_queries(split), other_queries(split, same_answer=True)
        if facts is None:
            fix = f"{type(data).__name__} has no atomic facts: use other"
            raise BadInput(Problem("counterfactuals", kind, fix))
        drawn = composition_counterfactuals(split, facts, valid=kind == "valid")
        return drawn, same_bridge_counterfactuals(split, facts)

    def validate(self, model: StepModel, data: RegimeDataModule, split: Split) -> None:
        """See `CircuitCallback.validate`."""
        wrong = [measure for measure in self.measures if measure not in MEASURES]
        insist([Problem("measures", wrong, f"use {', '.join(MEASURES)}")] if wrong else [])
        self._draw(data, split)
