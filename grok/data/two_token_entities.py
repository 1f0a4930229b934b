"""Two-hop composition whose entities are written in two tokens (Wang et al. 2024, arXiv 2405.15071, appendix C).

Every entity has a first and a last name, an ordered pair that no other entity has: `h1 h2 r1 r2 → t1 t2`, through a
bridge whose two names are never shown. No name alone says who is meant, so that the bridge takes two tokens to tell.

Shape legend: N query, E entity.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grok.data.baselines import two_hop_baselines
from grok.data.composition import SPECIALS, TwoHopComposition
from grok.data.encoding import Questions
from grok.data.facts import AtomicFacts
from grok.data.keyed import keyed_permutation
from grok.data.knowledge_graph import FactRows, Hops
from grok.data.split import Split
from grok.errors import Problem, insist
from grok.task import Task

__all__ = ["TwoTokenComposition"]

NAMES = ("h1", "h2", "r1", "r2")


class TwoTokenComposition(TwoHopComposition):
    """The facts, queries and splits of `TwoHopComposition`, with every entity written as first name, last name.

    First names and last names are two sets of equal size, so that a name is shared by `multiplicity` entities (the
    paper's *token multiplicity*) on average: 2,000 entities at multiplicity 40 have 50 first and 50 last names. Which
    pairs exist, and whose they are, is random. An answer is right if both its names are.

    `truth["bridge"]` is `[N, 2]`, the first and the last name of the one bridge; -1 in an atomic query. There are no
    `AtomicFacts`, whose heads and tails are single tokens: causal tracing replaces states by those of other queries.

    Args:
        multiplicity: entities per name; a divisor of `entities` whose square is at most `entities`, or there would be
            fewer pairs than entities.
        composition: see `TwoHopComposition`.
    """

    def __init__(self, multiplicity: int = 40, **composition: Any) -> None:
        insist(TwoTokenComposition.check(multiplicity=multiplicity, **composition))
        super().__init__(**composition)
        self.multiplicity = multiplicity

    @staticmethod
    def check(*, multiplicity: int = 40, **composition: Any) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        checked = {name: value for name, value in composition.items() if name not in _UNCHECKED}
        problems = TwoHopComposition.check(**checked)
        entities = composition.get("entities", 2000)
        if multiplicity < 1:
            problems.append(Problem("multiplicity", multiplicity, "give entities per name, 1 or more"))
        elif entities >= 1 and (entities % multiplicity or entities < multiplicity**2):
            usable = [m for m in range(1, int(entities**0.5) + 1) if entities % m == 0]
            shown = ", ".join(map(str, usable[-8:]))
            fix = f"{entities} entities need a divisor whose square is not larger: use {shown}"
            problems.append(Problem("multiplicity", multiplicity, fix))
        return problems

    @property
    def names(self) -> int:
        """Size of each set of names."""
        return self.entities // self.multiplicity

    @cached_property
    def pairs(self) -> Tensor:
        """First and last name of each entity `[E, 2]`, numbered from 0 in their sets; no pair twice."""
        drawn = keyed_permutation(torch.arange(self.entities), self.names**2, "names", self.graph_seed)
        return torch.stack([drawn // self.names, drawn % self.names], 1)

    @property
    def symbols(self) -> int:
        """Size of the vocabulary: first names, last names, relations and the special symbols, in this order."""
        return 2 * self.names + self.relations + len(SPECIALS)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return self.encoding.task(self.symbols, prompt=len(NAMES), answer=2)

    @property
    def answers(self) -> Tensor:
        """See `TwoHopComposition.answers`: all names."""
        return torch.arange(2 * self.names)

    def floor(self, split: str) -> float:
        """One over the number of entities: the answer is one of them."""
        return 1 / self.entities

    def baselines(self, split: str) -> dict[str, float]:
        """See `two_hop_baselines`."""
        return two_hop_baselines(self.generated.train, self.splits[split], answer=2)

    def symbol_name(self, symbol: int) -> str:
        """How a symbol is written: `<first_3>`, `<last_12>`, `<r_3>`, `</a>`."""
        if symbol < 2 * self.names:
            return f"<{('first', 'last')[symbol // self.names]}_{symbol % self.names}>"
        relation = symbol - 2 * self.names
        return f"<r_{relation}>" if relation < self.relations else SPECIALS[relation - self.relations]

    def written(self, entity: Tensor) -> Tensor:
        """The two symbols of each entity: `[N]` to `[N, 2]`; -1 for none."""
        symbols = self.pairs.to(entity.device) + torch.tensor([0, self.names], device=entity.device)
        return torch.where(entity[:, None] >= 0, symbols[entity.clamp(min=0)], -1)

    def prompt(self, graph: FactRows, hops: Hops) -> Tensor:
        """Symbols h1, h2, r1, r2 of the queries `[N, 4]`; r2 is -1 in an atomic query."""
        relations = torch.stack([graph.relation(hops.first), graph.relation(hops.second)], 1)
        symbols = torch.where(relations >= 0, relations + 2 * self.names, -1)
        return torch.cat([self.written(graph.head(hops.first)), symbols], 1)

    def encode(self, graph: FactRows, hops: Hops) -> Split:
        """Inputs, slots and truth of the queries that go through `hops`."""
        truth = {
            "bridge": self.written(graph.bridge(hops)),
            "facts": torch.stack(hops, 1),
            "ood": torch.stack([graph.is_ood(hops.first), graph.is_ood(hops.second)], 1),
        }
        questions = Questions(self.prompt(graph, hops), self.written(graph.answer(hops)), NAMES, truth)
        end = 2 * self.names + self.relations + SPECIALS.index("</a>")
        return self.encoding.encode(questions, self.symbols, end)

    def _atomic_facts(self, composed: Tensor) -> AtomicFacts | None:
        return None


_UNCHECKED = ("encoding", "graph_seed", "seed", "order_seed")  # arguments that TwoHopComposition.check does not take
