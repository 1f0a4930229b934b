"""How one layer of attention alone finds the next node (Khona et al. 2024, arXiv 2402.07757, its mechanistic section).

The rule: take the node whose embedding is nearest to (value of the goal) + (value of the node where the walk stands).

Shape legend: N query, A slot of the answer, T position, V node.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.data.graph_navigation import GraphNavigation
from grok.data.split import Split
from grok.models import LoopedTransformer, StepModel

__all__ = ["follows_rule", "next_node_rule"]


def follows_rule(model: StepModel) -> bool:
    """Whether a model is one layer of attention without an MLP, which alone can be asked for the rule."""
    return isinstance(model, LoopedTransformer) and len(model.steps) == 1 and not hasattr(model.blocks[0], "mlp")


def next_node_rule(data: GraphNavigation, model: StepModel, split: Split, batch: int = 1024) -> list[Grid]:
    """Whether the rule chooses as the model does, and how the goal's part of it falls with distance.

    Both choose on the walks that were sampled, among the nodes. A value is what the heads would write if they looked at
    that position alone; it is read out through the final norm and the embedding.

    Args:
        data: the regime that made the split.
        model: one that `follows_rule`.
        split: connected pairs.
        batch: most queries of one forward pass.

    Returns:
        `rule`: shares of steps at which rule and model choose the same node, and at which the choice of either is an
        edge, or an edge to a node from which the goal can be reached. `goal_score`: Spearman correlation between the
        product of an embedding with the value of the goal and the distance to it, over the nodes from which the
        goal can be reached (four or more), the mean over goals; left out if there is no such goal.
    """
    nodes, graph, groups = len(data.graph), data.graph, data.groups(split)
    choices, scores = [], []
    with analysing(model) as device:
        for rows in torch.split(torch.arange(len(split), device=split.inputs.device), batch):
            here = split.take(rows).to(device)
            goal, current = (groups[name][rows].to(device) for name in ("goal", "current"))
            found = torch.stack([_looking(model, here, goal | current), model(here.inputs, here.at)], 2)
            choices.append(found[..., :nodes].argmax(-1).cpu())
            scores.append(_looking(model, here, goal)[:, 0, :nodes].float().cpu())
    choice, aim = torch.cat(choices), split.truth["goal"].cpu()  # [N, A, 2]: of the rule, of the model
    walking = (split.targets < nodes).cpu()
    standing = split.inputs.gather(1, split.at).cpu().where(walking, 0)
    edge = graph.adjacency[standing[..., None], choice]
    leads = edge & (graph.distance[choice, aim[:, None, None]] >= 0)
    shares = torch.cat([choice[..., :1] == choice[..., 1:], edge, leads], 2) & walking[..., None]
    labels = ("agreement", "edge", "model_edge", "leads_to_goal", "model_leads_to_goal")
    rule = Grid.of("rule", {"share": labels}, shares.sum(1) / walking.sum(1, keepdim=True))
    return [rule, *_goal_score(torch.cat(scores), aim, graph.distance)]


def _looking(model: StepModel, split: Split, keys: Tensor) -> Tensor:
    """Read-out `[N, A, V]` of what attention writes if every head looks at all of `keys` `[N, A, T]`, fully at each."""
    written: list[Tensor] = []

    def tap(name: str, value: Tensor) -> Tensor:
        if name.endswith("attn.hook_pattern"):
            return keys[:, None].to(value.dtype).expand_as(value)
        if name.endswith("hook_attn_out"):
            written.append(value)
        return value

    model.run(model.embed(split.inputs, split.position_ids), at=split.at, tap=tap)
    return model.readout({"resid": written[0]})


def _goal_score(scores: Tensor, goal: Tensor, distance: Tensor) -> list[Grid]:
    values = []
    for node in torch.unique(goal).tolist():
        known = distance[:, node] >= 0
        if known.sum() > 3:
            of_goal = scores[goal == node][0]  # the same in every query
            values.append(spearman_corrcoef(of_goal[known], distance[known, node].float()))
    axes = {"correlation": ("distance",)}
    return [Grid.of("goal_score", axes, torch.stack(values)[:, None])] if values else []
