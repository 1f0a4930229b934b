"""Which of some named facts are taught, and which queries train and test them; integer tensors, no strings, no models.

Shape legend: F fact, N query.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grok.data.augmentation import Taught, by_attachment, by_pairs, invented_chains, invented_heads, with_wrong_facts
from grok.data.composition import used_in_compositions
from grok.data.fact_graph import Knowledge
from grok.data.fact_tasks import Composed, FactTask
from grok.data.knowledge_graph import Hops, keyed_sample
from grok.data.pool import insist_on_pool
from grok.errors import BadInput, Problem

__all__ = ["Lessons"]

SLACK = 1.1  # invented facts aim at a tenth more inferred facts than phi asks for, to lift those that have fewer
MOST_INVENTED = 50  # invented per known fact, before it is said that phi cannot be reached


@dataclass(frozen=True)
class Lessons:
    """Atomic facts of a training, its inferred facts, and the tests; see `FactRegime` for the arguments.

    Args:
        knowledge: what is known.
        task: what is asked.
        original: see `FactRegime`, as the further ones.
        atomic: see `FactRegime`.
        phi: see `FactRegime`.
        wrong_fact_rate: see `FactRegime`.
        contradicted: whether inferred facts follow the true fact where the taught one is wrong.
        ood: see `FactRegime`.
        iid: see `FactRegime`.
        test_size: see `FactRegime`.
        seed: selects everything.
    """

    knowledge: Knowledge
    task: type[FactTask]
    original: int | None = None
    atomic: int | None = None
    phi: float = 6.25
    wrong_fact_rate: float = 0.0
    contradicted: bool = False
    ood: float = 0.3
    iid: float = 0.05
    test_size: int = 1000
    seed: int = 0

    @staticmethod
    def check(
        *,
        original: int | None = None,
        atomic: int | None = None,
        phi: float = 6.25,
        wrong_fact_rate: float = 0.0,
        ood: float = 0.3,
        iid: float = 0.05,
        test_size: int = 1000,
    ) -> list[Problem]:
        """Problems with arguments that show without the facts."""
        numbers = {"original": (original, 2), "atomic": (atomic, 2), "test_size": (test_size, 1)}
        problems = [
            Problem(key, value, f"give a number, {least} or more")
            for key, (value, least) in numbers.items()
            if value is not None and value < least
        ]
        shares = {"wrong_fact_rate": wrong_fact_rate, "ood": ood, "iid": iid}
        problems += [
            Problem(key, value, "give a share from 0 to 1, of iid less than 1")
            for key, value in shares.items()
            if not 0 <= value <= 1 or (key == "iid" and value == 1)
        ]
        if not 0 < phi < math.inf:
            problems.append(Problem("phi", phi, "give inferred facts per atomic fact, above 0 (the paper: 6.25 and 8)"))
        return problems

    @cached_property
    def taught(self) -> Taught:
        """The atomic facts.

        Raises:
            BadInput: if there are not as many as asked for, or they give fewer inferred facts than `phi` asks for.
        """
        known, invented = len(self._listed), 0
        room = math.inf if self.atomic is None else self.atomic - self._originals
        if room < 0:
            fix = f"use {self._originals:,} or more: original facts are atomic facts of the training"
            raise BadInput(Problem("atomic", self.atomic, fix))
        most = min(room, MOST_INVENTED * known)
        if self.atomic is not None:
            invented = max(0, self.atomic - known)
        while True:
            taught = self._with_invented(invented)
            supply, number = self._supply(taught), len(taught.true)
            short = round(self.phi * number) - supply
            if short <= 0:
                return taught
            if invented >= most:
                insist_on_pool(self.phi, self.ood, supply + short, supply, number, ("inferred facts", "atomic ones"))
            invented = int(min(most, math.ceil(invented * 1.1 + short / self.phi / 4) + 1))

    @property
    def supply(self) -> int:
        """How many inferred facts a training could have."""
        return self._supply(self.taught)

    @property
    def _originals(self) -> int:
        return len(self.knowledge.columns) if self.original is None else self.original

    @cached_property
    def _listed(self) -> Tensor:
        """Rows of all facts that may be taught, the original ones first."""
        facts, number = self.knowledge.columns, len(self.knowledge.columns)
        if self._originals > number:
            raise BadInput(Problem("original", self.original, f"use at most {number:,}: so many facts are known"))
        pairs = self.task.pairs(facts) if self.task is Composed else Hops(*facts.new_zeros(2, 0))
        first = by_pairs(facts, pairs, self.seed)[: self._originals]
        wanted = number if self.atomic is None else min(self.atomic, number)
        return torch.cat([first, by_attachment(facts, first, wanted - len(first), self.seed)])

    def _with_invented(self, count: int) -> Taught:
        """The original facts, `count` invented ones and the added ones beside them."""
        rows = self._listed if self.atomic is None else self._listed[: self.atomic - count]
        facts = self.knowledge.columns[rows]
        taught = with_wrong_facts(Taught(facts, facts, self._originals, len(rows)), self.wrong_fact_rate, self.seed)
        if not count:
            return taught
        entities = len(self.knowledge.entities)
        if self.task is Composed:
            kept = 1 - self.iid
            wanted = 0.0 if self.atomic is None else self.phi * self.atomic / count / kept
            new = invented_chains(facts, count, entities, self.phi, self.seed, SLACK / kept, wanted)
            return taught.with_invented(new)
        return taught.with_invented(invented_heads(facts, count, entities, self.seed))

    def rows(self, taught: Taught, true: bool = False) -> FactTask:
        """Taught facts with a way to ask about them, the first of the original ones out of distribution."""
        facts = taught.true if true else taught.columns
        ood = torch.arange(len(facts)) < round(self.ood * taught.original)
        entities = max(len(self.knowledge.entities), int(facts[:, ::2].max()) + 1)
        return self.task(facts, ood, self.seed, (entities, len(self.knowledge.relations)))

    def _pool(self, taught: Taught) -> tuple[FactTask, Hops, Tensor]:
        """What inferred facts follow, all of them that are in distribution, and which are held out: bool `[N]`."""
        rows = self.rows(taught, self.contradicted)
        hops = rows.queries((~rows.ood).nonzero()[:, 0])
        sound = taught.sound[hops.first] & taught.sound[hops.second]
        return rows, hops, sound & rows.held_out(self.iid, hops)

    def _supply(self, taught: Taught) -> int:
        rows, hops, held_out = self._pool(taught)
        return rows.supply(hops.take(~held_out))

    @cached_property
    def trained(self) -> Hops:
        """The inferred facts in training, `round(phi · F)`; of a smaller phi a part of those of a larger one."""
        rows, hops, held_out = self._pool(self.taught)
        pool = hops.take(~held_out)
        return rows.sample(round(self.phi * len(self.taught.true)), pool, rows.order(pool))

    @cached_property
    def asked(self) -> Mapping[str, tuple[FactTask, Hops]]:
        """The atomic and the inferred queries of the training, and the evaluation splits, each with its facts."""
        taught = self.taught
        rows, hops, held_out = self._pool(taught)
        facts = self.rows(taught)
        known, unknown = ((facts.ood == ood).nonzero()[:, 0] for ood in (False, True))
        atomic = facts.atomic(torch.arange(facts.facts))
        used = used_in_compositions(self.trained, facts.facts)
        held_out &= used[hops.first] & used[hops.second]

        def probes(rows: FactTask, hops: Hops) -> tuple[FactTask, Hops]:
            return rows, rows.sample(self.test_size, hops, rows.probe_order(hops))

        def probed(facts: Tensor) -> tuple[FactTask, Hops]:
            order = rows.probe_order(rows.atomic(facts))
            return self.rows(taught), rows.atomic(facts[keyed_sample(self.test_size, order)])

        return {
            "atomic": (facts, atomic),
            "inferred": (rows, self.trained),
            "id_atomic": probed(known),
            "ood_atomic": probed(unknown),
            "train_inferred": probes(rows, self.trained),
            "test_inferred_iid": probes(rows, hops.take(held_out)),
            "test_inferred_ood": probes(rows, rows.queries(unknown)),
        }
