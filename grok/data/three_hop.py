"""Three-hop composition of Ye et al. 2025, "How do Transformers Learn Implicit Reasoning?" (arXiv 2505.23653).

Atomic facts `h r → t` and inferred facts `h r1 r2 r3 → t`, through two bridges never shown; no two-hop queries. The
name of a test says for each hop whether its fact is in (i) or out of distribution (o): `test_inferred_oii` is the
paper's Test-OII.

Shape legend: N query, H hop (three; hops that a query does not have are -1).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from grok.data.baselines import two_hop_baselines
from grok.data.composition import SPECIALS, token_name
from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.encoding import Encoding, NextToken, Questions
from grok.data.facts import AtomicFacts
from grok.data.keyed import POSITIVE, keyed_hash, keyed_share
from grok.data.knowledge_graph import KnowledgeGraph, keyed_sample
from grok.data.pool import insist_on_pool
from grok.data.split import Split
from grok.data.stream import TableStream
from grok.errors import Problem, insist
from grok.phases import Phase
from grok.task import Task

__all__ = ["THREE_HOP_SPLITS", "ThreeHopComposition"]

THREE_HOP_SPLITS = tuple("test_inferred_" + "".join(hops) for hops in product("io", repeat=3))
"""`test_inferred_iii`, `test_inferred_iio`, …, `test_inferred_ooo`: those of a code whose highest bit is hop 1's."""

MATERIALISED_AT_MOST = 10_000_000  # compositions: about 2 GB while they are generated


class ThreeHopComposition(RegimeDataModule):
    """Atomic facts and three-hop compositions of a random graph; the mixed ones are tests only.

    The training table is all ID and all OOD atomic facts, and a sample of the compositions of three ID facts. The
    sample of a smaller `phi` is part of that of a larger one. `truth` holds `bridge` `[N, 2]`, and `facts` and `ood`
    `[N, 3]`.

    Args:
        entities: number of entities.
        relations: number of relations.
        out_degree: facts per entity.
        phi: inferred facts in training per atomic fact, *ID or OOD*, as in the released code.
        ood: share of the atomic facts that are out of distribution.
        iii: share of the compositions of three ID facts that are held out.
        test_size: most queries in an evaluation split.
        encoding: how queries become model inputs; None is `NextToken()`.
        graph_seed: fixes graph and splits; None takes it from `seed`.
        common: `batch`, `seed`, `order_seed` and `evaluation_batch`, see `RegimeDataModule`.
    """

    memorised_split = "train_inferred"
    held_out_splits = (THREE_HOP_SPLITS[0], THREE_HOP_SPLITS[4], *THREE_HOP_SPLITS[1:4], *THREE_HOP_SPLITS[5:])
    phases = (
        Phase("memorisation", "train_inferred"),
        Phase("in-distribution generalisation", "test_inferred_iii"),
        Phase("cross-distribution reasoning", "test_inferred_oii", 0.5),
    )
    remedy = "raise `entities` or `out_degree`, or the share that the split is drawn from (`phi`, `iii`, `ood`)"

    def __init__(
        self,
        entities: int = 1000,
        relations: int = 100,
        out_degree: int = 10,
        phi: float = 12.0,
        ood: float = 0.2,
        iii: float = 0.05,
        test_size: int = 1000,
        encoding: Encoding | None = None,
        graph_seed: int | None = None,
        **common: Any,
    ) -> None:
        insist(self.check(entities, relations, out_degree, phi, ood, iii, test_size, **common))
        super().__init__(**common)
        self.entities, self.relations, self.out_degree = entities, relations, out_degree
        self.phi, self.ood, self.iii, self.test_size = phi, ood, iii, test_size
        self.encoding: Encoding = encoding or NextToken()
        graph_seed = self.seed if graph_seed is None else graph_seed
        self.graph = KnowledgeGraph.random(entities, relations, out_degree, ood=ood, seed=graph_seed)

    @staticmethod
    def check(
        entities: int = 1000,
        relations: int = 100,
        out_degree: int = 10,
        phi: float = 12.0,
        ood: float = 0.2,
        iii: float = 0.05,
        test_size: int = 1000,
        **common: Any,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        sizes = {"entities": entities, "relations": relations, "out_degree": out_degree, "test_size": test_size}
        problems = [Problem(key, value, "give a number, 1 or more") for key, value in sizes.items() if value < 1]
        if out_degree > relations >= 1:
            fix = f"the facts of an entity have distinct relations: use at most relations={relations}"
            problems.append(Problem("out_degree", out_degree, fix))
        shares = {"ood": ood, "iii": iii}
        problems += [Problem(k, v, "give a share between 0 and 1") for k, v in shares.items() if not 0 <= v <= 1]
        if not 0 < phi < math.inf:
            problems.append(Problem("phi", phi, "give inferred facts per atomic fact, above 0 (the paper: 12)"))
        if not problems and entities * out_degree**3 > MATERIALISED_AT_MOST:
            fix = f"{entities * out_degree**3:,} compositions do not fit into memory: use a smaller graph"
            problems.append(Problem("entities", entities, fix))
        return problems + RegimeDataModule.check_common(**common)

    @property
    def symbols(self) -> int:
        """Size of the vocabulary: entities, relations and the special symbols, in this order."""
        return self.entities + self.relations + len(SPECIALS)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return self.encoding.task(self.symbols, prompt=4, answer=1)

    def token_name(self, token: int) -> str:
        """See `RegimeDataModule.token_name`."""
        names = [f"<e_{i}>" for i in range(self.entities)] + [f"<r_{i}>" for i in range(self.relations)]
        return token_name(token, self.encoding.token(torch.arange(self.symbols)), [*names, *SPECIALS].__getitem__)

    def baselines(self, split: str) -> dict[str, float]:
        """See `two_hop_baselines`; here of the third relation."""
        return two_hop_baselines(self.generated.train, self.splits[split], last="r3")

    def compositions(self) -> Tensor:
        """Facts of all `entities · out_degree³` compositions: rows of the graph `[N, 3]`."""
        count = torch.arange(self.graph.facts * self.out_degree**2)
        first = count // self.out_degree**2
        second = self.graph.composed(first, count // self.out_degree % self.out_degree).second
        return torch.stack([first, second, self.graph.composed(second, count % self.out_degree).second], 1)

    def encode(self, facts: Tensor) -> Split:
        """Inputs, slots and truth of the queries through `facts` `[N, 3]`; atomic queries have -1 for hops 2 and 3."""
        graph = self.graph
        relation, tail = graph.relation(facts), graph.tail(facts)
        relations = torch.where(relation >= 0, relation + self.entities, -1)
        bridge = torch.where(facts[:, 1:] >= 0, tail[:, :2], -1)
        answer = torch.where(facts[:, 2] >= 0, tail[:, 2], tail[:, 0])
        prompt = torch.cat([graph.head(facts[:, :1]), relations], 1)
        truth = {"bridge": bridge, "facts": facts, "ood": graph.is_ood(facts)}
        questions = Questions(prompt, answer[:, None], ("h", "r1", "r2", "r3"), truth)
        end = self.entities + self.relations + SPECIALS.index("</a>")
        split = self.encoding.encode(questions, self.symbols, end)
        return replace(split, labels=self.encoding.token(torch.arange(self.entities)))

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`.

        Raises:
            BadInput: if `phi` asks for more compositions than there are.
        """
        atomic, inferred, splits = self.queries()
        stream = TableStream(self.encode(torch.cat([atomic, inferred])), self.batch, self.order_seed)
        return Generated(stream, {name: self.encode(of) for name, of in splits.items()}, self._atomic_facts(inferred))

    def queries(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Atomic facts (ID first) and compositions in training, and the evaluation splits: facts `[N, 3]` each."""
        graph, facts = self.graph, self.compositions()
        hashes = self._hash(facts)
        held_out = keyed_share(self.iii, "iii", hashes)
        kind = (graph.ood[facts].long() * torch.tensor([4, 2, 1])).sum(1)  # a bit for each hop that is OOD
        pool, size = facts[(kind == 0) & ~held_out], round(self.phi * graph.facts)
        insist_on_pool(self.phi, self.ood, size, len(pool), graph.facts, ("compositions of three ID facts", "facts"))
        inferred = self._sample(pool, size, "phi")
        atomic = torch.full((graph.facts, 3), -1)
        atomic[:, 0] = graph.ood.int().argsort(stable=True)
        known = int((~graph.ood).sum())
        splits = {"id_atomic": atomic[:known], "ood_atomic": atomic[known:], "train_inferred": inferred}
        for code, name in enumerate(THREE_HOP_SPLITS):
            splits[name] = facts[(kind == code) & (held_out | (code > 0))]
        return atomic, inferred, {name: self._sample(of, self.test_size, "probe") for name, of in splits.items()}

    def _hash(self, facts: Tensor) -> Tensor:
        graph = self.graph
        return keyed_hash("three", graph.seed, graph.head(facts[:, 0]), *graph.relation(facts).unbind(1))

    def _sample(self, facts: Tensor, size: int, purpose: str) -> Tensor:
        return facts[keyed_sample(size, keyed_hash(purpose, self._hash(facts)) & POSITIVE)]

    def _atomic_facts(self, inferred: Tensor) -> AtomicFacts:
        graph, token, fact = self.graph, self.encoding.token, torch.arange(self.graph.facts)
        composed = torch.zeros_like(graph.ood)
        composed[inferred.flatten()] = True
        relation = token(graph.relation(fact) + self.entities)
        return AtomicFacts(token(graph.head(fact)), relation, token(graph.tail(fact)), composed)
