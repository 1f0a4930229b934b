"""What can be asked about named facts: two-hop composition, and comparison of two entities.

Symbols are the entities, the relations, `yes`, `no` and `</a>`, in this order. An atomic query is `h r → t` in both.

Shape legend: N query, F fact.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grok.data.encoding import Questions
from grok.data.fact_graph import chains, comparable
from grok.data.knowledge_graph import FactColumns, Hops, keyed_sample
from grok.errors import BadInput, Problem

__all__ = ["LAST_SYMBOLS", "TASKS", "Compared", "Composed", "FactTask", "TaskName"]

LAST_SYMBOLS = ("yes", "no", "</a>")  # the symbols after entities and relations

MOST_PAIRS = 25_000_000  # inferred facts that are listed: about 2 GB

TaskName = Literal["composition", "comparison"]


@dataclass(frozen=True)
class FactTask(FactColumns):
    """Facts with a way to ask about two of them at once.

    Args:
        columns: see `FactColumns`, as the further ones.
        ood: see `FactColumns`.
        seed: see `FactColumns`.
        sizes: number of entities, and of relations.
    """

    sizes: tuple[int, int]

    names: ClassVar[tuple[str, ...]]
    """Names of the three prompt positions."""
    text: ClassVar[str]
    """An inferred query in words, by the places of the prompt's symbols."""
    atomic_text: ClassVar[str] = "The {1} of {0} is"
    """The same for an atomic one."""

    @staticmethod
    @abstractmethod
    def pairs(columns: Tensor) -> Hops:
        """All inferred facts of the facts `[F, 3]`, by fact rows.

        Raises:
            BadInput: if there are too many to be listed.
        """

    def queries(self, facts: Tensor) -> Hops:
        """All inferred facts of the fact rows `facts`, see `pairs`."""
        first, second = self.pairs(self.columns[facts])
        return Hops(facts[first], facts[second])

    def supply(self, hops: Hops) -> int:
        """How many of the queries `hops` a training can use."""
        return len(hops.first)

    def sample(self, size: int, hops: Hops, order: Tensor) -> Hops:
        """At most `size` of the queries, those with the smallest hashes `order` `[N]`."""
        return hops.take(keyed_sample(size, order))

    def questions(self, hops: Hops) -> Questions:
        """Queries in symbols."""
        inferred = hops.second >= 0
        relation = self.relation(hops.first) + self.sizes[0]
        last = torch.where(inferred, self.last(hops), -1)
        answer = torch.where(inferred, self.result(hops), self.tail(hops.first))
        own, ood = self.truth(hops), torch.stack([self.is_ood(hops.first), self.is_ood(hops.second)], 1)
        prompt = torch.stack([self.head(hops.first), relation, last], 1)
        truth = {"facts": torch.stack(hops, 1), "ood": ood, **own}
        return Questions(prompt, answer[:, None], self.names, truth, tuple(own))

    @abstractmethod
    def last(self, hops: Hops) -> Tensor:
        """The third symbol of an inferred query `[N]`."""

    @abstractmethod
    def result(self, hops: Hops) -> Tensor:
        """The symbol that answers an inferred query `[N]`."""

    @abstractmethod
    def truth(self, hops: Hops) -> dict[str, Tensor]:
        """What is known about the queries, in symbols; -1 where a query does not have it."""

    def answers(self, inferred: bool) -> Tensor:
        """Symbols that an answer can be: of an atomic fact, what is a tail of some fact."""
        return torch.arange(self.sizes[0]) if inferred else torch.unique(self.columns[:, 2])


class Composed(FactTask):
    """`h r1 r2 → t` through a bridge, over chains of three distinct entities."""

    text = "The {2} of the {1} of {0} is"
    names = ("h", "r1", "r2")

    @staticmethod
    def pairs(columns: Tensor) -> Hops:
        """See `FactTask.pairs`."""
        entities = int(columns[:, ::2].max()) + 1 if len(columns) else 0
        leaving = torch.bincount(columns[:, 0], minlength=entities)
        _insist_on_room(len(columns), int(leaving[columns[:, 2]].sum()))
        return chains(columns)

    def last(self, hops: Hops) -> Tensor:
        """See `FactTask.last`."""
        return self.relation(hops.second) + self.sizes[0]

    def result(self, hops: Hops) -> Tensor:
        """See `FactTask.result`."""
        return self.tail(hops.second)

    def truth(self, hops: Hops) -> dict[str, Tensor]:
        """See `FactTask.truth`."""
        return {"bridge": self.bridge(hops)[:, None]}


class Compared(FactTask):
    """`e1 r e2 → yes | no`: do two entities share the tail of r? Half of the queries are yes, trained and tested."""

    text = "Is the {1} of {0} also that of {2}?"
    names = ("e1", "r", "e2")

    @staticmethod
    def pairs(columns: Tensor) -> Hops:
        """See `FactTask.pairs`."""
        _insist_on_room(len(columns), int((torch.bincount(columns[:, 1]) ** 2).sum()))
        return comparable(columns)

    def same(self, hops: Hops) -> Tensor:
        """Whether the two facts of each query have one tail: bool `[N]`."""
        return self.tail(hops.first) == self.tail(hops.second)

    def held_out(self, share: float, hops: Hops) -> Tensor:
        """See `FactRows.held_out`; both orders of a pair are on one side."""
        swapped = self.head(hops.first) > self.head(hops.second)
        ordered = Hops(*(torch.where(swapped, one, other) for one, other in (hops[::-1], hops)))
        return super().held_out(share, ordered)

    def _query(self, hops: Hops) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(hops.first), self.relation(hops.first), self.head(hops.second)

    def supply(self, hops: Hops) -> int:
        """See `FactTask.supply`."""
        same = int(self.same(hops).sum())
        return 2 * min(same, len(hops.first) - same)

    def sample(self, size: int, hops: Hops, order: Tensor) -> Hops:
        """See `FactTask.sample`; as many of each answer, and one more `no` if the size is odd."""
        size, same = min(size, self.supply(hops)), self.same(hops)
        halves = [
            hops.take(wanted).take(keyed_sample(half, order[wanted]))
            for wanted, half in ((same, size // 2), (~same, size - size // 2))
        ]
        return Hops(*(torch.cat(rows) for rows in zip(*halves, strict=True)))

    def last(self, hops: Hops) -> Tensor:
        """See `FactTask.last`."""
        return self.head(hops.second)

    def result(self, hops: Hops) -> Tensor:
        """See `FactTask.result`."""
        return sum(self.sizes) + (~self.same(hops)).long()

    def truth(self, hops: Hops) -> dict[str, Tensor]:
        """See `FactTask.truth`."""
        return {"v1": self.tail(hops.first), "v2": self.tail(hops.second)}

    def answers(self, inferred: bool) -> Tensor:
        """See `FactTask.answers`."""
        return sum(self.sizes) + torch.arange(2) if inferred else super().answers(inferred)


TASKS: dict[str, type[FactTask]] = {"composition": Composed, "comparison": Compared}


def _insist_on_room(facts: int, pairs: int) -> None:
    if pairs > MOST_PAIRS:
        fix = f"they give {pairs:,} inferred facts, at most {MOST_PAIRS:,} fit: use fewer (atomic, original, keep)"
        raise BadInput(Problem("facts", facts, fix))
