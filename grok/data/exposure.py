"""Fact-level augmentation: compositions with exactly one out-of-distribution hop (He et al. 2026, arXiv 2601.09049).

In natural training an OOD fact is in no composition at all. Here the facts that the OOD-OOD tests go through are
exposed as first hop, as second hop, or both, in a few training compositions with an ID fact; no test is ever trained.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from grok.data.composition import TwoHopComposition, TwoHopQueries
from grok.data.keyed import POSITIVE, keyed_hash
from grok.data.knowledge_graph import Hops, KnowledgeGraph, keyed_sample, place_in_group
from grok.data.lazy import search
from grok.errors import Problem, insist

__all__ = ["FactExposure", "Regime"]

Regime = Literal["natural", "both_full", "both_half", "hop1_full", "hop2_full"]

_SHARES = {
    "natural": (0.0, 0.0),
    "both_full": (1.0, 1.0),
    "both_half": (0.5, 0.5),
    "hop1_full": (1.0, 0.0),
    "hop2_full": (0.0, 1.0),
}
"""Share of the facts, and of `k`, with which each regime exposes first hops and second hops."""


class Exposure(NamedTuple):
    """How many of the facts of one hop are exposed, and in how many compositions each at most."""

    ratio: float
    k: int


def _exposure(regime: str, k: int, hop: int, ratio: float | None, most: int | None) -> Exposure:
    """What a regime does with hop 0 or 1, unless `ratio` or `most` say otherwise."""
    share = _SHARES[regime][hop]
    return Exposure(share if ratio is None else ratio, int(share * k) if most is None else most)


def _at_most(k: int, groups: Tensor, hashes: Tensor) -> Tensor:
    """Rows of the `k` smallest `hashes` `[N]` of each group (all, if there are fewer), by `groups` `[N]`, in order.

    Nested, as `keyed_sample` is: a smaller `k` takes a part of what a larger one takes.
    """
    order = hashes.argsort()
    return order[place_in_group(groups[order]) < k].sort().values


class FactExposure(TwoHopComposition):
    """`TwoHopComposition` with fact-level augmentation: the five regimes of He et al. 2026 (section 4, appendix C).

    The OOD facts that are first hops of the OOD-OOD compositions (all of them, not only the scored ones) are exposed in
    up to k compositions with an ID fact after them; those that are second hops, with an ID fact before them. A full
    regime exposes all these facts, in up to `k` compositions each; a half one every second fact, in up to k/2.

    All regimes of a seed have the same graph, the same ID-ID training sample and the same test splits, and a weaker
    regime injects a part of what a stronger one does. For this the share `iid` of the compositions with one OOD hop is
    held out, too: these are `test_inferred_io` and `test_inferred_oi`, in all regimes, and are never injected. The
    injected compositions are scored as `train_inferred_oi` (first hop OOD) and `train_inferred_io` (second hop OOD).

    Args:
        regime: which facts are exposed in training compositions.
        k: most compositions per exposed fact in a full regime.
        h1ratio: share of the first-hop facts that are exposed; None takes it from `regime`.
        h1k: most compositions per exposed first-hop fact; None takes it from `regime`.
        h2ratio: the same for second-hop facts.
        h2k: the same for second-hop facts.
        avoid_exposing_ood_test_bridges: an option of the released code, kept to say that it injects nothing.
        composition: see `TwoHopComposition`; there is no lazy mode.
    """

    def __init__(
        self,
        regime: Regime = "natural",
        k: int = 18,
        h1ratio: float | None = None,
        h1k: int | None = None,
        h2ratio: float | None = None,
        h2k: int | None = None,
        avoid_exposing_ood_test_bridges: bool = False,
        **composition: Any,
    ) -> None:
        insist(
            FactExposure.check(
                regime=regime,
                k=k,
                h1ratio=h1ratio,
                h1k=h1k,
                h2ratio=h2ratio,
                h2k=h2k,
                avoid_exposing_ood_test_bridges=avoid_exposing_ood_test_bridges,
                **composition,
            )
        )
        super().__init__(**composition)
        self.regime = regime
        self.hop1 = _exposure(regime, k, 0, h1ratio, h1k)
        self.hop2 = _exposure(regime, k, 1, h2ratio, h2k)

    @staticmethod
    def check(
        *,
        regime: str = "natural",
        k: int = 18,
        h1ratio: float | None = None,
        h1k: int | None = None,
        h2ratio: float | None = None,
        h2k: int | None = None,
        avoid_exposing_ood_test_bridges: bool = False,
        **composition: Any,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        checked = {name: value for name, value in composition.items() if name not in _UNCHECKED}
        problems = [_without_lazy(problem) for problem in TwoHopComposition.check(**checked)]
        if composition.get("lazy"):
            problems.append(Problem("lazy", True, "exposed facts are counted in a table: use lazy=false"))
        if regime not in _SHARES:
            return [*problems, Problem("regime", regime, f"use {', '.join(get_args(Regime))}")]
        if k < 1:
            problems.append(Problem("k", k, "give compositions per exposed fact, 1 or more (the paper: 18)"))
            k = 18  # one complaint about it is enough
        hop1, hop2 = _exposure(regime, k, 0, h1ratio, h1k), _exposure(regime, k, 1, h2ratio, h2k)
        problems += [*_exposure_problems("h1", hop1), *_exposure_problems("h2", hop2)]
        if avoid_exposing_ood_test_bridges and hop1.ratio > 0 and hop2.ratio == 0:
            fix = "the bridge of every exposed first hop is that of a test, so this would inject nothing: use false"
            problems.append(Problem("avoid_exposing_ood_test_bridges", True, fix))
        return problems

    def queries(self) -> TwoHopQueries:
        """The training table, injected compositions last, and the evaluation splits by fact rows."""
        natural, (first, second) = super().queries(), self.injected()
        train = Hops(*(torch.cat(rows) for rows in zip(natural.train, first, second, strict=True)))
        trained = {"train_inferred_io": self._probes(second), "train_inferred_oi": self._probes(first)}
        return TwoHopQueries(train, natural.evaluation | trained)

    def injected(self) -> tuple[Hops, Hops]:
        """The injected compositions: those that expose first hops, and those that expose second hops."""
        graph, known, unknown = self.graph, self._facts(ood=False), self._facts(ood=True)
        tested = search(graph, unknown, lambda hops: graph.ood[hops.second])
        exposed1 = self._exposed(tested.first, self.hop1, "hop1")
        exposed2 = torch.zeros_like(graph.ood)
        exposed2[self._exposed(tested.second, self.hop2, "hop2")] = True

        def trainable(hops: Hops) -> Tensor:
            return ~graph.held_out(self.iid, hops)

        first = search(graph, exposed1, lambda hops: ~graph.ood[hops.second] & trainable(hops))
        before_exposed = known if self.hop2.ratio else known[:0]
        second = search(graph, before_exposed, lambda hops: exposed2[hops.second] & trainable(hops))
        return (
            first.take(_at_most(self.hop1.k, first.first, graph.order(first))),
            second.take(_at_most(self.hop2.k, second.second, graph.order(second))),
        )

    def _exposed(self, facts: Tensor, exposure: Exposure, purpose: str) -> Tensor:
        """The sample of the tested `facts` (rows, with repeats) that is exposed: fact rows, ascending."""
        facts, graph = torch.unique(facts), self.graph
        hashes = keyed_hash(purpose, graph.seed, graph.head(facts), graph.relation(facts)) & POSITIVE
        return facts[keyed_sample(round(exposure.ratio * len(facts)), hashes).sort().values]

    def _mixed_tests(self, graph: KnowledgeGraph, hops: Hops) -> Tensor:
        """Only the held-out share, which is the same in all regimes."""
        return graph.held_out(self.iid, hops)


_UNCHECKED = ("encoding", "graph_seed", "seed", "order_seed")  # arguments that TwoHopComposition.check does not take


def _without_lazy(problem: Problem) -> Problem:
    if problem.key != "lazy":
        return problem
    return Problem(
        "lazy", problem.value, f"{problem.fix.split(':')[0]}: use a smaller graph, as this data has no lazy mode"
    )


def _exposure_problems(hop: str, exposure: Exposure) -> list[Problem]:
    ratio, k = exposure
    problems = []
    if not 0 <= ratio <= 1:
        problems.append(Problem(f"{hop}ratio", ratio, "give a share between 0 and 1"))
    if k < 0:
        problems.append(Problem(f"{hop}k", k, "give a number of compositions, 0 or more"))
    if not problems and (ratio > 0) != (k > 0):
        key, value = (f"{hop}k", k) if ratio else (f"{hop}ratio", ratio)
        problems.append(Problem(key, value, f"give both {hop}ratio and {hop}k (or k) above 0, or neither"))
    return problems
