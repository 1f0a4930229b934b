"""Random knowledge graphs and their two-hop compositions: integer tensors, no strings.

A fact is a row `head · out_degree + j`, j counting the facts of its head; facts lie in the order of (head, relation).
Shape legend: N query, `[entity, out_degree]` fact. -1 stands for a hop that a query does not have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from grok.data.keyed import POSITIVE, keyed_hash, keyed_share, keyed_uniform

__all__ = ["FactColumns", "FactRows", "Hops", "KnowledgeGraph", "joined", "keyed_sample", "place_in_group"]


class Hops(NamedTuple):
    """The facts that queries go through: fact rows `first` and `second`, `[N]` each; `second` is -1 if atomic."""

    first: Tensor
    second: Tensor

    def take(self, rows: Tensor) -> Hops:
        """The queries at `rows` (indices, or a mask)."""
        return Hops(self.first[rows], self.second[rows])


def keyed_sample(size: int, hashes: Tensor) -> Tensor:
    """Exactly `size` rows (all, if there are fewer): those with the smallest `hashes` `[N]`, in that order.

    As random as the hash, and nested: a smaller sample is the beginning of a larger one.
    """
    return torch.topk(hashes, min(size, len(hashes)), largest=False).indices


def place_in_group(groups: Tensor) -> Tensor:
    """How many earlier rows are of the same group, by `groups` `[N]`."""
    order = groups.argsort(stable=True)
    sizes = torch.unique_consecutive(groups[order], return_counts=True)[1]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(groups)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return place


def _distinct(rows: int, size: int, bound: int, seed: int) -> Tensor:
    """In each of `rows` rows a uniformly random set of `size` numbers below `bound`, ascending: `[rows, size]`.

    Floyd's algorithm (Bentley and Floyd 1987): never a table of rows × bound, and a twentieth of the work of a keyed
    permutation per row, which at 10⁶ rows is the difference between seconds and a minute.
    """
    row = torch.arange(rows)
    chosen = torch.empty(rows, size, dtype=torch.int64)
    for j in range(size):
        last = bound - size + j
        drawn = keyed_uniform(last + 1, "rel", seed, row, j)
        taken = (chosen[:, :j] == drawn[:, None]).any(1)
        chosen[:, j] = torch.where(taken, last, drawn)
    return chosen.sort(1).values


def joined(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of equal keys of `left` `[N]` and `right` `[M]`: the rows in each, in the order of `left`."""
    keys, order = right.sort(stable=True)
    start = torch.searchsorted(keys, left.contiguous())
    follow = torch.searchsorted(keys, left.contiguous(), right=True) - start
    place = torch.arange(int(follow.sum())) - (follow.cumsum(0) - follow).repeat_interleave(follow)
    row = torch.arange(len(left)).repeat_interleave(follow)
    return row, order[start[row] + place]


class FactRows(ABC):
    """Numbered atomic facts (head, relation) → tail, and the queries that go through them.

    A further draw about a query (held out or not) is a hash of its head and relations, whatever its rows are.
    """

    ood: Tensor
    seed: int

    @abstractmethod
    def head(self, fact: Tensor) -> Tensor:
        """Head of each fact; -1 stays -1."""

    @abstractmethod
    def relation(self, fact: Tensor) -> Tensor:
        """Relation of each fact; -1 stays -1."""

    @abstractmethod
    def tail(self, fact: Tensor) -> Tensor:
        """Tail of each fact; -1 stays -1."""

    @property
    def facts(self) -> int:
        """Number of atomic facts."""
        return len(self.ood)

    def is_ood(self, fact: Tensor) -> Tensor:
        """1 where a fact is out of distribution, 0 where it is not, -1 where there is none."""
        return torch.where(fact >= 0, self.ood[fact.clamp(min=0)].long(), -1)

    def atomic(self, fact: Tensor) -> Hops:
        """The atomic queries of `fact`."""
        return Hops(fact, torch.full_like(fact, -1))

    def bridge(self, hops: Hops) -> Tensor:
        """The entity between the hops `[N]`; -1 for an atomic query."""
        return torch.where(hops.second >= 0, self.tail(hops.first), -1)

    def answer(self, hops: Hops) -> Tensor:
        """The entity at the end of the last hop `[N]`."""
        return torch.where(hops.second >= 0, self.tail(hops.second), self.tail(hops.first))

    def in_distribution(self, hops: Hops) -> Tensor:
        """Whether both hops of each composition are in distribution: bool `[N]`."""
        return ~(self.ood[hops.first] | self.ood[hops.second])

    def held_out(self, share: float, hops: Hops) -> Tensor:
        """Whether each query belongs to the `share` that training never sees: bool `[N]`, by a hash of the query."""
        return keyed_share(share, "iid", self.seed, *self._query(hops))

    def member(self, share: float, hops: Hops) -> Tensor:
        """Whether each query is in a random `share` of all queries, by the hash that `order` sorts: bool `[N]`."""
        return keyed_share(share, "phi", self.seed, *self._query(hops))

    def order(self, hops: Hops) -> Tensor:
        """A hash by which `keyed_sample` takes training compositions `[N]`."""
        return keyed_hash("phi", self.seed, *self._query(hops)) & POSITIVE

    def probe_order(self, hops: Hops) -> Tensor:
        """A hash by which `keyed_sample` takes evaluation queries `[N]`, independent of `order`."""
        return keyed_hash("probe", self.seed, *self._query(hops)) & POSITIVE

    def _query(self, hops: Hops) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(hops.first), self.relation(hops.first), self.relation(hops.second)


@dataclass(frozen=True)
class KnowledgeGraph(FactRows):
    """Atomic facts (head, relation) → tail, each in or out of distribution (Wang et al. 2024, section 3).

    Args:
        relations: `[entity, out_degree]`, distinct and ascending within an entity.
        tails: `[entity, out_degree]`, the entity each fact leads to.
        ood: `[fact]` bool, whether a fact is out of distribution: trained as an atomic fact, but in no composition.
        seed: what selected the graph; further draws about it (held out or not) use it as well.
    """

    relations: Tensor
    tails: Tensor
    ood: Tensor
    seed: int

    @classmethod
    def random(cls, entities: int, relations: int, out_degree: int, ood: float = 0.05, seed: int = 0) -> KnowledgeGraph:
        """A graph drawn as in Wang et al. 2024: tails uniform over all entities, self-loops and repeats included.

        Args:
            entities: number of entities.
            relations: number of relations.
            out_degree: facts per entity, each with another relation; at most `relations`.
            ood: share of facts out of distribution, of which exactly `round(ood · facts)` are drawn.
            seed: selects the graph, the same on every device and in every process.
        """
        entity = torch.arange(entities)
        tails = torch.empty(entities, out_degree, dtype=torch.int64)
        for j in range(out_degree):
            tails[:, j] = keyed_uniform(entities, "tail", seed, entity, j)
        facts = entities * out_degree
        flags = torch.zeros(facts, dtype=torch.bool)
        flags[keyed_sample(round(ood * facts), keyed_hash("ood", seed, torch.arange(facts)))] = True
        return cls(_distinct(entities, out_degree, relations, seed), tails, flags, seed)

    @property
    def entities(self) -> int:
        """Number of entities."""
        return self.tails.shape[0]

    @property
    def out_degree(self) -> int:
        """Facts per entity."""
        return self.tails.shape[1]

    def to(self, device: torch.device | str) -> KnowledgeGraph:
        """The same graph on `device`."""
        return KnowledgeGraph(self.relations.to(device), self.tails.to(device), self.ood.to(device), self.seed)

    def find(self, head: Tensor, relation: Tensor) -> Tensor:
        """Fact row of each (`head`, `relation`), -1 where there is no such fact; O(out_degree) per query."""
        match = self.relations[head] == relation[..., None]
        return torch.where(match.any(-1), head * self.out_degree + match.int().argmax(-1), -1)

    def head(self, fact: Tensor) -> Tensor:
        """See `FactRows.head`."""
        return torch.div(fact, self.out_degree, rounding_mode="floor")

    def relation(self, fact: Tensor) -> Tensor:
        """See `FactRows.relation`."""
        return torch.where(fact >= 0, self.relations.view(-1)[fact.clamp(min=0)], -1)

    def tail(self, fact: Tensor) -> Tensor:
        """See `FactRows.tail`."""
        return torch.where(fact >= 0, self.tails.view(-1)[fact.clamp(min=0)], -1)

    def composed(self, first: Tensor, choice: Tensor) -> Hops:
        """Two-hop queries: fact `first`, then the `choice`-th fact of its tail (the bridge)."""
        return Hops(first, self.tails.view(-1)[first] * self.out_degree + choice)

    def compositions(self) -> Hops:
        """All `facts · out_degree` two-hop compositions, in the order of (first fact, second fact)."""
        pair = torch.arange(self.facts * self.out_degree, device=self.tails.device)
        return self.composed(pair // self.out_degree, pair % self.out_degree)

    def in_distribution_compositions(self) -> int:
        """How many compositions have both hops in distribution, counted in O(facts)."""
        known = (~self.ood).view(self.entities, self.out_degree)
        return int((known.sum(1)[self.tails] * known).sum())


@dataclass(frozen=True)
class FactColumns(FactRows):
    """Atomic facts in any order and number per entity, column by column.

    Args:
        columns: `[fact, 3]` head, relation and tail; a (head, relation) at most once.
        ood: `[fact]` bool, see `KnowledgeGraph`.
        seed: see `KnowledgeGraph`.
    """

    columns: Tensor
    ood: Tensor
    seed: int

    def _column(self, column: int, fact: Tensor) -> Tensor:
        return torch.where(fact >= 0, self.columns[fact.clamp(min=0), column], -1)

    def head(self, fact: Tensor) -> Tensor:
        """See `FactRows.head`."""
        return self._column(0, fact)

    def relation(self, fact: Tensor) -> Tensor:
        """See `FactRows.relation`."""
        return self._column(1, fact)

    def tail(self, fact: Tensor) -> Tensor:
        """See `FactRows.tail`."""
        return self._column(2, fact)

    def chains(self, first: Tensor, second: Tensor) -> Hops:
        """All two-hop queries from a fact in `first` to one in `second` (fact rows), in the order of `first`."""
        before, after = joined(self.tail(first), self.head(second))
        return Hops(first[before], second[after])
