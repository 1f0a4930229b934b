"""Two-hop composition over a random knowledge graph (Wang et al. 2024, arXiv 2405.15071; He et al. 2026, 2601.09049).

Atomic facts `h r → t` and inferred facts `h r1 r2 → t`, through a bridge that is never shown. Out-of-distribution facts
are trained as atomic facts but in no composition.

Shape legend: N query, P prompt position (h, r1, r2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grok.data.baselines import two_hop_baselines
from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.encoding import Encoding, NextToken, Questions
from grok.data.facts import AtomicFacts
from grok.data.knowledge_graph import FactRows, Hops, KnowledgeGraph, keyed_sample
from grok.data.lazy import ENUMERATED_AT_MOST, LazyStream, Trained, search
from grok.data.pool import insist_on_pool
from grok.data.split import Split
from grok.data.stream import Stream, TableStream
from grok.errors import BadInput, Problem, insist
from grok.task import Task

__all__ = ["SPECIALS", "TwoHopComposition", "TwoHopQueries", "token_name", "two_hop_questions", "used_in_compositions"]

SPECIALS = ("<mask>", "<sep>", "<a>", "</a>", "<q>", "</q>")
"""The symbols after entities and relations in the vocabulary of Wang et al. 2024; only `</a>` is used here."""

FACTS_AT_MOST = 1_000_000_000  # 30 GB while they are generated
MATERIALISED_AT_MOST = 25_000_000  # compositions: about 10 GB while they are generated
OF_POOL = ("ID compositions", "ID facts")
"""What phi counts, see `insist_on_pool`."""
WORTHWHILE = 0.01  # least share of the drawn compositions that must be usable in training in the lazy mode


def two_hop_questions(prompt: Tensor, answer: Tensor, bridge: Tensor, facts: Tensor, ood: Tensor) -> Questions:
    """Questions of atomic and two-hop queries from their symbols.

    Args:
        prompt: `[N, 3]` symbols h, r1, r2; r2 is -1 in an atomic query.
        answer: `[N]` symbol.
        bridge: `[N]` symbol, -1 in an atomic query.
        facts: `[N, 2]` fact row of each hop, the second -1 in an atomic query.
        ood: `[N, 2]` 1 where a hop's fact is out of distribution, else 0; -1 for no hop.
    """
    truth = {"bridge": bridge[:, None], "facts": facts, "ood": ood}
    return Questions(prompt, answer[:, None], ("h", "r1", "r2"), truth)


def token_name(token: int, symbols: Tensor, name: Callable[[int], str]) -> str:
    """The written form of `token`, given the token id of every symbol; `<|token|>` if it is no symbol (padding)."""
    found = (symbols == token).nonzero()
    return name(int(found[0])) if len(found) else f"<|{token}|>"


def used_in_compositions(hops: Hops, facts: int) -> Tensor:
    """Whether each of `facts` facts is a hop of some two-hop query in `hops`: bool `[fact]`."""
    both = hops.take(hops.second >= 0)
    used = torch.zeros(facts, dtype=torch.bool)
    used[torch.cat([both.first, both.second])] = True
    return used


@dataclass(frozen=True)
class TwoHopQueries:
    """What a materialised regime asks, by fact rows.

    Args:
        train: the training table.
        evaluation: the evaluation splits by name.
        earlier: the table of an earlier training that `train` is a part of; None if there was none.
    """

    train: Hops
    evaluation: dict[str, Hops]
    earlier: Hops | None = None


class TwoHopComposition(RegimeDataModule):
    """Atomic facts and two-hop compositions of a random graph, with the splits of Wang et al. 2024 and the mixed ones.

    The training table is all ID atomic facts, all OOD atomic facts, and a sample of the ID-ID compositions. The sample
    of a smaller `phi` is part of that of a larger one, and all share graph and held-out splits.

    The lazy mode makes the same graph, held-out queries and evaluation splits, but stores only the facts: each training
    batch is drawn as a function of (order seed, step), with replacement, with atomic facts as frequent as in the table.
    Whether a composition is in the training sample is then decided for each by itself, so that `phi` holds in
    expectation. Splits with more than four million candidates are drawn at random instead of enumerated.

    Args:
        entities: number of entities.
        relations: number of relations.
        out_degree: facts per entity.
        phi: inferred facts in training per ID atomic fact.
        ood: share of the atomic facts that are out of distribution.
        iid: share of the ID-ID compositions that are held out.
        test_size: most queries in an evaluation split.
        encoding: how queries become model inputs; None is `NextToken()`.
        lazy: draw compositions on the fly, for graphs whose compositions do not fit into memory.
        graph_seed: fixes graph and splits; None takes it from `seed`.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    memorised_split = "train_inferred"
    held_out_splits: tuple[str, ...] = (
        "test_inferred_iid",
        "test_inferred_ood",
        "test_inferred_io",
        "test_inferred_oi",
    )
    remedy = "raise `entities` or `out_degree`, or the share that the split is drawn from (`phi`, `iid`, `ood`)"

    def __init__(
        self,
        entities: int = 2000,
        relations: int = 200,
        out_degree: int = 20,
        phi: float = 18.0,
        ood: float = 0.05,
        iid: float = 0.005,
        test_size: int = 3000,
        encoding: Encoding | None = None,
        lazy: bool = False,
        graph_seed: int | None = None,
        batch: int = 512,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        insist(
            TwoHopComposition.check(
                entities=entities,
                relations=relations,
                out_degree=out_degree,
                phi=phi,
                ood=ood,
                iid=iid,
                test_size=test_size,
                lazy=lazy,
                batch=batch,
                evaluation_batch=evaluation_batch,
            )
        )
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.entities, self.relations, self.out_degree = entities, relations, out_degree
        self.phi, self.ood, self.iid, self.test_size, self.lazy = phi, ood, iid, test_size, lazy
        self.encoding: Encoding = encoding or NextToken()
        self.graph_seed = seed if graph_seed is None else graph_seed
        self._graph: KnowledgeGraph | None = None

    @staticmethod
    def check(
        *,
        entities: int = 2000,
        relations: int = 200,
        out_degree: int = 20,
        phi: float = 18.0,
        ood: float = 0.05,
        iid: float = 0.005,
        test_size: int = 3000,
        lazy: bool = False,
        batch: int = 512,
        evaluation_batch: int = 4096,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        sizes = {"entities": entities, "relations": relations, "out_degree": out_degree, "test_size": test_size}
        problems = [Problem(key, value, "give a number, 1 or more") for key, value in sizes.items() if value < 1]
        if out_degree > relations >= 1:
            fix = f"the facts of an entity have distinct relations: use at most relations={relations}"
            problems.append(Problem("out_degree", out_degree, fix))
        problems += [
            Problem(key, value, "give a share between 0 and 1")
            for key, value in (("ood", ood), ("iid", iid))
            if not 0 <= value <= 1
        ]
        if not 0 < phi < math.inf:
            problems.append(
                Problem("phi", phi, "give inferred facts per ID atomic fact, above 0 (the paper: 3.6 to 18)")
            )
        if not problems and entities * out_degree > FACTS_AT_MOST:
            fix = f"{entities * out_degree:,} facts do not fit into memory: use a smaller graph"
            problems.append(Problem("entities", entities, fix))
        elif not lazy and not problems and entities * out_degree**2 > MATERIALISED_AT_MOST:
            fix = f"{entities * out_degree**2:,} compositions do not fit into memory: use lazy=true or a smaller graph"
            problems.append(Problem("lazy", lazy, fix))
        return problems + RegimeDataModule.check_common(batch=batch, evaluation_batch=evaluation_batch)

    @property
    def symbols(self) -> int:
        """Size of the vocabulary: entities, relations and the special symbols, in this order."""
        return self.entities + self.relations + len(SPECIALS)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return self.encoding.task(self.symbols, prompt=3, answer=1)

    @property
    def graph(self) -> KnowledgeGraph:
        """The knowledge graph, made on first use."""
        if self._graph is None:
            sizes = self.entities, self.relations, self.out_degree
            self._graph = KnowledgeGraph.random(*sizes, ood=self.ood, seed=self.graph_seed)
        return self._graph

    @property
    def rows(self) -> FactRows:
        """The facts that queries refer to: those of the graph."""
        return self.graph

    @property
    def answers(self) -> Tensor:
        """The symbols that answers are made of: the entities."""
        return torch.arange(self.entities)

    def symbol_name(self, symbol: int) -> str:
        """How a symbol is written: `<e_12>`, `<r_3>`, `</a>`."""
        if symbol < self.entities:
            return f"<e_{symbol}>"
        relation = symbol - self.entities
        return f"<r_{relation}>" if relation < self.relations else SPECIALS[relation - self.relations]

    def token_name(self, token: int) -> str:
        """See `RegimeDataModule.token_name`."""
        return token_name(token, self.encoding.token(torch.arange(self.symbols)), self.symbol_name)

    def prompt(self, graph: FactRows, hops: Hops) -> Tensor:
        """Symbols h, r1, r2 of the queries `[N, 3]`; r2 is -1 in an atomic query."""
        second = graph.relation(hops.second)
        relation2 = torch.where(second >= 0, second + self.entities, -1)
        return torch.stack([graph.head(hops.first), graph.relation(hops.first) + self.entities, relation2], 1)

    def encode(self, graph: FactRows, hops: Hops) -> Split:
        """Inputs, slots and truth of the queries that go through `hops`."""
        questions = two_hop_questions(
            self.prompt(graph, hops),
            graph.answer(hops),
            graph.bridge(hops),
            torch.stack(hops, 1),
            torch.stack([graph.is_ood(hops.first), graph.is_ood(hops.second)], 1),
        )
        end = self.entities + self.relations + SPECIALS.index("</a>")
        return self.encoding.encode(questions, self.symbols, end)

    def baselines(self, split: str) -> dict[str, float]:
        """See `two_hop_baselines`."""
        return two_hop_baselines(self.generated.train, self.splits[split])

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`.

        Raises:
            BadInput: if `phi` asks for more compositions than there are, or the lazy mode finds too few.
        """
        labels = self.encoding.token(self.answers)
        stream: Stream
        if self.lazy:
            trained = self._trained()
            stream = LazyStream(self.graph, trained, self.encode, labels, self.batch, self.order_seed)
            evaluation = self._evaluation(
                self._search("train_inferred", self._facts(ood=False), lambda hops: trained(self.graph, hops))
            )
            composed = ~self.graph.ood  # nearly: in the lazy mode the training compositions are never listed
        else:
            queries = self.queries()
            table = replace(self.encode(self.rows, queries.train), labels=labels)
            stream, evaluation = TableStream(table, self.batch, self.order_seed), queries.evaluation
            composed = used_in_compositions(queries.earlier or queries.train, self.rows.facts)
        splits = {name: replace(self.encode(self.rows, hops), labels=labels) for name, hops in evaluation.items()}
        return Generated(stream, splits, self._atomic_facts(composed))

    def _atomic_facts(self, composed: Tensor) -> AtomicFacts | None:
        """The facts in tokens; None in a regime where a head or tail is not one token."""
        graph, token = self.rows, self.encoding.token
        fact = torch.arange(graph.facts)
        relation = token(graph.relation(fact) + self.entities)
        return AtomicFacts(token(graph.head(fact)), relation, token(graph.tail(fact)), composed)

    def queries(self) -> TwoHopQueries:
        """The training table and the evaluation splits by fact rows; materialised mode only."""
        graph, known = self.graph, self._facts(ood=False)
        pool = search(graph, known, lambda hops: graph.in_distribution(hops) & ~graph.held_out(self.iid, hops))
        size = round(self.phi * len(known))
        insist_on_pool(self.phi, self.ood, size, len(pool.first), len(known), OF_POOL)
        sample = pool.take(keyed_sample(size, graph.order(pool)))
        atomic = graph.atomic(torch.cat([known, self._facts(ood=True)]))
        train = Hops(torch.cat([atomic.first, sample.first]), torch.cat([atomic.second, sample.second]))
        return TwoHopQueries(train, self._evaluation(self._probes(sample)))

    def _facts(self, ood: bool) -> Tensor:
        """Fact rows in or out of distribution."""
        return (self.graph.ood == ood).nonzero()[:, 0]

    def _trained(self) -> Trained:
        """What the lazy mode trains."""
        known = len(self._facts(ood=False))
        pool = self.graph.in_distribution_compositions() * (1 - self.iid)
        inferred = round(self.phi * known)
        insist_on_pool(self.phi, self.ood, inferred, math.floor(pool), known, OF_POOL)
        usable = inferred / (self.graph.facts * self.out_degree)
        if usable < WORTHWHILE:
            least = math.ceil(WORTHWHILE * self.graph.facts * self.out_degree / known * 1000) / 1000
            fix = f"{usable:.1g} of the compositions are trained, too few to find: use at least {least}, or lazy=false"
            raise BadInput(Problem("phi", self.phi, fix))
        return Trained(self.phi, self.iid, inferred, pool)

    def _probes(self, hops: Hops) -> Hops:
        """At most `test_size` of the queries, in random order."""
        return hops.take(keyed_sample(self.test_size, self.rows.probe_order(hops)))

    def _search(self, name: str, first: Tensor, wanted: Callable[[Hops], Tensor]) -> Hops:
        """Evaluation split `name`: of the `wanted` compositions that begin with a fact in `first`.

        Raises:
            BadInput: if there are too many candidates to try them all, and too few are wanted to find them by drawing.
        """
        exhaustive = not self.lazy or len(first) * self.out_degree <= ENUMERATED_AT_MOST
        found = search(self.graph, first, wanted, None if exhaustive else self.test_size)
        if not exhaustive and len(found.first) < self.test_size:
            fix = f"drawing found {len(found.first)} queries of {name}: use at most as many, or {self.remedy}"
            raise BadInput(Problem("test_size", self.test_size, fix))
        return self._probes(found)

    def _evaluation(self, train_inferred: Hops) -> dict[str, Hops]:
        """The evaluation splits by fact rows."""
        graph, known, unknown = self.graph, self._facts(ood=False), self._facts(ood=True)
        before_known = known if self.iid else known[:0]  # nothing is searched where nothing can be found
        before_unknown = known if len(unknown) else known[:0]

        def to_known(hops: Hops) -> Tensor:
            return ~graph.ood[hops.second]

        def to_unknown(hops: Hops) -> Tensor:
            return graph.ood[hops.second]

        def held_out(hops: Hops) -> Tensor:
            return to_known(hops) & graph.held_out(self.iid, hops)

        def mixed(wanted: Callable[[Hops], Tensor]) -> Callable[[Hops], Tensor]:
            return lambda hops: wanted(hops) & self._mixed_tests(graph, hops)

        return {
            "id_atomic": self._probes(graph.atomic(known)),
            "ood_atomic": self._probes(graph.atomic(unknown)),
            "train_inferred": train_inferred,
            "test_inferred_iid": self._search("test_inferred_iid", before_known, held_out),
            "test_inferred_ood": self._search("test_inferred_ood", unknown, to_unknown),
            "test_inferred_io": self._search("test_inferred_io", before_unknown, mixed(to_unknown)),
            "test_inferred_oi": self._search("test_inferred_oi", unknown, mixed(to_known)),
        }

    def _mixed_tests(self, graph: KnowledgeGraph, hops: Hops) -> Tensor:
        """Which of the compositions `hops` with one OOD hop are tests: bool `[N]`; all, as none is trained."""
        return torch.ones_like(hops.first, dtype=torch.bool)
