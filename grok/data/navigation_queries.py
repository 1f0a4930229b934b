"""Queries for a way through a graph: prompt, walk, verdict; what of the answer is determined, and where a walk stands.

Shape legend: N query, T position, A slot, L step of a walk, V node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from grok.data.keyed import keyed_generator, keyed_hash, keyed_uniform
from grok.data.navigation_graphs import DEAD_END, NavigationGraph, Sampling
from grok.data.split import Split

__all__ = ["PROMPT", "NavigationQueries", "pairs_by_split"]

PROMPT = 3  # `TARGET goal start`
GOAL = 1


def pairs_by_split(
    graph: NavigationGraph, share: float, max_gap: int | None, seed: int
) -> Mapping[str, tuple[Tensor, ...]]:
    """Connected and unconnected pairs (start, goal), `[N, 2]` each, of every split; see `GraphNavigation`."""
    parts = []
    for pairs in graph.pairs:
        longer = torch.zeros(len(pairs), dtype=torch.bool)
        if max_gap is not None:
            longer = graph.gap(*pairs.T) > max_gap
        near = pairs[~longer]
        near = near[keyed_hash("pair", seed, *near.T).argsort(stable=True)]
        trained = round(share * len(near))
        parts.append((near[:trained], near[trained:], pairs[longer]))
    return dict(zip(("train_pairs", "held_out_pairs", "longer_gaps"), zip(*parts, strict=True), strict=True))


@dataclass(frozen=True)
class NavigationQueries:
    """Writes pairs of a graph as `TARGET goal start`, walk, verdict, `END`; symbols are the nodes and the four others.

    Args:
        graph: the graph.
        sampling: how walks to a goal are drawn.
        stepwise: whether a walk comes before the verdict.
        dead_ends: whether, if there is no path, a random walk to a node without successors comes before the verdict.
    """

    graph: NavigationGraph
    sampling: Sampling
    stepwise: bool
    dead_ends: bool

    @property
    def special(self) -> range:
        """The tokens `TARGET`, `PATH`, `NOPATH`, `END`."""
        return range(len(self.graph), len(self.graph) + 4)

    @cached_property
    def longest(self) -> int:
        """Nodes after the start of the longest walk: L."""
        return int(self.graph.longest.max()) if self.stepwise else 0

    @property
    def slots(self) -> int:
        """Tokens of the longest answer: A."""
        return self.longest + 2

    def draw(self, pools: tuple[Tensor, ...], connected: Tensor, *key: int) -> Split:
        """A random pair of the connected or the unconnected pairs `pools`, `[P, 2]` each, by `connected` `[N]`."""
        first, second = map(len, pools)
        row = keyed_uniform(torch.where(connected, first, second), "pair", *key, torch.arange(len(connected)))
        return self.encode(torch.cat(pools)[torch.where(connected, row, first + row)], connected, *key)

    def encode(self, pairs: Tensor, connected: Tensor, *key: int | str) -> Split:
        """Queries of `pairs` `[N, 2]`, `connected` `[N]` or not, with walks drawn by `key`."""
        start, goal = pairs.T
        draws = torch.rand(len(pairs), self.longest, generator=keyed_generator("walk", *key), dtype=torch.float64)
        walk = self.graph.walks(start, torch.where(connected, goal, DEAD_END), self.sampling, draws)
        if not self.dead_ends:
            walk[~connected] = -1
        target, path, no_path, end = self.special
        answer = torch.nn.functional.pad(walk, (0, 2), value=-1)
        length = (walk >= 0).sum(1, keepdim=True)
        answer.scatter_(1, length, torch.where(connected, path, no_path)[:, None]).scatter_(1, length + 1, end)
        shown = torch.cat([torch.full_like(goal, target)[:, None], goal[:, None], start[:, None], answer[:, :-1]], 1)
        return Split(
            inputs=torch.where(shown < 0, end, shown),
            at=torch.arange(PROMPT - 1, shown.shape[1]).repeat(len(pairs), 1),
            targets=torch.where(answer < 0, end, answer),
            mask=answer >= 0,
            positions=("TARGET", "goal", "start", *(f"n{step + 1}" for step in range(self.longest + 1))),
            truth={"start": start, "goal": goal},
        )

    def only_determined(self, split: Split) -> Split:
        """The same queries; of their walks only those steps are supervised at which one node alone can come next."""
        query, slot = (split.mask & (split.targets < len(self.graph))).nonzero().T
        connected = (split.targets == self.special[1]).any(1)
        aim = torch.where(connected, split.truth["goal"], DEAD_END)[query]
        mask = split.mask.clone()
        node = split.inputs[query, PROMPT - 1 + slot]
        mask[query, slot] = (self.graph.odds(node, aim, self.sampling) > 0).sum(1) == 1
        return replace(split, mask=mask)

    def groups(self, split: Split) -> Mapping[str, Tensor]:
        """Key positions for each slot, `[N, A, T]` bool: the goal, the node where the walk stands, all others seen."""
        place = torch.arange(split.inputs.shape[1], device=split.at.device)
        goal, current = (place == GOAL).expand(*split.at.shape, -1), place == split.at[..., None]
        return {"goal": goal, "current": current, "other": (place <= split.at[..., None]) & ~goal & ~current}
