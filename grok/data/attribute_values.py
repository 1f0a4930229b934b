"""`AttributeValues`: the knowledge behind comparisons, ordinal values of entities on attributes (arXiv 2405.15071).

Shape legend: E entity, A attribute, N query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from grok.data.keyed import POSITIVE, keyed_hash, keyed_share, keyed_uniform
from grok.data.knowledge_graph import keyed_sample

__all__ = ["EQUAL", "GREATER", "LESS", "AttributeValues", "Pairs"]

LESS, EQUAL, GREATER = 0, 1, 2
"""How the first of two values compares with the second; the number in the label token `<attr_3_0>`."""


class Pairs(NamedTuple):
    """Comparisons: entity `first` with entity `second` on `attribute`, rows of the table of values, `[N]` each."""

    attribute: Tensor
    first: Tensor
    second: Tensor

    def take(self, rows: Tensor) -> Pairs:
        """The comparisons at `rows` (indices, or a mask)."""
        return Pairs(*(column[rows] for column in self))


@dataclass(frozen=True)
class AttributeValues:
    """The value of every entity on every attribute, each such fact in or out of distribution.

    Args:
        values: `[E, A]` ordinal values, from 0.
        ood: `[E, A]` bool, whether a fact is out of distribution: in no training comparison of two ID facts.
        seed: what selected them; further draws about them (held out or not) use it as well.
        entities: `[E]` token of each entity, ascending.
        attributes: `[A]` token of each attribute, ascending.
        labels: `[A, 3]` token that says less, equal or greater of each attribute.
    """

    values: Tensor
    ood: Tensor
    seed: int
    entities: Tensor
    attributes: Tensor
    labels: Tensor

    @classmethod
    def random(cls, entities: int, attributes: int, values: int, ood: float = 0.1, seed: int = 0) -> AttributeValues:
        """Values drawn as in Wang et al. 2024 (section 4): uniform and independent, OOD entities by attribute.

        Tokens are numbered entities first, then attributes, values, and three labels for each attribute.

        Args:
            entities: E.
            attributes: A.
            values: number of ordinal values.
            ood: share of facts out of distribution, exactly `round(ood · E)` of each attribute.
            seed: selects the values, the same on every device and in every process.
        """
        entity, attribute = torch.arange(entities)[:, None], torch.arange(attributes)
        hashes = keyed_hash("ood", seed, entity, attribute) & POSITIVE
        unknown = torch.zeros(entities, attributes, dtype=torch.bool)
        unknown.scatter_(0, torch.topk(hashes, round(ood * entities), dim=0, largest=False).indices, True)
        return cls(
            keyed_uniform(values, "value", seed, entity, attribute),
            unknown,
            seed,
            torch.arange(entities),
            entities + attribute,
            entities + attributes + values + torch.arange(3 * attributes).view(attributes, 3),
        )

    def renamed(self, token: Callable[[Tensor], Tensor]) -> AttributeValues:
        """The same with `token` of every token."""
        return replace(
            self, entities=token(self.entities), attributes=token(self.attributes), labels=token(self.labels)
        )

    def to(self, device: torch.device | str) -> AttributeValues:
        """The same on `device`."""
        moved = replace(self, values=self.values.to(device), ood=self.ood.to(device))
        return moved.renamed(lambda token: token.to(device))

    def compared(self, pairs: Pairs) -> Tensor:
        """`LESS`, `EQUAL` or `GREATER` of each comparison `[N]`."""
        first, second = (self.values[entity, pairs.attribute] for entity in (pairs.first, pairs.second))
        return 1 + (first > second).long() - (first < second).long()

    def facts(self, ood: bool) -> tuple[Tensor, Tensor]:
        """Entity and attribute of the facts in or out of distribution, `[N]` each."""
        entity, attribute = (self.ood == ood).nonzero().unbind(1)
        return entity, attribute

    def among(self, attribute: int, first_ood: bool, second_ood: bool) -> Tensor:
        """Which ordered pairs of two entities are of these kinds on an attribute: bool `[E, E]`."""
        unknown = self.ood[:, attribute]
        pairs = (unknown == first_ood)[:, None] & (unknown == second_ood)
        return pairs.fill_diagonal_(False)

    def held_out(self, share: float, attribute: int) -> Tensor:
        """Which pairs belong to the `share` that training never sees: bool `[E, E]`, both orders or neither."""
        entity = torch.arange(len(self.values))
        drawn = keyed_share(share, "iid", self.seed, attribute, entity[:, None], entity).triu(1)
        return drawn | drawn.T

    def count(self, wanted: Callable[[int], Tensor]) -> int:
        """How many comparisons are `wanted`, bool `[E, E]` for each attribute."""
        return sum(int(wanted(attribute).count_nonzero()) for attribute in range(self.values.shape[1]))

    def sample(self, size: int, purpose: str, wanted: Callable[[int], Tensor]) -> Pairs:
        """Exactly `size` random comparisons (all, if there are fewer) of those `wanted`, bool `[E, E]` by attribute.

        Nested: a smaller sample for the same `purpose` (at most 7 letters) is the beginning of a larger one. One
        attribute at a time: the 16 million pairs of the paper's size never lie in memory together.
        """
        best = torch.empty(4, 0, dtype=torch.int64)  # hash, attribute, first, second
        for attribute in range(self.values.shape[1]):
            first, second = wanted(attribute).nonzero().unbind(1)
            hashes = keyed_hash(purpose, self.seed, attribute, first, second) & POSITIVE
            if best.shape[1] == size:  # only what can still be among the first
                better = hashes < best[0].max() if size else hashes < 0
                hashes, first, second = hashes[better], first[better], second[better]
            found = torch.cat([best, torch.stack([hashes, torch.full_like(first, attribute), first, second])], 1)
            best = found[:, keyed_sample(size, found[0])]
        return Pairs(*best[1:])
