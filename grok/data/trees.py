"""Random rooted trees with distinct labels and a goal, many at once, and the ways between root and goal.

Shape legend: N tree, M node, A step, D the most hops from the root.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "DOWN", "NONE", "UP", "Trees", "columns_of", "irregular_trees", "most_nodes", "next_query", "perfect_trees", "walk",
]  # fmt: skip

UP, DOWN, NONE = 0, 1, -1
"""Stages of a way, from the goal up to the root and back down, and no stage, or no node."""


@dataclass(frozen=True)
class Trees:
    """Trees with a goal, which is drawn uniformly among the leaves. Nodes are known by their labels.

    Args:
        edges: `[N, M - 1, 2]` labels of the parent and the child of each edge, in random order; those that a tree does
            not have come last and are -1.
        path: `[N, D + 1]` labels from the goal up to the root; -1 beyond.
        branching: `[N]` the most children of a node on the path.
    """

    edges: Tensor
    path: Tensor
    branching: Tensor

    @property
    def size(self) -> Tensor:
        """`[N]` number of edges."""
        return (self.edges[..., 1] >= 0).sum(1)

    @property
    def depth(self) -> Tensor:
        """`[N]` hops from the goal to the root, 1 or more."""
        return (self.path >= 0).sum(1) - 1


def most_nodes(depth: int, children: int) -> int:
    """Nodes of a tree of `depth` hops whose inner nodes all have that many `children`."""
    return int(sum(children**level for level in range(depth + 1)))


def perfect_trees(count: int, depth: int, labels: int, generator: torch.Generator) -> Trees:
    """`count` perfect binary trees of `depth` hops, whose labels are drawn from `labels` symbols without repetition."""
    nodes = most_nodes(depth, 2)
    parent = torch.div(torch.arange(nodes) - 1, 2, rounding_mode="floor")
    return _labelled(parent.expand(count, -1), torch.full((count,), nodes), depth, labels, generator)


def irregular_trees(count: int, depth: int, children: int, labels: int, generator: torch.Generator) -> Trees:
    """`count` trees of at most `depth` hops with 0 to `children` children per node.

    The number of nodes is uniform between 2 and `labels` (or as many as fit); each new node becomes a child of any
    node that may have one more, with the same probability.
    """
    most = min(labels, most_nodes(depth, children))
    size = torch.randint(2, most + 1, (count,), generator=generator)
    parent = torch.full((count, most), -1)
    level, has = torch.zeros(count, most, dtype=torch.long), torch.zeros(count, most, dtype=torch.long)
    for node in range(1, most):
        free = (has[:, :node] < children) & (level[:, :node] < depth)
        under = torch.rand(count, node, generator=generator).masked_fill_(~free, -1).argmax(1, keepdim=True)
        parent[:, node] = under[:, 0]
        level[:, node] = level.gather(1, under)[:, 0] + 1
        has.scatter_add_(1, under, torch.ones_like(under))
    return _labelled(parent, size, depth, labels, generator)


def _labelled(parent: Tensor, size: Tensor, depth: int, labels: int, generator: torch.Generator) -> Trees:
    """Trees from the `parent` `[N, M]` of each node, of which the first `size` `[N]` exist, the root first."""
    count, nodes = parent.shape
    exists = torch.arange(nodes) < size[:, None]
    above = parent.clamp(min=0)
    has = torch.zeros(count, nodes, dtype=torch.long).scatter_add_(1, above[:, 1:], exists[:, 1:].long())
    leaf = exists & (has == 0)
    node = torch.rand(count, nodes, generator=generator).masked_fill_(~leaf, -1).argmax(1, keepdim=True)
    nodes_up = [node]
    for _ in range(depth):
        node = torch.where(node > 0, above.gather(1, node.clamp(min=0)), -1)
        nodes_up.append(node)
    up = torch.cat(nodes_up, 1)  # [N, D + 1], -1 beyond the root
    label = torch.rand(count, labels, generator=generator).argsort(1)[:, :nodes]
    edges = torch.stack([label.gather(1, above), label], 2).masked_fill(~exists[..., None], -1)[:, 1:]
    order = torch.rand(count, nodes - 1, generator=generator).masked_fill_(~exists[:, 1:], 2).argsort(1)
    return Trees(
        edges=edges.gather(1, order[..., None].expand_as(edges)),
        path=torch.where(up >= 0, label.gather(1, up.clamp(min=0)), -1),
        branching=torch.where(up >= 0, has.gather(1, up.clamp(min=0)), 0).amax(1),
    )


def columns_of(*parts: Tensor | int) -> Tensor:
    """Labels of parent and child, and the stage, side by side: `[…, 3]`; `NONE` where there is none."""
    together = torch.broadcast_tensors(*map(torch.as_tensor, parts))  # type: ignore[no-untyped-call]
    return torch.stack(together, -1)


def next_query(written: Tensor) -> Tensor:
    """What is asked after a written column, `[…, 3]` both: its parent, as child, going up; its child, as parent, going
    down."""
    parent, child, stage = written.unbind(-1)
    up = stage == UP
    return columns_of(torch.where(up, NONE, child), torch.where(up, parent, NONE), stage)


def walk(trees: Trees, back: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The way from goal to root, as columns asked and columns written, `[N, A, 3]` each, and which exist, `[N, A]`.

    With `back` the root is asked once more, without a parent but with the stage `DOWN` as the answer, and then it goes
    back down to the goal: A = 2 D + 1 instead of D. Columns that do not exist are `NONE`.
    """
    depth, path = trees.depth[:, None], pad(trees.path, (0, 1), value=NONE)
    most = trees.path.shape[1] - 1
    step = torch.arange(2 * most + 1 if back else most).expand(len(path), -1)
    exists = step < (2 * depth + 1 if back else depth)
    below = torch.where(step <= depth, step, 2 * depth - step).clamp(min=0)
    stage = torch.where(step < depth, UP, DOWN)
    written = columns_of(path.gather(1, below + 1), path.gather(1, below), stage)
    asked = torch.cat([columns_of(NONE, path[:, :1], UP), next_query(written[:, :-1])], 1)
    none = ~exists[..., None]
    return asked.masked_fill(none, NONE), written.masked_fill(none, NONE), exists
