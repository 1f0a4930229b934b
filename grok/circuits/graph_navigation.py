"""Measures of graph navigation (Khona et al. 2024, arXiv 2402.07757): where a model walks, and what it says then.

Shape legend: N query, A slot of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.circuits.measures import measures
from grok.circuits.navigation_rule import follows_rule, next_node_rule
from grok.data.graph_navigation import GraphNavigation
from grok.data.navigation_queries import PROMPT
from grok.data.split import Split
from grok.models import StepModel

__all__ = ["Walks", "walks_of"]

TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
SAMPLED_PAIRS, SAMPLES = 2, 100  # of the sweep over temperatures


@dataclass(frozen=True)
class Walks:
    """What a model answered to `TARGET goal start`, token by token.

    Args:
        nodes: `[N, A]` the walk after the start, -1 after its end.
        exists: `[N, A]` bool, whether the edge to each of these nodes exists.
        verdict: `[N]` the first token that is no node; -1 if none came.
        connected: `[N]` bool, whether a path leads to the goal.
        reached: `[N]` bool, whether all edges of the walk exist and it ends at the goal.
    """

    nodes: Tensor
    exists: Tensor
    verdict: Tensor
    connected: Tensor
    reached: Tensor

    @property
    def misstep(self) -> Tensor:
        """`[N]` bool, whether an edge of the walk does not exist."""
        return ((self.nodes >= 0) & ~self.exists).any(1)


def walks_of(
    data: GraphNavigation, model: StepModel, split: Split, batch: int = 1024, temperature: float = 0.0
) -> Walks:
    """Let the model answer the prompts of `split` by rollout.

    Args:
        data: the regime that made the split.
        model: a causal model.
        split: the queries; only their prompts are shown.
        batch: most queries of one forward pass.
        temperature: see `StepModel.generate`.
    """
    parts = []
    with analysing(model) as device:
        for seed, piece in enumerate(split.chunks(batch)):
            prompt = piece.inputs[:, :PROMPT].to(device)
            length = torch.full((len(prompt),), PROMPT, device=device)
            parts.append(model.generate(prompt, length, data.queries.slots, temperature, seed=seed).cpu())
    tokens, start, goal = torch.cat(parts), split.truth["start"].cpu(), split.truth["goal"].cpu()
    graph, walking = data.graph, (torch.cat(parts) < len(data.graph)).cumprod(1).bool()
    nodes = torch.where(walking, tokens, -1)
    passed = torch.cat([start[:, None], nodes], 1)
    exists = walking & graph.adjacency[passed[:, :-1], nodes]  # where there is no node, `walking` says so
    steps = walking.sum(1, keepdim=True)
    verdict = torch.nn.functional.pad(tokens, (0, 1), value=-1).gather(1, steps)[:, 0]
    ends = passed.gather(1, steps)[:, 0] == goal
    return Walks(nodes, exists, verdict, graph.distance[start, goal] > 0, ends & (exists == walking).all(1))


@measures.register
def _(data: GraphNavigation, model: StepModel, name: str, split: Split, batch: int = 1024) -> Sequence[Grid]:
    """Verdicts; of walks edges that exist, outcomes, lengths and samples; of one layer of attention alone its rule."""
    walks, (_, path, no_path, _) = walks_of(data, model, split, batch), data.queries.special
    right = (walks.verdict == torch.where(walks.connected, path, no_path)).float()
    pairs = torch.stack([torch.ones_like(walks.connected), walks.connected, ~walks.connected], 1)
    gap = data.graph.gap(split.truth["start"].cpu(), split.truth["goal"].cpu())
    grids = [
        Grid.of("verdict", {"pairs": ("all", "connected", "unconnected")}, _only(right[:, None], pairs)),
        Grid.by_number("verdict_by_gap", "gap", right, gap),
    ]
    if not data.queries.stepwise:
        return grids
    kinds = torch.stack([walks.reached, walks.misstep, ~walks.reached & ~walks.misstep], 1).float()
    outcomes = {"outcome": ("reached", "misstep", "planning_failure")}
    grids += [
        Grid.of(
            "edge_accuracy",
            {"pairs": ("all",)},
            walks.exists.sum(1, keepdim=True),
            base=(walks.nodes >= 0).sum(1)[:, None],
        ),
        Grid.of("outcome", outcomes, _only(kinds, walks.connected[:, None])),
        Grid.by_number("reached_by_gap", "gap", _only(walks.reached.float(), walks.connected), gap),
        _lengths(data, walks, split),
        _over_temperatures(data, model, split),
    ]
    if follows_rule(model) and walks.connected.any():
        grids += next_node_rule(data, model, split.take(walks.connected.to(split.inputs.device)), batch)
    return grids


def _only(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values, torch.nan)


def _lengths(data: GraphNavigation, walks: Walks, split: Split) -> Grid:
    """Edges of walks that reached the goal, and, for the same pairs, of walks sampled as in training and shortest."""
    sampled = (split.inputs[:, PROMPT:] < len(data.graph)).sum(1).cpu()
    shortest = data.graph.distance[split.truth["start"].cpu(), split.truth["goal"].cpu()]
    lengths = torch.stack([(walks.nodes >= 0).sum(1), sampled, shortest], 1).float()
    counted = (walks.connected & walks.reached)[:, None]
    return Grid.of("walk_length", {"walk": ("generated", "training", "shortest")}, _only(lengths, counted))


def _over_temperatures(data: GraphNavigation, model: StepModel, split: Split) -> Grid:
    """Of sampled answers to the connected pairs with the most paths: shares that reach the goal, and that are different
    walks which do.
    """
    start, goal = split.truth["start"].cpu(), split.truth["goal"].cpu()
    ways = data.graph.paths[start, goal] * (data.graph.distance[start, goal] > 0)
    most = ways.topk(min(SAMPLED_PAIRS, len(split))).indices
    asked = split.take(most.repeat_interleave(SAMPLES).to(split.inputs.device))
    shares = torch.zeros(len(most), 2, len(TEMPERATURES))
    for column, temperature in enumerate(TEMPERATURES):
        walks = walks_of(data, model, asked, len(asked), temperature)  # what is drawn must not depend on `batch`
        nodes, reached = walks.nodes.view(len(most), SAMPLES, -1), walks.reached.view(-1, SAMPLES)
        for pair in range(len(most)):
            different = torch.unique(nodes[pair, reached[pair]], dim=0)
            shares[pair, :, column] = torch.tensor([reached[pair].sum(), len(different)]) / SAMPLES
    axes = {"samples": ("reached", "unique_valid"), "temperature": tuple(f"{t:g}" for t in TEMPERATURES)}
    return Grid.of("samples_by_temperature", axes, shares)
