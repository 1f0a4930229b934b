"""Compositions drawn on the fly from the fact table, for graphs whose compositions do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grok.data.keyed import keyed_share, keyed_uniform
from grok.data.knowledge_graph import Hops, KnowledgeGraph
from grok.data.split import Split
from grok.data.stream import Batch, Stream
from grok.errors import BadInput, Problem

__all__ = ["LazyStream", "Trained", "search"]

ENUMERATED_AT_MOST = 1 << 22  # candidates of an evaluation split that the lazy mode tries one by one
DRAWN_AT_MOST = 1 << 24  # candidates that it draws where there are more
DRAWN_AT_ONCE = 1 << 20
DRAWING_ROUNDS = 64  # of a batch; each finds an acceptable composition for 86 % of the queries or more
QUERIES_AT_ONCE = 1 << 14  # of a block of training steps, drawn together: the cost per operation is shared


@dataclass(frozen=True)
class Trained:
    """Which compositions the lazy mode trains: both hops in distribution, not held out, and in the training sample.

    Args:
        phi: inferred facts in training per ID atomic fact, in expectation.
        iid: share of the ID-ID compositions that are held out.
        inferred: the expected size of the training sample.
        pool: the expected number of ID-ID compositions that are not held out.
    """

    phi: float
    iid: float
    inferred: int
    pool: float

    def __call__(self, graph: KnowledgeGraph, hops: Hops) -> Tensor:
        """Whether each composition is trained: bool `[N]`."""
        usable = graph.in_distribution(hops) & ~graph.held_out(self.iid, hops)
        return usable & graph.member(self.inferred / self.pool, hops)


def search(graph: KnowledgeGraph, first: Tensor, wanted: Callable[[Hops], Tensor], enough: int | None = None) -> Hops:
    """The `wanted` compositions that begin with a fact in `first`.

    Args:
        graph: the fact table.
        first: `[F]` fact rows.
        wanted: a predicate on compositions, bool `[N]`.
        enough: draw random candidates until this many distinct ones are found, or a limit is reached (fewer are
            returned then); None tries every candidate.
    """
    candidates, degree = len(first) * graph.out_degree, graph.out_degree

    def composed(pair: Tensor) -> Hops:
        return graph.composed(first[pair // degree], pair % degree)

    if enough is None:
        hops = composed(torch.arange(candidates))
        return hops.take(wanted(hops))
    found = torch.empty(0, dtype=torch.int64)
    for start in range(0, DRAWN_AT_MOST, DRAWN_AT_ONCE):
        pair = keyed_uniform(candidates, "split", graph.seed, torch.arange(start, start + DRAWN_AT_ONCE))
        found = torch.unique(torch.cat([found, pair[wanted(composed(pair))]]))
        if len(found) >= enough:
            break
    return composed(found)


class LazyStream(Stream):
    """Training queries drawn with replacement: a function of (seed, step), on any device and rank.

    Atomic facts and compositions are as frequent as in the table of the materialised mode.

    Args:
        graph: the fact table, on the device where batches are wanted.
        trained: which compositions belong to training.
        encode: inputs and slots of queries, on the device of the graph.
        labels: token ids of the entities, on the device of the graph.
        size: queries per global batch.
        seed: selects the draws.
    """

    def __init__(
        self,
        graph: KnowledgeGraph,
        trained: Trained,
        encode: Callable[[KnowledgeGraph, Hops], Split],
        labels: Tensor,
        size: int,
        seed: int,
    ) -> None:
        self.graph, self.trained, self.encode, self.labels = graph, trained, encode, labels
        self.size, self.seed = size, seed
        self._atomic_share = graph.facts / (graph.facts + trained.inferred)
        accepted = trained.inferred / (graph.facts * graph.out_degree)
        self._attempts = math.ceil(2 / accepted)  # per query and round: none succeeds with probability e⁻²

    def hops(self, place: Tensor) -> Hops:
        """The facts of the queries at `place` `[N]` of the endless sequence of training queries.

        Raises:
            BadInput: if no acceptable composition is found in a bounded number of draws.
        """
        fact = keyed_uniform(self.graph.facts, "fact", self.seed, place)
        first, second = self.graph.atomic(fact)
        pending = (~keyed_share(self._atomic_share, "atomic", self.seed, place)).nonzero()[:, 0]
        for round_ in range(DRAWING_ROUNDS):
            if not len(pending):
                return Hops(first, second)
            found, hops = self._attempt(place[pending], round_)
            first[pending[found]], second[pending[found]] = hops.take(found)
            pending = pending[~found]
        fix = "too few compositions are trained to be found by drawing: raise phi, or use lazy=false"
        raise BadInput(Problem("phi", self.trained.phi, fix))

    def _attempt(self, place: Tensor, round_: int) -> tuple[Tensor, Hops]:
        """Some draws for every query: whether one is acceptable, and the first that is; `[N]` each."""
        degree = self.graph.out_degree
        attempt = torch.arange(round_ * self._attempts, (round_ + 1) * self._attempts, device=place.device)
        pair = keyed_uniform(self.graph.facts * degree, "pair", self.seed, place[:, None], attempt)
        hops = self.graph.composed(pair.flatten() // degree, pair.flatten() % degree)
        usable = self.trained(self.graph, hops).view_as(pair)
        chosen = pair.gather(1, usable.int().argmax(1, keepdim=True))[:, 0]
        return usable.any(1), self.graph.composed(chosen // degree, chosen % degree)

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """See `Stream.batches`."""
        together = max(1, QUERIES_AT_ONCE // self.size)
        for begin in range(start, stop, together):
            end = min(begin + together, stop)
            place = torch.arange(begin * self.size, end * self.size, device=self.graph.tails.device)
            queries = replace(self.encode(self.graph, self.hops(place)), labels=self.labels).without_truth()
            for batch in queries.chunks(self.size):
                yield Batch(batch if world == 1 else batch.take(slice(rank, None, world)), batch.mask.sum(), len(batch))

    def to(self, device: torch.device | str) -> LazyStream:
        """See `Stream.to`."""
        labels = self.labels.to(device)
        return LazyStream(self.graph.to(device), self.trained, self.encode, labels, self.size, self.seed)
