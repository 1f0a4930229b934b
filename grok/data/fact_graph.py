"""Named facts as a graph: what follows what, and how many inferred facts it can give at most.

Branching factor and phi follow Abramov et al. 2025 (arXiv 2504.20752, lemmas 1 and 2): a fact that is followed by b
facts on average gives b inferred facts of two hops, and b^(n - 1) of n hops, so that phi = inferred / atomic cannot be
larger, and a relation generalises only if its b is large enough for the phi that generalisation needs. We know the
lemmas from summaries; what follows a fact is here spelled out by `chains` and `comparable`.

Shape legend: F fact, C pair of facts, R relation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grok.data.knowledge_graph import Hops, joined

__all__ = [
    "Knowledge",
    "branching",
    "chains",
    "comparable",
    "generalisable",
    "largest_phi",
    "needed_branching",
]


@dataclass(frozen=True)
class Knowledge:
    """Facts, and what their entities and relations are called.

    Args:
        entities: name of each entity.
        relations: name of each relation.
        columns: `[F, 3]` head, relation and tail; each (head, relation) at most once.
        digest: SHA-256 of the file they come from; empty if they come from none.
        report: what was noticed in reading, in a line; empty if nothing was.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    columns: Tensor
    digest: str = ""
    report: str = ""


def chains(columns: Tensor) -> Hops:
    """All two-hop chains h → b → t of facts `[F, 3]`, by fact rows `[C]`; without cycles: h, b and t are distinct."""
    first, second = joined(columns[:, 2], columns[:, 0])
    head, bridge, tail = columns[first, 0], columns[first, 2], columns[second, 2]
    distinct = (head != bridge) & (bridge != tail) & (head != tail)
    return Hops(first[distinct], second[distinct])


def comparable(columns: Tensor) -> Hops:
    """All ordered pairs of facts `[F, 3]` with one relation and two heads, by fact rows `[C]`."""
    first, second = joined(columns[:, 1], columns[:, 1])
    different = first != second
    return Hops(first[different], second[different])


def branching(columns: Tensor, pairs: Hops, relations: int) -> Tensor:
    """Branching factor of each relation: how many facts follow one of its facts on average; `[R]`, 0 if it has none.

    Args:
        columns: facts `[F, 3]`.
        pairs: which fact follows which: `chains` or `comparable`.
        relations: R.
    """
    facts = torch.bincount(columns[:, 1], minlength=relations)
    followed = torch.bincount(columns[pairs.first, 1], minlength=relations)
    return followed / facts.clamp(min=1)


def largest_phi(branching: float, hops: int = 2) -> float:
    """Most inferred facts of `hops` hops per atomic fact, at a branching factor: b^(n - 1) (lemma 1)."""
    return float(branching ** (hops - 1))


def needed_branching(phi: float, hops: int = 2) -> float:
    """The least branching factor at which phi can be reached (lemma 2): phi^(1 / (n - 1))."""
    return float(phi ** (1 / (hops - 1)))


def generalisable(branching: Tensor, phi: float, hops: int = 2) -> Tensor:
    """Which relations can reach phi, by their branching factor `[R]` (lemma 2): bool `[R]`."""
    return branching >= needed_branching(phi, hops)
