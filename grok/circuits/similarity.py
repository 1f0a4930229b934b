"""Cosine lens: do the states of one bridge lie together, whichever fact leads to it (Ye et al. 2025, "How do
Transformers Learn Implicit Reasoning?", NeurIPS 2025), and maps of them.

Shape legend: F fact, E entity, S state, D width, n vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from grok.circuits.examples import analysing, position_index, step_range
from grok.circuits.grid import Grid
from grok.data.keyed import keyed_permutation
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel

__all__ = ["CosineLens", "FactMap", "cosine_distances", "cosine_lens", "fact_map", "mds"]


@dataclass(frozen=True)
class CosineLens:
    """Per entity, how similar the states of the facts that lead to it are.

    Args:
        entities: `[E]` tokens, ascending: tails of at least one ID and one OOD fact.
        id_facts: `[E]` number of ID facts with this tail.
        ood_facts: `[E]` number of OOD facts with this tail.
        cohesion: `[E, S]` mean cosine of the ID states and their centroid.
        alignment: `[E, S]` mean cosine of the OOD states and the centroid of the ID states.
        cohesion_floor: `[E, S]` the same with tails shuffled between facts.
        alignment_floor: `[E, S]`.
        steps: i of the states S[i].
        position: name of the position.
    """

    entities: Tensor
    id_facts: Tensor
    ood_facts: Tensor
    cohesion: Tensor
    alignment: Tensor
    cohesion_floor: Tensor
    alignment_floor: Tensor
    steps: tuple[int, ...]
    position: str

    @property
    def single(self) -> Tensor:
        """Entities `[E]` bool with one ID fact, which is its own centroid: their cohesion is 1 whatever the model."""
        return self.id_facts == 1

    def grid(self, measure: str = "cohesion", least: int = 1) -> Grid:
        """Mean over entities at every state, with the bootstrap over entities.

        Args:
            measure: `cohesion` (ID) or `alignment` (OOD).
            least: count entities with at least so many ID facts; 2 leaves out those whose cohesion is trivially 1.

        Raises:
            BadInput: for an unknown measure, or if no entity has enough facts.
        """
        if measure not in ("cohesion", "alignment"):
            raise BadInput(Problem("measure", measure, "use cohesion or alignment"))
        counted = self.id_facts >= least
        if not counted.any():
            raise BadInput(
                Problem("least", least, f"no entity has so many ID facts: use at most {self.id_facts.max()}")
            )
        values, floor = (
            (self.cohesion, self.cohesion_floor) if measure == "cohesion" else (self.alignment, self.alignment_floor)
        )
        axes = {"step": tuple(f"S[{step}]" for step in self.steps), "position": (self.position,)}
        return Grid.of(f"cosine/{measure}", axes, values[counted][..., None], floor[counted][..., None])


def cosine_lens(
    model: StepModel,
    id_atomic: Split,
    ood_atomic: Split,
    position: str | int = "r1",
    steps: Sequence[int] | None = None,
    batch: int = 1024,
    seed: int = 0,
) -> CosineLens:
    """Compare the states S[i, p] of all atomic facts that lead to the same entity.

    The state is the raw residual stream (of several, the one decoded there), neither normalised nor centred. In a
    causal model S[i, r1] of an atomic query (h, r1) is that of every two-hop query that begins with h, r1, so what is
    compared are states of bridges. Two passes over the facts: one for the centroids, one for the cosines.

    Args:
        model: any step model.
        id_atomic: ID atomic facts; more than a sample gives more entities.
        ood_atomic: OOD atomic facts.
        position: whose states are compared.
        steps: states; None means all.
        batch: most facts of one forward pass; bounds memory, beside the centroids.
        seed: selects the shuffle of the floor.

    Raises:
        BadInput: for two-hop queries, tails of several tokens, states or positions that do not exist, or if no entity
            is the tail of both an ID and an OOD fact.
    """
    for name, split in (("id_atomic", id_atomic), ("ood_atomic", ood_atomic)):
        if "bridge" in split.truth and bool((split.truth["bridge"] >= 0).any()):
            raise BadInput(Problem(name, "two-hop queries", "atomic facts are needed, whose answer is their tail"))
    if "answer1" in id_atomic.positions:
        raise BadInput(Problem("id_atomic", "answers of several tokens", "entities are told apart by one token only"))
    tails = [split.targets[:, 0].cpu() for split in (id_atomic, ood_atomic)]
    entities = torch.unique(tails[0])
    entities = entities[torch.isin(entities, tails[1])]
    if not len(entities):
        raise BadInput(Problem("ood_atomic", f"{len(ood_atomic)} facts", "none has the tail of an ID fact: give more"))
    chosen, index = step_range(model, steps), position_index(id_atomic, position)
    known, unknown = (
        _Facts(split, tail, entities, seed) for split, tail in zip((id_atomic, ood_atomic), tails, strict=True)
    )
    centroids = torch.zeros(0)

    def add(rows: slice, states: Tensor) -> None:
        nonlocal centroids
        if not len(centroids):
            centroids = torch.zeros(2, len(entities), *states.shape[1:], dtype=torch.float64)
        for sums, groups in zip(centroids, known.groups, strict=True):
            sums.index_add_(0, groups[rows], states)  # a cosine does not care about the length of a sum

    _visit(model, known.split, index, chosen, batch, add)
    cohesion, alignment = (one.similarity(model, index, chosen, batch, centroids) for one in (known, unknown))
    return CosineLens(
        entities=entities,
        id_facts=known.counts,
        ood_facts=unknown.counts,
        cohesion=cohesion[0],
        alignment=alignment[0],
        cohesion_floor=cohesion[1],
        alignment_floor=alignment[1],
        steps=tuple(chosen),
        position=id_atomic.positions[index],
    )


class _Facts:
    """The facts that lead to some `entities`, grouped by their tail, and by the tail of another fact."""

    def __init__(self, split: Split, tail: Tensor, entities: Tensor, seed: int) -> None:
        used = torch.isin(tail, entities)
        self.split = split.take(used.to(split.inputs.device))
        group = torch.searchsorted(entities, tail[used])
        order = keyed_permutation(torch.arange(len(group)), len(group), "tails", seed)
        self.groups = torch.stack([group, group[order]])
        self.counts = group.bincount(minlength=len(entities))

    def similarity(
        self, model: StepModel, position: int, steps: Sequence[int], batch: int, centroids: Tensor
    ) -> Tensor:
        """Mean over the facts of each entity of cos(state, centroid): `[2, E, S]`, the second with shuffled tails."""
        sums = torch.zeros(centroids.shape[:3], dtype=torch.float64)

        def compare(rows: slice, states: Tensor) -> None:
            for total, centroid, groups in zip(sums, centroids, self.groups[:, rows], strict=True):
                total.index_add_(0, groups, F.cosine_similarity(states, centroid[groups], dim=-1))

        _visit(model, self.split, position, steps, batch, compare)
        return (sums / self.counts[:, None]).float()


def _visit(
    model: StepModel,
    split: Split,
    position: int,
    steps: Sequence[int],
    batch: int,
    visit: Callable[[slice, Tensor], None],
) -> None:
    """Call `visit` with the states `[F, S, D]` at one position, a batch of queries at a time."""
    with analysing(model) as device:
        for start in range(0, len(split), batch):
            rows = slice(start, start + batch)
            piece = split.take(rows).to(device)
            states = model.states(piece.inputs, piece.position_ids)
            wanted = [states[step][model.stream_at(step)][:, position] for step in steps]
            visit(rows, torch.stack(wanted, 1).cpu().double())


def cosine_distances(vectors: Tensor) -> Tensor:
    """1 - cosine between all pairs of `vectors` `[n, D]`: `[n, n]` float64, with zeros on the diagonal."""
    unit = F.normalize(vectors.detach().cpu().double(), dim=1)
    return (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0)


def mds(distances: Tensor, dimensions: int = 2) -> Tensor:
    """Classical multidimensional scaling (Torgerson 1952): points `[n, dimensions]` float64 whose Euclidean distances
    approximate `distances` `[n, n]`, such as `cosine_distances` of the states of a few bridges.

    Axes come in falling order of variance, centred; of each the coordinate largest in size is positive (the first, if
    there are several), so that maps of the same states do not flip.

    Raises:
        BadInput: unless the distances are a square symmetric matrix.
    """
    size = tuple(distances.shape)
    if len(size) != 2 or size[0] != size[1] or not torch.allclose(distances, distances.T):
        raise BadInput(Problem("distances", size, "give a symmetric matrix [n, n]"))
    squared = distances.detach().cpu().double().square()
    centred = squared - squared.mean(0) - squared.mean(1, keepdim=True) + squared.mean()
    values, vectors = torch.linalg.eigh(-centred / 2)
    kept = min(dimensions, size[0])
    points = (vectors * values.clamp(min=0).sqrt()).flip(1)[:, :kept]
    largest = points.abs() >= points.abs().amax(0) * (1 - 1e-6)
    sign = points.gather(0, largest.int().argmax(0, keepdim=True)).sign()
    return F.pad(points * torch.where(sign < 0, -1.0, 1.0), (0, dimensions - kept))


@dataclass(frozen=True)
class FactMap:
    """A map of the states of some facts, by classical MDS of their cosine distances.

    Args:
        place: `[n, 2]` coordinates.
        tail: `[n]` token that the fact leads to.
        ood: `[n]` bool, whether the fact is out of distribution.
        step: i of the state S[i].
    """

    place: Tensor
    tail: Tensor
    ood: Tensor
    step: int


def fact_map(
    model: StepModel,
    id_atomic: Split,
    ood_atomic: Split,
    position: str | int = "r1",
    step: int | None = None,
    entities: int = 6,
    batch: int = 1024,
) -> FactMap:
    """Map the states S[`step`, `position`] of the facts that lead to a few entities (the maps of Ye et al. 2025).

    Args:
        model: any step model.
        id_atomic: ID atomic facts.
        ood_atomic: OOD atomic facts.
        position: whose states are mapped.
        step: i of the state; None means the middle of the model.
        entities: how many, at least 1: those with the most OOD facts, then the most ID facts.
        batch: most facts of one forward pass; bounds memory, beside the states and distances of the facts mapped.

    Raises:
        BadInput: for a state or position that does not exist, fewer entities than 1, or if no entity has both an ID
            and an OOD fact.
    """
    if entities < 1:
        raise BadInput(Problem("entities", entities, "use 1 or more"))
    chosen = step_range(model, [len(model.steps) // 2 if step is None else step])
    tails = [split.targets[:, 0].cpu() for split in (id_atomic, ood_atomic)]
    most = int(torch.cat(tails).max()) + 1
    known, unknown = (torch.bincount(tail, minlength=most) for tail in tails)
    both = ((known > 0) & (unknown > 0)).nonzero()[:, 0]
    if not len(both):
        raise BadInput(Problem("ood_atomic", f"{len(ood_atomic)} facts", "none has the tail of an ID fact: give more"))
    order = (unknown * (int(known.max()) + 1) + known)[both].argsort(descending=True, stable=True)
    wanted = both[order[:entities]]
    vectors, tail = [], []
    for split, tokens in zip((id_atomic, ood_atomic), tails, strict=True):
        rows = torch.isin(tokens, wanted).nonzero()[:, 0]
        index = position_index(split, position)
        _visit(model, split.take(rows), index, chosen, batch, lambda _, states: vectors.append(states[:, 0]))
        tail.append(tokens[rows])
    ood = torch.cat([torch.full_like(part, place, dtype=torch.bool) for place, part in enumerate(tail)])
    return FactMap(mds(cosine_distances(torch.cat(vectors))), torch.cat(tail), ood, chosen[0])
