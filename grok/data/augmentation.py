"""Augmentation of facts by rules, until there are as many inferred facts per atomic fact as wanted.

Abramov et al. 2025 (arXiv 2504.20752, algorithms 1 and 2) have language models write further facts, some of them wrong;
here rules do. Facts are *original* (given from the start, always true), *added* (facts of the same knowledge that are
not original, of which a share is made wrong), or *invented* (about entities that the knowledge does not have, and so
neither true nor false). **A wrong fact** is an added fact (h, r) → t whose tail is that of another fact of r, drawn as
often as such tails occur, and not t; the true fact is then not trained at all.

Shape legend: F fact, R relation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grok.data.fact_graph import chains
from grok.data.keyed import POSITIVE, keyed_hash, keyed_uniform
from grok.data.knowledge_graph import Hops, keyed_sample
from grok.errors import BadInput, Problem

__all__ = ["Taught", "by_attachment", "by_pairs", "invented_chains", "invented_heads", "with_wrong_facts"]


@dataclass(frozen=True)
class Taught:
    """The atomic facts of a training: the original ones first, then added, then invented ones.

    Args:
        true: `[F, 3]` head, relation and tail as they are.
        columns: `[F, 3]` as they are trained, with the tails of wrong facts replaced.
        original: how many are original.
        known: how many are original or added; those after them are invented.
    """

    true: Tensor
    columns: Tensor
    original: int
    known: int

    @property
    def wrong(self) -> Tensor:
        """Which facts are wrong: bool `[F]`."""
        return self.true[:, 2] != self.columns[:, 2]

    @property
    def sound(self) -> Tensor:
        """Which facts are true, so that tests may go through them: bool `[F]`."""
        return ~self.wrong & (torch.arange(len(self.true)) < self.known)

    def with_invented(self, facts: Tensor) -> Taught:
        """The same and `facts` `[A, 3]`."""
        return replace(self, true=torch.cat([self.true, facts]), columns=torch.cat([self.columns, facts]))


def by_pairs(columns: Tensor, pairs: Hops, seed: int) -> Tensor:
    """All fact rows `[F]`, as pairs of `pairs` in random order, then those in no pair: so questions are collected.

    The beginning of it is a small knowledge like that of a multi-hop data set, in which each question brings its own
    two facts (phi 0.5).
    """
    order = keyed_hash("pairs", seed, columns[pairs.first, 0], columns[pairs.first, 1], columns[pairs.second, 1],
                       columns[pairs.second, 0]).argsort(stable=True)  # fmt: skip
    listed = torch.stack([pairs.first[order], pairs.second[order]], 1).flatten()
    place = torch.full((len(columns),), len(listed)).scatter_reduce(0, listed, torch.arange(len(listed)), "amin")
    alone = keyed_hash("alone", seed, columns[:, 0], columns[:, 1]).argsort(stable=True)
    return alone[place[alone].argsort(stable=True)]


def by_attachment(columns: Tensor, chosen: Tensor, wanted: int, seed: int) -> Tensor:
    """`wanted` further fact rows beside the `chosen` ones, those first that make the most chains with facts before.

    In rounds: each takes the facts that touch what has been taken, the best connected first; where none does, a
    sixteenth of the others at random.
    """
    entities = int(columns[:, ::2].max()) + 1
    hashes = keyed_hash("added", seed, columns[:, 0], columns[:, 1]) & POSITIVE
    taken = torch.zeros(len(columns), dtype=torch.bool)
    taken[chosen] = True
    found = columns.new_zeros(0)
    while len(found) < wanted and not bool(taken.all()):
        leaving = torch.bincount(columns[taken, 0], minlength=entities)
        arriving = torch.bincount(columns[taken, 2], minlength=entities)
        score = (arriving[columns[:, 0]] + leaving[columns[:, 2]]).masked_fill(taken, -1)
        order = hashes.argsort(stable=True)
        order = order[score[order].argsort(descending=True, stable=True)]
        most = int((score > 0).sum()) or 1 + int((score == 0).sum()) // 16
        more = order[: min(most, wanted - len(found))]
        taken[more] = True
        found = torch.cat([found, more])
    return found


def with_wrong_facts(taught: Taught, rate: float, seed: int) -> Taught:
    """Make `round(rate · added)` of the added facts wrong.

    A larger rate makes wrong what a smaller one does, and in the same way.

    Raises:
        BadInput: if too few relations have a second tail to be wrong with, or nothing was added.
    """
    true = taught.true
    added = torch.arange(taught.original, taught.known)
    if rate and not len(added):
        fix = "no fact is added whose truth is known: use 0, or a smaller `original`"
        raise BadInput(Problem("wrong_fact_rate", rate, fix))
    entities = int(true[:, ::2].max()) + 1
    known = true[: taught.known]
    by_tail = (known[:, 1] * entities + known[:, 2]).argsort(stable=True)
    of_relation, tails = known[by_tail, 1].contiguous(), known[by_tail, 2]
    keys = of_relation * entities + tails
    wanted = true[added, 1] * entities + true[added, 2]
    start, stop = (torch.searchsorted(of_relation, true[added, 1].contiguous(), right=end) for end in (False, True))
    own, after = (torch.searchsorted(keys, wanted, right=end) for end in (False, True))
    others = (stop - start) - (after - own)
    possible = others > 0
    count = round(rate * len(added))
    if count > int(possible.sum()):
        most = math.floor(1000 * int(possible.sum()) / len(added)) / 1000
        fix = f"use at most {most}: the other added facts have the only tail of their relation"
        raise BadInput(Problem("wrong_fact_rate", rate, fix))
    order = keyed_hash("wrong", seed, true[added, 0], true[added, 1]) & POSITIVE
    rows = keyed_sample(count, torch.where(possible, order, POSITIVE))
    drawn = start + keyed_uniform(others.clamp(min=1), "tail", seed, true[added, 0], true[added, 1])
    drawn = torch.where(drawn >= own, drawn + (after - own), drawn)
    columns = taught.columns.clone()
    columns[added[rows], 2] = tails[drawn[rows]]
    return replace(taught, columns=columns)


def invented_heads(columns: Tensor, count: int, first: int, seed: int) -> Tensor:
    """`count` facts of new entities `first`, `first + 1`, …, each a copy of a random fact with another head."""
    new = torch.arange(first, first + count)
    copied = columns[keyed_uniform(len(columns), "copy", seed, new)]
    return torch.stack([new, copied[:, 1], copied[:, 2]], 1)


def invented_chains(
    columns: Tensor, count: int, first: int, phi: float, seed: int, surplus: float = 1.0, wanted: float = 0.0
) -> Tensor:
    """`count` facts of new entities that make more than `surplus · phi` chains each on average: `[count, 3]`.

    New bridges stand in for the tails of a relation r1. Each has one fact of every relation that leaves any tail of r1,
    with the tail of a random fact of that relation; and as many new heads lead to it by r1 as are needed. Relations r1
    are drawn as often as they occur, of those with enough relations after them.

    Args:
        columns: facts `[F, 3]` to be like.
        count: facts to invent.
        first: number of the first new entity.
        phi: what the user asks for.
        seed: selects them.
        surplus: see above.
        wanted: chains of each that would be better, as far as there are relations that allow it.

    Raises:
        BadInput: if no relation is followed by more than `surplus · phi` relations (lemma 2).
    """
    relations, least = int(columns[:, 1].max()) + 1, surplus * phi
    hops = chains(columns)
    follows = torch.zeros(relations, relations, dtype=torch.bool)
    follows[columns[hops.first, 1], columns[hops.second, 1]] = True
    degree = follows.sum(1)
    most = int(degree.max())
    if not most:
        fix = "no tail of a fact is the head of another, so nothing can be composed: use task=comparison"
        raise BadInput(Problem("task", "composition", fix))
    if most <= least:
        fix = f"no relation is followed by more than {most} relations: use less than {most / surplus:.3g}"
        raise BadInput(Problem("phi", phi, fix))
    aim = (0.85 * degree).clamp(max=max(least, wanted)).clamp(min=least)
    eligible = columns[degree[columns[:, 1]] > min(max(least, wanted), most - 1), 1]
    members = columns[:, 1].argsort(stable=True)
    sizes = torch.bincount(columns[:, 1], minlength=relations)
    starts = sizes.cumsum(0) - sizes
    heads = (2 * aim * degree / (degree - aim).clamp(min=0.1)).ceil().clamp(min=1).long()
    units = math.ceil(count / 2) + 1  # a unit has two facts or more
    r1 = eligible[keyed_uniform(len(eligible), "unit", seed, torch.arange(units))]
    size = 1 + heads[r1]  # new entities of a unit, the bridge first
    bridge = first + size.cumsum(0) - size
    unit, r2 = follows[r1].nonzero().unbind(1)
    fact = members[starts[r2] + keyed_uniform(sizes[r2], "tail", seed, unit, r2)]
    leaving = torch.stack([bridge[unit], r2, columns[fact, 2]], 1)
    after = torch.arange(units).repeat_interleave(heads[r1])
    place = torch.arange(len(after)) - (heads[r1].cumsum(0) - heads[r1])[after]
    arriving = torch.stack([bridge[after] + 1 + place, r1[after], bridge[after]], 1)
    order = torch.cat([unit, after]).argsort(stable=True)  # unit by unit, each with the facts of its bridge first
    return torch.cat([leaving, arriving])[order][:count]
