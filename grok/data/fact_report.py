"""Lessons in numbers: facts, branching factor, its bound on phi, and phi as trained, of each relation.

Shape legend: F fact, R relation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from grok.data.fact_graph import branching, largest_phi, needed_branching
from grok.data.fact_tasks import Compared
from grok.data.lessons import Lessons

__all__ = ["RelationStatistics", "describe", "same_value", "sizes", "statistics"]


class RelationStatistics(NamedTuple):
    """A relation, or all together, in numbers."""

    name: str
    facts: int
    branching: float
    """How many facts follow one of these."""
    bound: float
    """Largest phi of two hops by the branching factor alone (Abramov et al. 2025, lemma 1); held-out queries, OOD facts
    and, in comparison, as many answers of each kind leave less."""
    phi: float
    """Inferred facts in training that begin with the relation, per atomic fact of it."""
    enough: bool
    """Whether the bound is at least the phi that is wanted (lemma 2)."""


def statistics(lessons: Lessons) -> list[RelationStatistics]:
    """Numbers of the facts that inferred facts follow: of all relations together first, then of each that has facts."""
    columns = lessons.rows(lessons.taught, lessons.contradicted).columns
    pairs, trained, names = lessons.task.pairs(columns), lessons.trained, lessons.knowledge.relations
    facts = torch.bincount(columns[:, 1], minlength=len(names))
    inferred = torch.bincount(columns[trained.first, 1], minlength=len(names))
    factors = branching(columns, pairs, len(names))
    every = facts.nonzero()[:, 0].tolist()
    numbers = [("all", len(columns), len(pairs.first) / len(columns), len(trained.first) / len(columns))]
    numbers += [(names[r], int(facts[r]), float(factors[r]), float(inferred[r] / facts[r])) for r in every]
    needed = needed_branching(lessons.phi)
    return [RelationStatistics(name, n, b, largest_phi(b), phi, b >= needed) for name, n, b, phi in numbers]


def sizes(lessons: Lessons) -> dict[str, float]:
    """The most important numbers, by name."""
    taught, everything = lessons.taught, statistics(lessons)[0]
    return {
        "atomic_facts": len(taught.true),
        "original_facts": taught.original,
        "added_facts": taught.known - taught.original,
        "wrong_facts": int(taught.wrong.sum()),
        "invented_facts": len(taught.true) - taught.known,
        "inferred_facts": len(lessons.trained.first),
        "effective_phi": everything.phi,
        "branching_factor": everything.branching,
        "lemma_bound": everything.bound,
        "trainable_phi": lessons.supply / len(taught.true),
    }


def same_value(lessons: Lessons, split: str) -> dict[str, float]:
    """Accuracy on a split of comparisons of a rule that looks at the first entity alone; nothing for other splits.

    It gives the more frequent answer of the training comparisons whose first entity has the same tail.
    """
    (rows, trained), (_, asked) = lessons.asked["inferred"], lessons.asked[split]
    if not isinstance(rows, Compared) or bool((asked.second < 0).any()):
        return {}
    first, same = rows.tail(trained.first), rows.same(trained)
    yes, no = (torch.bincount(first[same == wanted], minlength=rows.sizes[0]) for wanted in (True, False))
    guess = (yes > no)[rows.tail(asked.first)]
    return {"same_value": (guess == rows.same(asked)).double().mean().item()}


def describe(lessons: Lessons) -> str:
    """All numbers as text, with what was noticed in reading."""
    told = [lessons.knowledge.report] * bool(lessons.knowledge.report)
    told += [f"{name.replace('_', ' ')} {number:,.6g}" for name, number in sizes(lessons).items()]
    return "\n".join([*told, "", _table(statistics(lessons), lessons.phi)])


def _table(lines: Sequence[RelationStatistics], phi: float) -> str:
    heads = ("relation", "facts", "b", "lemma's bound", "phi trained", f"enough for {phi:g}")
    rows = [heads]
    for name, facts, b, bound, trained, enough in lines:
        rows.append((name, f"{facts:,}", f"{b:.2f}", f"{bound:.2f}", f"{trained:.2f}", "yes" if enough else "no"))
    first, *others = (max(len(row[column]) for row in rows) for column in range(len(heads)))
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    )
