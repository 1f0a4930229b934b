"""`AtomicFacts`: the knowledge behind a regime's queries, in tokens, as the analysis needs it.

Shape legend: F fact, N query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AtomicFacts"]


@dataclass(frozen=True)
class AtomicFacts:
    """Facts (head, relation) → tail, each (head, relation) at most once.

    Args:
        head: `[F]` token.
        relation: `[F]` token.
        tail: `[F]` token.
        composed: `[F]` bool, whether some training composition goes through the fact.
    """

    head: Tensor
    relation: Tensor
    tail: Tensor
    composed: Tensor

    def find(self, head: Tensor, relation: Tensor) -> Tensor:
        """Row of each fact (`head`, `relation`), broadcast together; -1 where there is none."""
        size = int(torch.stack([self.relation.max(), relation.max()]).max()) + 1
        keys, order = (self.head * size + self.relation).sort()
        wanted = head * size + relation
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where((keys[place] == wanted) & (head >= 0) & (relation >= 0), order[place], -1)

    def follow(self, head: Tensor, relation: Tensor) -> Tensor:
        """Tail of each fact (`head`, `relation`); -1 where there is none."""
        row = self.find(head, relation)
        return torch.where(row >= 0, self.tail[row.clamp(min=0)], -1)

    def to(self, device: torch.device | str) -> AtomicFacts:
        """The same facts on `device`."""
        return AtomicFacts(
            self.head.to(device), self.relation.to(device), self.tail.to(device), self.composed.to(device)
        )
