"""New facts for a trained model: does its circuit use them? (He et al. 2026, arXiv 2601.09049, section 5.)

Shape legend: F fact (old rows first, then new ones), N query.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from grok.data.composition import TwoHopQueries
from grok.data.exposure import FactExposure, Regime
from grok.data.keyed import POSITIVE, keyed_hash, keyed_uniform
from grok.data.knowledge_graph import FactColumns, Hops, KnowledgeGraph, keyed_sample, place_in_group
from grok.errors import BadInput, Problem, insist

__all__ = ["NewKnowledge", "greedy_closure", "new_chains"]

_ROUNDS = 64  # of drawing heads again that have no free relation left
OLD_TESTS = ("id_atomic", "test_inferred_iid", "test_inferred_ood")
"""The splits of the earlier training that show what is forgotten."""


def new_chains(graph: KnowledgeGraph, relations: int, facts: int) -> Tensor:
    """New facts in two-edge chains (a, r1, b), (b, r2, t): head, relation, tail `[facts, 3]`, second edges last.

    a, b and t are random entities; no (head, relation) is in the graph, or twice among the new facts.

    Args:
        graph: the old facts; its seed selects the new ones.
        relations: how many relations there are.
        facts: how many facts, an even number.

    Raises:
        BadInput: if too few entities have a free relation.
    """
    row, free = torch.arange(facts), relations - graph.out_degree
    heads = keyed_uniform(graph.entities, "newhead", graph.seed, row, 0)
    for round_ in range(1, _ROUNDS):
        full = place_in_group(heads) >= free
        if not full.any():
            break
        heads[full] = keyed_uniform(graph.entities, "newhead", graph.seed, row[full], round_)
    else:
        fix = f"each entity has {free} free relations, too few for so many: use fewer, or raise relations"
        raise BadInput(Problem("new_facts", facts, fix))
    ends = keyed_uniform(graph.entities, "newtail", graph.seed, row[: facts // 2])
    return torch.stack([heads, _free_relations(graph, relations, heads), torch.cat([heads[facts // 2 :], ends])], 1)


def _free_relations(graph: KnowledgeGraph, relations: int, heads: Tensor) -> Tensor:
    """A random relation for each of `heads` `[N]` that no fact of it has, and no earlier row of the same head."""
    own, which = torch.unique(heads, return_inverse=True)
    hashes = keyed_hash("newrel", graph.seed, own[:, None], torch.arange(relations)) & POSITIVE
    # All free relations come before the used ones: a hash of 2⁶³ - 1 for a free one will not happen.
    order = hashes.scatter_(1, graph.relations[own], POSITIVE).argsort(1)
    return order[which, place_in_group(heads)]


def greedy_closure(compositions: Hops, order: Tensor, items: int) -> Tensor:
    """Facts that are kept with every composition through them, `items` facts and compositions together at most.

    Each fact is taken in the given order if it still fits with its compositions; when none is left that fits, the one
    that adds least is taken as long as there is one. All facts before the first that does not fit are found without a
    loop, as a composition comes with the earlier of its two facts; only few come after it.

    Args:
        compositions: the two-hop queries.
        order: `[F]` all fact rows in the order in which they are taken.
        items: the budget.

    Returns:
        `[F]` bool.
    """
    place = order.argsort()
    first, second = place[compositions.first], place[compositions.second]  # facts by their place in the order, now
    total = (torch.minimum(first, second).bincount(minlength=len(order)) + 1).cumsum(0)
    at = int((total <= items).sum())
    kept = torch.arange(len(order)) < at
    left = items - (int(total[at - 1]) if at else 0)
    cost = _uses(first, second, ~(kept[first] | kept[second]), len(order)) + 1
    while left > 0:
        fits = (cost <= left) & ~kept
        if not fits.any():
            break
        later = fits[at:].nonzero()[:, 0]
        taken = at + int(later[0]) if len(later) else int(torch.where(fits, cost, left + 1).argmin())
        left -= int(cost[taken])
        cost -= _uses(first, second, ((first == taken) | (second == taken)) & ~(kept[first] | kept[second]), len(order))
        kept[taken] = True
        at = max(at, taken)
    return kept[place]


def _uses(first: Tensor, second: Tensor, chosen: Tensor, facts: int) -> Tensor:
    """How many of the `chosen` compositions go through each fact: `[F]`; one that uses a fact twice counts once."""
    first, second = first[chosen], second[chosen]
    return torch.cat([first, second[first != second]]).bincount(minlength=facts)


class NewKnowledge(FactExposure):
    """Fine-tuning data: new atomic facts among some of what a `FactExposure` with the same arguments has trained.

    The new facts make two-edge chains of old entities and relations, and are trained as atomic facts only. What is
    asked: new facts as first hop before a kept fact (`test_inferred_new_old`), as second hop after one
    (`test_inferred_old_new`), and as both (`test_inferred_new_new`): every such query, `test_size` at most, and none is
    ever trained. Old tests show what is forgotten.

    New facts depend on the graph's seed only, not on `regime` or `keep`. What is kept belongs to the regime's own
    training table; with `keep="code"` the facts are taken in the same order in all regimes, but how many fit depends
    on the compositions through them. The paper speaks of 8,000 kept *facts* and all compositions that they support;
    the released code keeps 8,000 *items*: facts and every composition that uses one of them as either hop, although
    the other one is seldom kept. It may keep OOD facts, too, which are not asked about: an old hop is a kept ID fact.

    In `Split.truth` and `Generated.facts` new facts have the rows after the old ones, and count as out of distribution:
    they are in no training composition. `AtomicFacts.composed` is that of the earlier training.

    Args:
        new_facts: how many facts are new; an even number.
        kept: how many items (`keep="code"`) or ID facts (`keep="paper"`) of the old training table are kept.
        keep: `code`, as the released code does it; `paper`, as the paper has it.
        regime: see `FactExposure`, as all further arguments.
        exposure: see `FactExposure`.
    """

    memorised_split = "atomic_new"
    held_out_splits = ("test_inferred_new_old", "test_inferred_old_new", "test_inferred_new_new")
    remedy = "raise `new_facts` or `kept`"

    def __init__(
        self,
        new_facts: int = 2000,
        kept: int = 8000,
        keep: Literal["code", "paper"] = "code",
        regime: Regime = "natural",
        **exposure: Any,
    ) -> None:
        insist(NewKnowledge.check(new_facts=new_facts, kept=kept, keep=keep, regime=regime, **exposure))
        super().__init__(regime=regime, **exposure)
        self.new_facts, self.kept, self.keep = new_facts, kept, keep
        self._rows: FactColumns | None = None

    @staticmethod
    def check(
        *, new_facts: int = 2000, kept: int = 8000, keep: str = "code", relations: int = 200, out_degree: int = 20,
        **exposure: Any,
    ) -> list[Problem]:  # fmt: skip
        """All problems with the arguments of the constructor."""
        problems = FactExposure.check(relations=relations, out_degree=out_degree, **exposure)
        if new_facts < 2 or new_facts % 2:
            problems.append(Problem("new_facts", new_facts, "give an even number, 2 or more: facts are made in chains"))
        if kept < 1:
            problems.append(Problem("kept", kept, "give a number, 1 or more (the paper: 8000)"))
        if keep not in ("code", "paper"):
            problems.append(Problem("keep", keep, "use code or paper"))
        if relations == out_degree:
            fix = f"every entity has a fact with every relation, so that none is free: use more than {out_degree}"
            problems.append(Problem("relations", relations, fix))
        return problems

    @property
    def rows(self) -> FactColumns:
        """All facts: those of the graph, then the new ones."""
        if self._rows is None:
            graph, fact = self.graph, torch.arange(self.graph.facts)
            old = torch.stack([graph.head(fact), graph.relation(fact), graph.tail(fact)], 1)
            new = new_chains(graph, self.relations, self.new_facts)
            ood = torch.cat([graph.ood, torch.ones(len(new), dtype=torch.bool)])
            self._rows = FactColumns(torch.cat([old, new]), ood, graph.seed)
        return self._rows

    def queries(self) -> TwoHopQueries:
        """Kept facts, kept compositions and new facts; and what is asked, by rows of `rows`."""
        pretraining, rows, old = super().queries(), self.rows, self.graph.facts
        facts, compositions = self.keep_some(pretraining.train)
        new = torch.arange(old, rows.facts)
        parts = rows.atomic(facts), compositions, rows.atomic(new)
        train = Hops(*(torch.cat(column) for column in zip(*parts, strict=True)))
        known = facts[~rows.ood[facts]]
        asked = {
            "atomic_new": rows.atomic(new),
            "atomic_kept": rows.atomic(facts),
            "train_inferred": compositions,
            "test_inferred_new_old": rows.chains(new, known),
            "test_inferred_old_new": rows.chains(known, new),
            "test_inferred_new_new": rows.chains(new, new),
        }
        evaluation = {name: self._probes(hops) for name, hops in asked.items()}
        forgotten = {name: pretraining.evaluation[name] for name in OLD_TESTS}
        return TwoHopQueries(train, evaluation | forgotten, earlier=pretraining.train)

    def keep_some(self, table: Hops) -> tuple[Tensor, Hops]:
        """The fact rows and the compositions of the earlier training `table` that are kept."""
        compositions, graph = table.take(table.second >= 0), self.graph
        fact = torch.arange(graph.facts)
        hashes = keyed_hash("keep", graph.seed, graph.head(fact), graph.relation(fact)) & POSITIVE
        if self.keep == "code":
            chosen = greedy_closure(compositions, hashes.argsort(), self.kept)
            return chosen.nonzero()[:, 0], compositions.take(chosen[compositions.first] | chosen[compositions.second])
        known = self._facts(ood=False)
        if self.kept > len(known):
            raise BadInput(Problem("kept", self.kept, f"there are {len(known):,} ID facts: use at most so many"))
        chosen = torch.zeros_like(graph.ood)
        chosen[known[keyed_sample(self.kept, hashes[known])]] = True
        return chosen.nonzero()[:, 0], compositions.take(chosen[compositions.first] & chosen[compositions.second])
