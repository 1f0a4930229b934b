"""The two-hop configurations of Ye et al. 2025, "How do Transformers Learn Implicit Reasoning?" (arXiv 2505.23653).

The graph and queries of `TwoHopComposition`; what is varied is which facts are trained as atomic facts, and which may
be second hops. Their names of the splits (first letter: first hop) and ours:

    ID Triples    id_atomic                    Test-II    test_inferred_iid
    OOD Triples   ood_atomic                   Test-IO    test_inferred_io
    Train-II      train_inferred               Test-OI    test_inferred_oi
    Test-II-SR    test_inferred_restricted     Test-OO    test_inferred_ood
    Held-out and Retained ID Triples           held_out_atomic and retained_atomic

Their configurations are the defaults (base) with:

    second_hop_restricted   restricted: 0.05, iid: 0.005
    without_id              atomic: ood
    held_out_id             held_out: 0.05
    train_ii_only           atomic: none
    ID/OOD 0.8/0.2, …       ood: 0.2, …

Shape legend: N query.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from grok.data.composition import OF_POOL, TwoHopComposition, TwoHopQueries
from grok.data.keyed import POSITIVE, keyed_hash
from grok.data.knowledge_graph import Hops, keyed_sample
from grok.data.lazy import search
from grok.data.pool import insist_on_pool
from grok.errors import Problem, insist
from grok.phases import Phase

__all__ = ["PHASES", "ImplicitReasoning"]

Atomic = Literal["all", "ood", "none"]

PHASES = (
    Phase("memorisation", "train_inferred"),
    Phase("in-distribution generalisation", "test_inferred_iid"),
    Phase("cross-distribution reasoning", "test_inferred_oi", 0.5),
)
"""The three phases of Ye et al. 2025, section 4: training is memorised, then Test-II rises, then Test-OI.

The first two end at the monitor's threshold. The third ends where half of Test-OI is answered: far above what a
look-up gives (`baseline/shortcut`), and early enough to be passed by runs in which Test-OI levels off below the
threshold, as it does in small ones."""


class ImplicitReasoning(TwoHopComposition):
    """`TwoHopComposition` with the mixed tests and training variants of Ye et al. 2025.

    Variants of one graph seed share the graph and, where `iid` is the same, the held-out queries (those of `restricted`
    aside); their training compositions are taken in the same random order from what the variant allows.

    Args:
        phi: inferred facts in training per *ID atomic fact of the graph*, whichever of those are trained.
        iid: share of the ID-ID compositions that are held out as `test_inferred_iid`.
        atomic: facts that are trained as atomic facts: `all`, only the `ood` ones, or `none`.
        held_out: share of the ID facts that are not trained as atomic facts, but in compositions as all others. They
            are `held_out_atomic`, the other ID facts `retained_atomic`; `id_atomic` are both.
        restricted: share of the ID facts that are no second hop in any training composition. The compositions that
            have them there are `test_inferred_restricted`, and, as published, no OOD compositions are tested.
        as_released: take the whole pool of compositions and ignore `phi`, as the released code does: it passes the
            float `phi · facts`, which is read as a share and cut to 1, so that a phi of 7.2 is 18.06.
        composition: see `TwoHopComposition`; there is no lazy mode.
    """

    phases: tuple[Phase, ...] = PHASES
    # Test-OI next to Test-II: of those with OOD facts it is the one that the third phase is about.
    held_out_splits = tuple(f"test_inferred_{hops}" for hops in ("iid", "oi", "io", "ood"))

    def __init__(
        self,
        phi: float = 7.2,
        iid: float = 0.05,
        atomic: Atomic = "all",
        held_out: float = 0.0,
        restricted: float = 0.0,
        as_released: bool = False,
        **composition: Any,
    ) -> None:
        insist(
            ImplicitReasoning.check(
                phi=phi, iid=iid, atomic=atomic, held_out=held_out, restricted=restricted, **composition
            )
        )
        super().__init__(phi=phi, iid=iid, **composition)
        self.atomic, self.held_out, self.restricted, self.as_released = atomic, held_out, restricted, as_released
        if restricted:
            self.held_out_splits = ("test_inferred_iid", "test_inferred_restricted")
            self.phases = PHASES[:2]

    @staticmethod
    def check(
        *, atomic: str = "all", held_out: float = 0.0, restricted: float = 0.0, lazy: bool = False, **composition: Any
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        unchecked = ("as_released", "encoding", "graph_seed", "seed", "order_seed")
        checked = {name: value for name, value in composition.items() if name not in unchecked}
        usual = TwoHopComposition.check(**checked)
        problems = [problem for problem in usual if problem.key != "lazy"]
        if lazy or len(problems) < len(usual):
            problems.append(Problem("lazy", lazy, "this regime has no lazy mode: use lazy=false and a smaller graph"))
        if atomic not in get_args(Atomic):
            problems.append(Problem("atomic", atomic, f"use {', '.join(get_args(Atomic))}"))
        shares = {"held_out": held_out, "restricted": restricted}
        problems += [
            Problem(key, share, "give a share of the ID facts, 0 or more and below 1 (published: 0.05)")
            for key, share in shares.items()
            if not 0 <= share < 1
        ]
        if held_out and atomic in ("ood", "none"):
            fix = f"atomic={atomic} trains no ID fact as an atomic one, so none can be held out: use 0"
            problems.append(Problem("held_out", held_out, fix))
        return problems

    @property
    def effective_phi(self) -> float:
        """Inferred facts in training per ID atomic fact of the graph, counted."""
        inferred = (self.generated.train.rows or 0) - len(self.trained_facts())
        return inferred / int((~self.graph.ood).sum())

    def sizes(self) -> dict[str, float]:
        """See `RegimeDataModule.sizes`."""
        return {"effective_phi": self.effective_phi}

    def trained_facts(self) -> Tensor:
        """Rows of the facts that are trained as atomic facts, ID before OOD: `[N]`."""
        known = self._facts(ood=False)
        known = known[~self.chosen("held", self.held_out)[known]]
        parts = {"all": [known, self._facts(ood=True)], "ood": [self._facts(ood=True)], "none": [known[:0]]}
        return torch.cat(parts[self.atomic])

    def chosen(self, purpose: str, share: float) -> Tensor:
        """Which facts are in a random `share` (exactly, rounded) of the ID facts, drawn for a purpose: bool `[fact]`.

        `held` for `held_out`, `restrict` for `restricted`; a smaller share is part of a larger one.
        """
        graph, known = self.graph, self._facts(ood=False)
        hashes = keyed_hash(purpose, graph.seed, graph.head(known), graph.relation(known)) & POSITIVE
        flags = torch.zeros_like(graph.ood)
        flags[known[keyed_sample(round(share * len(known)), hashes)]] = True
        return flags

    def queries(self) -> TwoHopQueries:
        """The training table and the evaluation splits by fact rows."""
        graph, known, restricted = self.graph, self._facts(ood=False), self.chosen("restrict", self.restricted)

        def trainable(hops: Hops) -> Tensor:
            return graph.in_distribution(hops) & ~restricted[hops.second] & ~graph.held_out(self.iid, hops)

        pool = search(graph, known, trainable)
        size = len(pool.first) if self.as_released else round(self.phi * len(known))
        insist_on_pool(self.phi, self.ood, size, len(pool.first), len(known), OF_POOL)
        sample = pool.take(keyed_sample(size, graph.order(pool)))
        atomic = graph.atomic(self.trained_facts())
        train = Hops(torch.cat([atomic.first, sample.first]), torch.cat([atomic.second, sample.second]))
        return TwoHopQueries(train, self._evaluation(self._probes(sample)))

    def _evaluation(self, train_inferred: Hops) -> dict[str, Hops]:
        """The evaluation splits by fact rows: those of the parent, and those of the variant."""
        graph, known, splits = self.graph, self._facts(ood=False), super()._evaluation(train_inferred)
        if self.held_out:
            held = self.chosen("held", self.held_out)[known]
            splits["held_out_atomic"] = self._probes(graph.atomic(known[held]))
            splits["retained_atomic"] = self._probes(graph.atomic(known[~held]))
        if self.restricted:
            restricted = self.chosen("restrict", self.restricted)

            def free(hops: Hops) -> Tensor:
                return graph.in_distribution(hops) & ~restricted[hops.second] & graph.held_out(self.iid, hops)

            for name in ("io", "oi", "ood"):
                del splits[f"test_inferred_{name}"]
            splits["test_inferred_iid"] = self._search("test_inferred_iid", known, free)
            splits["test_inferred_restricted"] = self._search(
                "test_inferred_restricted", known, lambda hops: restricted[hops.second]
            )
        return splits
