"""`Faithfulness`: how small a circuit keeps the accuracy, how well, and what each of its nodes does, over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from grok.callbacks.circuit import Analysis, CircuitCallback
from grok.circuits import Grid, Node, ablation, completeness, faithfulness, find_circuit, node_of, nodes_of
from grok.circuits.ablations import How, ablate
from grok.data import RegimeDataModule, Split
from grok.errors import Problem, insist
from grok.models import StepModel
from grok.report.faithfulness import RECORDED

__all__ = ["Faithfulness"]


class Faithfulness(CircuitCallback):
    """Faithfulness and completeness of a circuit, see `grok.circuits.faithfulness` and `grok.circuits.find_circuit`.

    Without `nodes` the circuit is searched anew at every analysed step, on every second example, and measured on the
    others: on those that it was chosen by it would look better than it is.

    Args:
        nodes: the circuit, named as `2.head0@r1`, `1.mlp@r2`; null means what the search finds.
        threshold: share of the accuracy that a circuit found has to keep, above 0 and at most 1.
        how: what the other nodes are replaced by: `zero`, their `mean` over the examples, or `resample`d from a query
            with another answer.
        options: see `CircuitCallback`.
    """

    kind = "faithfulness"
    names = RECORDED

    def __init__(
        self, nodes: Sequence[str] | None = None, threshold: float = 0.9, how: How = "mean", **options: Any
    ) -> None:
        super().__init__(**options)
        insist(self.check(nodes=nodes, threshold=threshold))
        self.nodes, self.threshold, self.how = nodes, threshold, how

    @staticmethod
    def check(**options: Any) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems, threshold = CircuitCallback.check(**options), options.get("threshold", 0.9)
        if not 0 < threshold <= 1:
            problems.append(Problem("threshold", threshold, "use a share above 0 and at most 1"))
        nodes = options.get("nodes")
        if nodes is not None and len(set(nodes)) < max(1, len(nodes)):
            problems.append(Problem("nodes", nodes, "name one or more, each once, as 2.head0@r1, or null to search"))
        return problems

    def validate(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> None:
        """See `CircuitCallback.validate`."""
        if self.nodes is not None:
            self._named(model, split)
        elif len(split) < 2:
            insist([Problem("examples", len(split), "use 2 or more: half of them choose the circuit")])
        for part in self._halves(split):
            outcome = ablate(model, part, [nodes_of(model, part)[:1]], self.how, batch=self.batch)
            if not bool(outcome.exists.any()):
                fix = f"needs queries with other answers among the {len(part)} examples: use more, or mean or zero"
                insist([Problem("how", self.how, fix)])

    def _halves(self, split: Split) -> tuple[Split, Split]:
        """Examples that choose the circuit, and others that it is measured on; of a named one all are measured."""
        if self.nodes is not None:
            return split, split
        return split.take(slice(0, None, 2)), split.take(slice(1, None, 2))

    def _named(self, model: StepModel, split: Split) -> list[Node]:
        return [node_of(model, split, name) for name in self.nodes or ()]

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        choosing, measured = self._halves(split)
        if self.nodes is None:
            found = find_circuit(model, choosing, self.threshold, self.how, batch=self.batch)
            if found.accuracy == 0:  # there is nothing to keep
                return Analysis([])
            circuit = list(found.nodes)
        else:
            circuit = self._named(model, split)
        grids = [Grid.of_model("circuit", {"what": ("nodes",)}, torch.tensor([float(len(circuit))]))]
        for measure in (faithfulness, completeness):
            share = measure(model, measured, circuit, self.how, batch=self.batch)
            grids.append(replace(share, axes={"circuit": ("circuit",)}))
        if circuit:
            grids.append(ablation(model, measured, circuit, self.how, batch=self.batch))
        return Analysis(grids)
