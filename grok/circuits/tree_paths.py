"""Path finding in trees: paths found without help, what queries and keys compare, and what each head is needed for.

Shape legend: N query, A slot (a step of the path), V output, H head, F feature of a column.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grok.circuits.attention import key_query_products, zeroing
from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.circuits.measures import measures
from grok.data.split import Split, nearest
from grok.data.tree_paths import TreePaths
from grok.models import StepModel
from grok.models.steps import Tap, keeping

__all__ = ["key_query", "rollouts", "without_heads"]


@measures.register
def _(data: TreePaths, model: StepModel, name: str, split: Split, batch: int = 1024) -> Sequence[Grid]:
    """Exact paths by rollout (all, by depth, by branching), entries of key-query matrices, answers without heads."""
    grids = [*key_query(data, model), *without_heads(data, model, split, batch)]
    if model.causal:
        exact = rollouts(data, model, split, batch)
        grids.append(Grid.of("path", {"path": ("exact",)}, exact[:, None]))
        grids += [Grid.by_number(f"path_by_{key}", key, exact, split.truth[key]) for key in ("depth", "branching")]
    return grids


def rollouts(data: TreePaths, model: StepModel, split: Split, batch: int) -> Tensor:
    """Whether every step of each path is right, nodes and stages, when each answer is written down as it is: `[N]`.

    Only the tree and the goal are given, and how many steps there are.
    """
    exact = []
    with analysing(model) as device:
        for piece in split.chunks(batch):
            here = piece.to(device)
            outputs = model.rollout(here.inputs, here.at[:, 0], here.at.shape[1], lambda one, _: data.following(one))
            exact.append((_right(data, outputs.cpu(), piece).all(-1) | ~piece.mask.cpu()).all(1))
    return torch.cat(exact).float()


def key_query(data: TreePaths, model: StepModel) -> list[Grid]:
    """Products of queries and keys of the first step: mean entries on and off the diagonal of each node block, a value
    for each label, and every entry of the stage block.

    Of a consolidated layer these are the entries of its matrices; else W_Q^T W_K between columns that hold one node or
    stage each, with everything the model does to a column before. Empty if the step has no queries and keys.
    """
    products = key_query_products(model, torch.eye(data.width)[:, None])  # one column a query
    if products is None:
        return []
    heads = tuple(f"head{head}" for head in range(len(products)))
    nodes = tuple(field.name for field in data.task.fields if field.matched and field.name != "stage")
    places = [data.task.slices()[name] for name in nodes]
    blocks = torch.stack([products[:, place, place] for place in places], 1)
    equal = blocks.diagonal(dim1=2, dim2=3)
    different = (blocks.sum(3) - equal) / (data.labels - 1)
    values = torch.stack([equal, different], 2).permute(3, 0, 1, 2)  # [label, H, block, 2]
    grids = [Grid.of("key_query", {"head": heads, "field": nodes, "entry": ("diagonal", "off")}, values)]
    if data.forward:
        stage = products[:, -2:, -2:]
        axes = {"head": heads, "query": ("from_up", "from_down"), "key": ("to_up", "to_down")}
        grids.append(Grid.of("key_query_stage", axes, stage[None]))
    return grids


def without_heads(data: TreePaths, model: StepModel, split: Split, batch: int) -> list[Grid]:
    """Share of a query's steps whose nodes, and whose stage, are right with one head zeroed in every loop.

    The true path so far is given.
    """
    names, right = ["none"], [_teacher_forced(data, model, split, batch, None)]
    for head in range(_heads(model, split)):
        names.append(f"head{head}")
        right.append(_teacher_forced(data, model, split, batch, zeroing(head)))
    values = torch.stack(right, 1)  # [N, 1 + H, 2]
    axes = {"right": ("nodes", "stage")[: values.shape[2]], "without": tuple(names)}
    return [Grid.of("without_head", axes, values.mT)]


def _teacher_forced(data: TreePaths, model: StepModel, split: Split, batch: int, tap: Tap | None) -> Tensor:
    """Share of each query's steps with the right nodes and the right stage: `[N, 2]` (`[N, 1]` without stages)."""
    shares = []
    with analysing(model) as device:
        for piece in split.chunks(batch):
            here = piece.to(device)
            right = _right(data, model(here.inputs, at=here.at, tap=tap).cpu(), piece)
            parts = torch.stack([right[..., :2].all(-1), *right[..., 2:].unbind(-1)], -1)
            counted = piece.mask.cpu()[..., None]
            shares.append((parts & counted).sum(1) / counted.sum(1))
    return torch.cat(shares)


def _right(data: TreePaths, outputs: Tensor, split: Split) -> Tensor:
    """`[N, A, parts]` whether the parent, the child and the stage of each answer are right."""
    return nearest(outputs, data.codes) == nearest(split.targets.cpu(), data.codes)


def _heads(model: StepModel, split: Split) -> int:
    kept: dict[str, Tensor] = {}
    with analysing(model) as device:
        model.run(model.embed(split.inputs[:1].to(device)), stop=1, tap=keeping(kept, ["steps.0.attn.hook_z"]))
    return kept["steps.0.attn.hook_z"].shape[2] if kept else 0
