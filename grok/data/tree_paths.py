"""Path finding in trees (Yang et al. 2025, arXiv 2508.08222): from a goal up to the root, and from there back down.

A tree is a set of columns, one per edge: a parent stacked on a child. Perfect binary trees with random labels are
trained; random irregular ones are the test.

Shape legend: N query, T column, F feature, A slot (a step of the path), D the most hops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.keyed import keyed_generator
from grok.data.split import Split, nearest
from grok.data.stream import FreshStream
from grok.data.trees import (
    DOWN,
    NONE,
    UP,
    Trees,
    columns_of,
    irregular_trees,
    most_nodes,
    next_query,
    perfect_trees,
    walk,
)  # fmt: skip
from grok.errors import Problem, insist
from grok.task import Field, Task

__all__ = ["TreePaths"]

DEEPEST, MOST_LABELS = 7, 255  # 255 nodes: half a gigabyte of test trees


class TreePaths(RegimeDataModule):
    """`backward`: from the goal to the root. `forward`: the same, and then from the root back down to the goal.

    A column is a parent, a child and, forward, a stage (up or down), each one-hot or, if there is none, zero. Those of
    the edges, without a stage, come first, in random order; forward, before them, that of the root (as child, stage
    down). Then each step has two: the *query*, with the current node as child when going up and as parent when going
    down; and the *written* column, which is the answer: the edge passed and its stage. Forward the root is asked once
    more, and its own column is the answer: the model itself turns from up to down. This layout is ours.

    `truth` holds `depth` `[N]`, hops between goal and root, and `branching` `[N]`, see `Trees`.

    Args:
        direction: `backward` or `forward`.
        depth: m, hops of the perfect binary trees in training (published: 4 backward, 3 forward).
        labels: S, symbols that label the nodes, each once (published: 31 backward, 25 forward).
        test_depth: most hops of an irregular tree.
        test_children: most children of a node of an irregular tree (published: 3).
        test_size: trees of each evaluation split, `irregular` and `perfect` (published: 1,024).
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    held_out_splits = ("irregular",)

    def __init__(
        self,
        direction: Literal["backward", "forward"] = "backward",
        depth: int = 4,
        labels: int = 31,
        test_depth: int = 8,
        test_children: int = 3,
        test_size: int = 1024,
        batch: int = 256,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        insist(self.check(direction, depth, labels, test_depth, test_children, test_size, batch, evaluation_batch))
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.direction, self.forward, self.depth, self.labels = direction, direction == "forward", depth, labels
        self.test_depth, self.test_children, self.test_size = test_depth, test_children, test_size
        with_none = torch.cat([torch.eye(labels), torch.zeros(1, labels)])  # row -1: no node
        self.codes = (with_none, with_none, torch.eye(2))[: 2 + self.forward]
        self.width = 2 * labels + 2 * self.forward

    @staticmethod
    def check(
        direction: str = "backward",
        depth: int = 4,
        labels: int = 31,
        test_depth: int = 8,
        test_children: int = 3,
        test_size: int = 1024,
        batch: int = 256,
        evaluation_batch: int = 4096,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        sizes = (("test_children", test_children), ("test_size", test_size))
        problems = [Problem(key, value, "use 1 or more") for key, value in sizes if value < 1]
        if direction not in ("backward", "forward"):
            problems.append(Problem("direction", direction, "use backward or forward"))
        if not 1 <= depth <= DEEPEST:
            problems.append(Problem("depth", depth, f"use 1 to {DEEPEST} (published: 3 and 4)"))
        elif not (nodes := most_nodes(depth, 2)) <= labels <= MOST_LABELS:
            fix = f"use {nodes}, the nodes of a perfect tree of depth={depth}, to {MOST_LABELS:,}"
            problems.append(Problem("labels", labels, fix))
        if not 1 <= test_depth < labels:
            problems.append(Problem("test_depth", test_depth, f"use 1 or more, and fewer than labels={labels}"))
        return problems + RegimeDataModule.check_common(batch=batch, evaluation_batch=evaluation_batch)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`; head 0 writes nodes and head 1 the stage."""
        fields = [Field("parent", self.labels, matched=self.forward), Field("child", self.labels)]
        fields += [Field("stage", 2, head=1)] if self.forward else []
        positions = self.labels + self.forward + 2 * (self.steps(max(self.depth, self.test_depth)) - 1)
        return Task(positions, outputs=self.width, features=self.width, fields=tuple(fields), answers_shown=True)

    def steps(self, depth: int) -> int:
        """Steps of a path between a goal and a root that are `depth` hops apart."""
        return 2 * depth + 1 if self.forward else depth

    def vectors(self, columns: Tensor) -> Tensor:
        """Columns `[…, F]` from labels of parent and child, and the stage, `[…, 3]`; -1 for none."""
        symbols = columns[..., : len(self.codes)]
        place = symbols.clamp(min=0) + self.labels * torch.arange(len(self.codes))
        return torch.zeros(*symbols.shape[:-1], self.width).scatter_(-1, place, (symbols >= 0).float())

    def symbols(self, columns: Tensor) -> Tensor:
        """Labels and stage `[…, 3]` nearest to columns `[…, F]`, on the CPU; without stages all steps go up."""
        rows = nearest(columns.cpu(), self.codes)  # the last of a node's codes is none
        return pad(rows.masked_fill(rows == self.labels, NONE), (0, 3 - len(self.codes)), value=UP)

    def following(self, outputs: Tensor) -> Tensor:
        """What stands after an answer `[B, F]`: the column written and the next query, `[B, 2, F]`."""
        written = self.symbols(outputs)
        return self.vectors(torch.stack([written, next_query(written)], 1)).to(outputs)

    def encode(self, trees: Trees) -> Split:
        """Columns, slots and truth of `trees`."""
        queries, answers, mask = walk(trees, self.forward)
        tree = pad(trees.edges, (0, 1), value=NONE)
        if self.forward:
            tree = torch.cat([columns_of(NONE, trees.path.gather(1, trees.depth[:, None]), DOWN), tree], 1)
        written = answers.masked_fill(~pad(mask[:, 1:], (0, 1))[..., None], NONE)  # the last answer is not needed
        steps = torch.stack([queries, written], 2).flatten(1, 2)[:, :-1]
        start, step = trees.size[:, None] + self.forward, torch.arange(steps.shape[1])
        place = (start + step)[..., None].expand_as(steps)
        columns = pad(tree, (0, 0, 0, len(step)), value=NONE).scatter(1, place, steps)
        return Split(
            inputs=self.vectors(columns),
            at=torch.where(mask, start + step[::2], start),
            targets=self.vectors(answers),
            mask=mask,
            positions=tuple(f"column{i}" for i in range(columns.shape[1])),
            truth={"depth": trees.depth, "branching": trees.branching},
            codes=self.codes,
        )

    def groups(self, split: Split) -> dict[str, Tensor]:
        """See `RegimeDataModule.groups`: the columns that a step may look at, by what they are to it.

        `up_edge`: going up, the edge whose child is the current node; `root`: at the root, its column; `down_written`:
        going down, what was written going up with the current node as parent; `up_stage` (not at the root) and
        `down_stage`: columns of the steps, or the root, in the query's stage, itself among them.
        """
        parent, child, stage = self.symbols(split.inputs)[:, None].unbind(-1)  # [N, 1, T]
        at, place = split.at.cpu()[..., None], torch.arange(split.inputs.shape[1])
        asked = [part.expand(-1, at.shape[1], -1).gather(2, at) for part in (parent, child, stage)]  # [N, A, 1]
        node, up = torch.maximum(asked[0], asked[1]), asked[2] == UP
        shown, seen = place < at[:, :1], place <= at
        here = shown & up & (child == node)
        groups = {
            "up_edge": here & (parent != NONE),
            "up_stage": ~shown & seen & up & (stage == UP) & ~(here & (parent == NONE)).any(-1, keepdim=True),
            "root": here & (parent == NONE),
            "down_written": ~shown & seen & ~up & (parent == node) & (stage == UP),
            "down_stage": seen & ~up & (stage == DOWN),
        }
        return {name: members for name, members in groups.items() if members.any()}  # backward has the first two

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""

        def make(trees: Callable[..., Trees], *sizes: int, key: tuple[int | str, ...]) -> Split:
            return self.encode(trees(*sizes, self.labels, keyed_generator("trees", *key)))

        def train(step: int) -> Split:
            return make(perfect_trees, self.batch, self.depth, key=("train", self.order_seed, step)).without_truth()

        sizes = self.test_size, self.test_depth, self.test_children
        splits = {
            "irregular": make(irregular_trees, *sizes, key=("irregular", self.seed)),
            "perfect": make(perfect_trees, self.test_size, self.depth, key=("perfect", self.seed)),
        }
        return Generated(FreshStream(train, self.batch), splits)
