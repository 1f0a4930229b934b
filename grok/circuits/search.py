"""Is a set of nodes the circuit? Faithfulness, completeness, and the search for a smallest set.

Shape legend: N example, S set of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from grok.circuits.ablations import BATCH, Ablated, How, ablate
from grok.circuits.grid import Grid
from grok.circuits.nodes import Node, insist_on_nodes, label, nodes_of
from grok.circuits.patching import Counterfactual
from grok.data.keyed import keyed_hash
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel

__all__ = ["FoundCircuit", "completeness", "faithfulness", "find_circuit"]


@dataclass(frozen=True)
class FoundCircuit:
    """What `find_circuit` found.

    Args:
        nodes: the circuit, by step.
        labels: its nodes as `2.head0@r1`.
        how: what the other nodes were replaced by.
        accuracy: of the whole model.
        floor: accuracy with every node replaced, of the empty circuit.
        faithfulness: share of the accuracy that the circuit alone keeps; NaN if there is none to keep.
        completeness: share of the accuracy that is lost without the circuit; well below 1 if other nodes can stand in.
        evaluations: sets of nodes tried, each one forward evaluation of all examples.
    """

    nodes: tuple[Node, ...]
    labels: tuple[str, ...]
    how: How
    accuracy: float
    floor: float
    faithfulness: float
    completeness: float
    evaluations: int


def faithfulness(
    model: StepModel,
    split: Split,
    circuit: Sequence[Node],
    how: How = "mean",
    other: Counterfactual | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Grid:
    """Share of the model's accuracy that is kept if only the circuit is (Wang et al. 2023; Hanna et al. 2024).

    All other nodes of `nodes_of` are replaced; the embedding is kept. The floor is the empty circuit; unlike in Hanna
    et al. 2024 it is not subtracted, so that 0 stands for no right answer and not for what is left without any node.

    Args:
        model: any step model with token outputs.
        split: N examples.
        circuit: the nodes that are kept.
        how: what the others are replaced by: `zero`, their `mean` over the examples given, or `resample`d from another
            query, see `grok.circuits.ablations.ablation`.
        other: see `ablation`.
        seed: see `ablation`.
        batch: most rows of one forward pass; bounds memory.

    Returns:
        A grid of one cell, on the axis `circuit`; 1 is faithful; NaN if the model is never right. The interval is that
        of the ratio: right answers with and without the replacement are resampled together.

    Raises:
        BadInput: for nodes or replacements that do not exist, or answers that are no tokens.
    """
    insist_on_nodes(model, split, circuit)
    every = nodes_of(model, split)
    others = [node for node in every if node not in set(circuit)]
    whole, kept = _right(ablate(model, split, [others, every], how, other, seed, batch))
    return _grid(f"faithfulness/{how}", split, circuit, kept, whole)


def completeness(
    model: StepModel,
    split: Split,
    circuit: Sequence[Node],
    how: How = "mean",
    other: Counterfactual | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Grid:
    """Share of the model's accuracy that is lost if the circuit alone is replaced (Wang et al. 2023).

    Low if the model has another way to the answer. The floor is a random set of other nodes, as many as the circuit has
    (all, if there are fewer). Arguments, return value and errors are those of `faithfulness`.
    """
    insist_on_nodes(model, split, circuit)
    others = [node for node in nodes_of(model, split) if node not in set(circuit)]
    drawn = sorted(others, key=lambda node: int(keyed_hash("others", seed, crc32(str(tuple(node)).encode()))))
    whole, kept = _right(ablate(model, split, [circuit, drawn[: len(circuit)]], how, other, seed, batch))
    return _grid(f"completeness/{how}", split, circuit, whole - kept, whole)


def _right(outcome: Ablated) -> tuple[Tensor, Tensor]:
    """Whether the answer is right without `[N, 1]` and with each change `[N, S]`: 0 or 1; NaN if it does not count."""
    clean, after = (side.float().masked_fill(~outcome.exists[:, None], torch.nan) for side in outcome.correct)
    return clean, after


def _grid(name: str, split: Split, circuit: Sequence[Node], values: Tensor, whole: Tensor) -> Grid:
    """The first set's values `[N, 2]` per right answer of the `whole` model `[N, 1]`; the second one's as the floor."""
    labels = (" + ".join(label(split, node) for node in circuit) or "nothing",)
    return Grid.of(name, {"circuit": labels}, values[:, :1], values[:, 1:], base=whole)


def find_circuit(
    model: StepModel,
    split: Split,
    threshold: float = 0.9,
    how: How = "mean",
    other: Counterfactual | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> FoundCircuit:
    """Greedy search for a small set of nodes that alone keeps `threshold` of the model's accuracy.

    Nodes are removed (replaced for good) one after the other, those first whose single ablation does the least damage
    (accuracy, then loss), and a removal stays if the accuracy does; passes are repeated until one removes nothing. So
    the result is 1-minimal: without any one more of its nodes the accuracy is below the threshold. A smaller set of
    another kind may exist, and of two circuits that can stand in for each other only one is left: completeness says so.

    Removals are tried many at a time, in one folded batch, with the same result as one by one.

    Args:
        model: any step model with token outputs.
        split: N examples.
        threshold: share of the accuracy to keep, above 0 and at most 1.
        how: see `faithfulness`.
        other: see `faithfulness`.
        seed: see `faithfulness`.
        batch: most rows of one forward pass; bounds memory, and how many removals are tried at a time.

    Raises:
        BadInput: for a threshold out of range, replacements that do not exist, or answers that are no tokens.
    """
    if not 0 < threshold <= 1:
        raise BadInput(Problem("threshold", threshold, "use a share above 0 and at most 1"))
    every = nodes_of(model, split)
    search = _Search(model, split, how, other, seed, batch)
    order = search.by_damage(every)
    search.needed = threshold * search.accuracy
    removed: list[Node] = []
    left, before = order, -1
    while len(removed) > before and search.accuracy > 0:  # the last pass shows that no node can be removed
        before = len(removed)
        left = search.remove(left, removed)
    circuit = sorted(left) if search.accuracy > 0 else []
    alone, nothing, without = search.accuracies([[node for node in every if node not in circuit], every, circuit])
    whole = search.accuracy or torch.nan
    return FoundCircuit(
        nodes=tuple(circuit),
        labels=tuple(label(split, node) for node in circuit),
        how=how,
        accuracy=search.accuracy,
        floor=nothing,
        faithfulness=alone / whole,
        completeness=1 - without / whole,
        evaluations=search.evaluations,
    )


class _Search:
    """Accuracies of many sets at a time, and how many were looked at.

    Args:
        model: see `find_circuit`, as the other arguments.
        split: N examples.
        how: what nodes are replaced by.
        other: queries to resample from.
        seed: selects the draws.
        batch: most rows of one forward pass.
    """

    def __init__(
        self, model: StepModel, split: Split, how: How, other: Counterfactual | None, seed: int, batch: int
    ) -> None:
        self.model, self.split, self.batch = model, split, batch
        self.how, self.other, self.seed = how, other, seed
        self.evaluations = 0
        self.accuracy = self.needed = 0.0

    def _without(self, sets: Sequence[Sequence[Node]]) -> Ablated:
        self.evaluations += len(sets)
        return ablate(self.model, self.split, sets, self.how, self.other, self.seed, self.batch)

    def accuracies(self, sets: Sequence[Sequence[Node]]) -> list[float]:
        """Accuracy with the nodes of each set replaced."""
        outcome = self._without(sets)
        found: list[float] = outcome.correct[1][outcome.exists].double().mean(0).tolist()
        return found

    def by_damage(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes, least damage first; sets the accuracy of the whole model too."""
        outcome = self._without([[node] for node in nodes])
        if not bool(outcome.exists.any()):
            raise BadInput(Problem("how", self.how, "no query has another one to resample from: use mean or zero"))
        self.accuracy = float(outcome.correct[0][outcome.exists].double().mean())
        damage = [outcome.effect(measure).nanmean(0).tolist() for measure in ("accuracy", "loss")]
        return [node for _, _, node in sorted(zip(*damage, nodes, strict=True))]

    def remove(self, nodes: Sequence[Node], removed: list[Node]) -> list[Node]:
        """One pass over `nodes`: adds to `removed` whatever can be removed, gives what cannot.

        Two guesses are tried at once, so that long runs of either kind take one batch: that each of the next nodes can
        be removed on top of those before it, and that none can.
        """
        left: list[Node] = []
        queue, size = list(nodes), max(1, self.batch // len(self.split) // 2)
        while queue:
            next_ = queue[:size]
            together = [[*removed, *next_[: count + 1]] for count in range(len(next_))]
            alone = [[*removed, node] for node in next_[1:]]
            enough = [accuracy >= self.needed for accuracy in self.accuracies([*together, *alone])]
            can = _leading(enough[: len(next_)], True)
            cannot = 1 if can else _leading([enough[0], *enough[len(next_) :]], False)
            removed += next_[:can]
            left += next_[can : can + cannot]
            queue = queue[can + cannot :] if can < len(next_) else queue[can:]
        return left


def _leading(flags: Sequence[bool], value: bool) -> int:
    """How many of the first flags have the value."""
    return next((place for place, flag in enumerate(flags) if flag != value), len(flags))
