"""Graph navigation: stepwise inference as a walk to a goal (Khona et al. 2024, arXiv 2402.07757).

Asked is whether a path leads from a start to a goal of one fixed graph. Answered is with a walk and then the verdict
(stepwise), or with the verdict alone (direct). Pairs of start and goal are held out.

Shape legend: N query, T position, A slot, L step of a walk, V node.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.keyed import keyed_hash
from grok.data.navigation_graphs import NavigationGraph, Sampling, bernoulli_graph, binary_tree, hierarchical_graph
from grok.data.navigation_queries import PROMPT, NavigationQueries, pairs_by_split
from grok.data.split import Split
from grok.data.stream import FreshStream
from grok.errors import BadInput, Problem, insist
from grok.task import Task

__all__ = ["GraphNavigation"]

MOST_NODES = 500
ROWS = 2048  # queries made at once, of one step or more


class GraphNavigation(RegimeDataModule):
    """Queries `TARGET goal start`, answered by `n1 … goal PATH END`, or `NOPATH END` where no path leads there.

    A connected pair has a path with a node in between; of an unconnected one the start comes before the goal (by two
    layers or more where there are layers), so that the order of nodes does not tell. Training batches are endless, half
    connected pairs, each with a walk drawn anew; all tokens of the answer are supervised, the prompt is not.

    As several walks are right, evaluation splits supervise only what is determined on a walk that was drawn: verdict,
    `END`, and the next node where just one is possible. Walks of the model are measured by
    `grok.circuits.graph_navigation`. `truth` holds the nodes `start` and `goal`, `[N]` each.

    Args:
        graph: `bernoulli`, `hierarchical` or `tree` (binary).
        nodes: V of a Bernoulli graph or a tree.
        layers: layers of a hierarchical graph.
        width: nodes of each layer of it.
        edge_prob: probability of an edge; a tree does not use it.
        train_pair_share: share of the connected and of the unconnected pairs in training.
        max_train_gap: most layers between start and goal in training; larger gaps are the split `longer_gaps`.
        protocol: `stepwise`, or `direct`: without the walk.
        nopath: stepwise answer to an unconnected pair: `immediate`ly `NOPATH`, or after a random walk to a `deadend`.
        path_sampling: walks of a connected pair: `all_simple` paths equally likely, `random_walk` (all successors from
            which the goal is reached equally likely), or `shortest`.
        test_size: most queries of an evaluation split, half of them connected.
        graph_seed: fixes the graph and which pairs are held out; None takes it from `seed`.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    memorised_split = "train_pairs"
    held_out_splits = ("held_out_pairs", "longer_gaps")
    remedy = "use a larger graph, or another `edge_prob` or `train_pair_share`"

    def __init__(
        self,
        graph: Literal["bernoulli", "hierarchical", "tree"] = "bernoulli",
        nodes: int = 80,
        layers: int = 8,
        width: int = 10,
        edge_prob: float = 0.05,
        train_pair_share: float = 0.5,
        max_train_gap: int | None = None,
        protocol: Literal["stepwise", "direct"] = "stepwise",
        nopath: Literal["immediate", "deadend"] = "deadend",
        path_sampling: Sampling = "all_simple",
        test_size: int = 400,
        graph_seed: int | None = None,
        batch: int = 64,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        insist(self.check(**{name: value for name, value in locals().items() if name not in ("self", "__class__")}))
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.kind, self.nodes, self.layers, self.width = graph, nodes, layers, width
        self.edge_prob, self.train_pair_share, self.max_train_gap = edge_prob, train_pair_share, max_train_gap
        self.protocol, self.nopath, self.sampling, self.test_size = protocol, nopath, path_sampling, test_size
        self.graph_seed = seed if graph_seed is None else graph_seed
        self._block: tuple[int, Split] | None = None  # the last one made

    @staticmethod
    def check(
        graph: str = "bernoulli",
        nodes: int = 80,
        layers: int = 8,
        width: int = 10,
        edge_prob: float = 0.05,
        train_pair_share: float = 0.5,
        max_train_gap: int | None = None,
        protocol: str = "stepwise",
        nopath: str = "deadend",
        path_sampling: str = "all_simple",
        test_size: int = 400,
        **common: int,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        choices = (
            ("graph", graph, ("bernoulli", "hierarchical", "tree")),
            ("protocol", protocol, ("stepwise", "direct")),
            ("nopath", nopath, ("immediate", "deadend")),
            ("path_sampling", path_sampling, get_args(Sampling)),
        )
        problems = [Problem(key, value, f"use {', '.join(of)}") for key, value, of in choices if value not in of]
        sizes = [("nodes", nodes, 7, MOST_NODES), ("test_size", test_size, 2, MOST_NODES**2)]
        if graph == "hierarchical":
            sizes[:1] = [("layers", layers, 3, MOST_NODES), ("width", width, 1, MOST_NODES // max(layers, 1))]
        for key, size, least, most in sizes:
            if not least <= size <= most:
                problems.append(Problem(key, size, f"use {least:,} to {most:,}"))
        for key, share in (("edge_prob", edge_prob), ("train_pair_share", train_pair_share)):
            if not 0 < share < 1:
                problems.append(Problem(key, share, "give a share above 0 and below 1"))
        if max_train_gap is not None and graph == "bernoulli":
            problems.append(Problem("max_train_gap", max_train_gap, "a bernoulli graph has no layers: use null"))
        elif max_train_gap is not None and max_train_gap < 2:
            problems.append(Problem("max_train_gap", max_train_gap, "use 2 layers or more, or null"))
        return problems + RegimeDataModule.check_common(**common)

    @cached_property
    def graph(self) -> NavigationGraph:
        """The graph, on the CPU."""
        if self.kind == "hierarchical":
            return hierarchical_graph(self.layers, self.width, self.edge_prob, self.graph_seed)
        if self.kind == "tree":
            return binary_tree(self.nodes)
        return bernoulli_graph(self.nodes, self.edge_prob, self.graph_seed)

    @cached_property
    def pairs(self) -> Mapping[str, tuple[Tensor, ...]]:
        """Connected and unconnected pairs (start, goal), `[N, 2]` each, of every split."""
        return pairs_by_split(self.graph, self.train_pair_share, self.max_train_gap, self.graph_seed)

    @cached_property
    def queries(self) -> NavigationQueries:
        """How queries are written."""
        stepwise = self.protocol == "stepwise"
        return NavigationQueries(self.graph, self.sampling, stepwise, stepwise and self.nopath == "deadend")

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        symbols = len(self.graph) + len(self.queries.special)
        return Task(positions=PROMPT - 1 + self.queries.slots, outputs=symbols, tokens=symbols, answers_shown=True)

    def token_name(self, token: int) -> str:
        """See `RegimeDataModule.token_name`."""
        special = token - len(self.graph)
        return f"v{token}" if special < 0 else ("TARGET", "PATH", "NOPATH", "END")[special]

    def floor(self, split: str) -> float | None:
        """See `RegimeDataModule.floor`."""
        return 0.5 if self.protocol == "direct" else None

    def groups(self, split: Split) -> Mapping[str, Tensor]:
        """See `NavigationQueries.groups`."""
        return self.queries.groups(split)

    def sizes(self) -> dict[str, float]:
        """Edges, how many of them can be on a training path, and all connected and unconnected pairs."""
        seen, (connected, unconnected) = self.graph.on_paths(self.pairs["train_pairs"][0]), self.graph.pairs
        edges = {"edges": int(self.graph.adjacency.sum()), "edges_on_training_paths": int(seen.sum())}
        return {**edges, "connected_pairs": len(connected), "unconnected_pairs": len(unconnected)}

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        for kind, pool in zip(("connected", "unconnected"), self.pairs["train_pairs"], strict=True):
            if not len(pool):
                raise BadInput(f"train_pairs: no {kind} pair in this graph; {self.remedy}")
        splits = {name: self._test(pools, name) for name, pools in self.pairs.items()}
        return Generated(FreshStream(self._batch, self.batch), splits)

    def _batch(self, step: int) -> Split:
        """The batch of a step; several are made at once, which takes hardly longer than one."""
        steps = max(1, ROWS // self.batch)
        block, place = divmod(step, steps)
        if self._block is None or self._block[0] != block:
            few = (self.batch + (block * steps + torch.arange(steps)) % 2) // 2  # of an odd batch in turn half ± 1/2
            connected = (torch.arange(self.batch) < few[:, None]).flatten()
            self._block = block, self.queries.draw(self.pairs["train_pairs"], connected, self.order_seed, block)
        return self._block[1].take(slice(place * self.batch, (place + 1) * self.batch))

    def _test(self, pools: tuple[Tensor, ...], name: str) -> Split:
        few = min(self.test_size // 2, *map(len, pools))  # as many of either: a constant answer gets half
        chosen = [pool[keyed_hash("test", self.graph_seed, *pool.T).argsort(stable=True)[:few]] for pool in pools]
        split = self.queries.encode(torch.cat(chosen), torch.arange(2 * few) < few, self.graph_seed, name)
        return self.queries.only_determined(split)
