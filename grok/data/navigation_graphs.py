"""Directed acyclic graphs to be navigated: how they are drawn, how far it is, and which way a walk goes on.

Shape legend: V node, N walk, L step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from grok.data.keyed import keyed_share
from grok.errors import Problem, insist

__all__ = ["DEAD_END", "NavigationGraph", "Sampling", "bernoulli_graph", "binary_tree", "hierarchical_graph"]

DEAD_END = -1
"""The goal of a walk that goes on until a node has no successor."""

Sampling = Literal["all_simple", "random_walk", "shortest"]
ATTEMPTS = 300
FEWEST_ENDS = 3  # sources, and sinks, of a random graph


@dataclass(frozen=True)
class NavigationGraph:
    """A directed graph whose edges all lead from a lower node to a higher one, so that every walk ends.

    Args:
        adjacency: `[V, V]` bool, above the diagonal only: whether an edge leads from row to column.
        layer: `[V]` layer of each node, in a graph whose edges all lead to the next layer; None for others.
    """

    adjacency: Tensor
    layer: Tensor | None = None

    def __len__(self) -> int:
        return len(self.adjacency)

    @cached_property
    def distance(self) -> Tensor:
        """Edges of the shortest path, `[V, V]` from row to column: 0 to itself, -1 without a path."""
        return self._lengths[0]

    @cached_property
    def longest(self) -> Tensor:
        """Edges of the longest path, `[V, V]`, likewise."""
        return self._lengths[1]

    @cached_property
    def _lengths(self) -> tuple[Tensor, Tensor]:
        ends = torch.eye(len(self), dtype=torch.float64)  # whether a path of this many edges ends there
        shortest = torch.full(ends.shape, -1)
        longest = shortest.clone()
        length = 0
        while (found := ends > 0).any():
            shortest[found & (shortest < 0)] = length
            longest[found] = length
            ends = (ends @ self.adjacency.double()).clamp(max=1)
            length += 1
        return shortest, longest

    @cached_property
    def paths(self) -> Tensor:
        """Number of paths, `[V, V]` float64; one from a node to itself."""
        counts = torch.eye(len(self), dtype=torch.float64)
        for node in reversed(range(len(self))):  # successors come first
            counts[node] += self.adjacency[node].double() @ counts
        return counts

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Connected and unconnected pairs of nodes (start, goal) that can be asked for, `[N, 2]` each.

        Connected are those with a path of two edges or more; unconnected pairs have their start before their goal, by
        two layers or more where there are layers, so that the order of the nodes does not give them away.
        """
        node = torch.arange(len(self))
        before = node[:, None] < node if self.layer is None else self.layer[:, None] + 2 <= self.layer
        return (self.longest >= 2).nonzero(), (before & (self.distance < 0)).nonzero()

    def gap(self, start: Tensor, goal: Tensor) -> Tensor:
        """Layers between nodes `[N]` each, or the edges of the shortest path where there are no layers."""
        return self.distance[start, goal] if self.layer is None else self.layer[goal] - self.layer[start]

    def on_paths(self, pairs: Tensor) -> Tensor:
        """`[V, V]` bool, which edges are on a path between `pairs` `[N, 2]`."""
        reaches, asked = (self.distance >= 0).double(), torch.zeros(self.adjacency.shape, dtype=torch.float64)
        asked[pairs[:, 0], pairs[:, 1]] = 1
        return self.adjacency & (reaches.T @ asked @ reaches.T > 0)

    def odds(self, node: Tensor, goal: Tensor, sampling: Sampling) -> Tensor:
        """In which proportion a walk at `node` `[N]` to `goal` `[N]` goes on to each node: `[N, V]`, 0 at its end.

        All paths to the goal are equally likely (`all_simple`), or all successors from which it can be reached
        (`random_walk`), or all shortest paths. To `DEAD_END` all successors are equally likely.
        """
        successors = self.adjacency[node].double()
        if sampling == "random_walk":
            weights = (self.distance >= 0).double()[:, goal].T
        else:
            weights = (self.paths if sampling == "all_simple" else self._shortest_paths)[:, goal].T
        if sampling == "shortest":
            weights = weights * (self.distance[node, goal][:, None] - 1 == self.distance[:, goal].T)
        return successors * torch.where(goal[:, None] == DEAD_END, 1.0, weights)

    @cached_property
    def _shortest_paths(self) -> Tensor:
        """Number of shortest paths, `[V, V]` float64."""
        counts = torch.eye(len(self), dtype=torch.float64)
        for node in reversed(range(len(self))):
            nearer = self.distance == self.distance[node] - 1  # [successor, goal]
            counts[node] += self.adjacency[node].double() @ (counts * (nearer & (self.distance >= 0)))
        return counts

    def walks(self, start: Tensor, goal: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
        """The nodes after `start` of one walk to each `goal` (or `DEAD_END`): `[N, L]`, -1 after its end.

        Args:
            start: `[N]` nodes.
            goal: `[N]` nodes that can be reached from `start`, or `DEAD_END`.
            sampling: see `odds`.
            draws: `[N, L]` uniform on [0, 1), one for each step; as many as the longest walk has.
        """
        node, walk, rows = start.clone(), torch.full(draws.shape, -1), torch.arange(len(start))
        for step in range(draws.shape[1]):
            below = self.odds(node[rows], goal[rows], sampling).cumsum(1)
            going = below[:, -1] > 0
            rows, below = rows[going], below[going]
            if not len(rows):
                break
            node[rows] = (below <= draws[rows, step : step + 1] * below[:, -1:]).sum(1)
            walk[rows, step] = node[rows]
        return walk


def bernoulli_graph(nodes: int, edge_prob: float, seed: int) -> NavigationGraph:
    """Every edge from a lower to a higher node by itself, again until the graph hangs together and has 3 sources and
    3 sinks.

    Raises:
        BadInput: if no such graph is found.
    """
    node = torch.arange(nodes)
    for attempt in range(ATTEMPTS):
        adjacency = keyed_share(edge_prob, "edge", seed, attempt, node[:, None], node).triu(1)
        enough = min(int((~adjacency.any(ends)).sum()) for ends in (0, 1)) >= FEWEST_ENDS
        if enough and _connected(adjacency):
            return NavigationGraph(adjacency)
    insist([Problem("edge_prob", edge_prob, f"no graph of {nodes} nodes that hangs together and has 3 sources and 3 "
                    f"sinks in {ATTEMPTS:,} draws: use another share, about {5 / nodes:.2g}")])  # fmt: skip
    raise AssertionError


def _connected(adjacency: Tensor) -> bool:
    """Whether every node is linked to every other one, whichever way edges point."""
    linked = adjacency | adjacency.T
    reached = linked[0]
    while not torch.equal(further := reached | linked[reached].any(0), reached):
        reached = further
    return bool(reached.all())


def hierarchical_graph(layers: int, width: int, edge_prob: float, seed: int) -> NavigationGraph:
    """`layers` layers of `width` nodes; every edge between neighbouring layers by itself."""
    node = torch.arange(layers * width)
    layer = torch.div(node, width, rounding_mode="floor")
    drawn = keyed_share(edge_prob, "edge", seed, node[:, None], node)
    return NavigationGraph(drawn & (layer[:, None] + 1 == layer), layer)


def binary_tree(nodes: int) -> NavigationGraph:
    """Edges from each node i to its children 2i + 1 and 2i + 2; the layer of a node is its depth."""
    node = torch.arange(nodes)
    return NavigationGraph((node - 1).div(2, rounding_mode="floor") == node[:, None], (node + 1).log2().floor().long())
