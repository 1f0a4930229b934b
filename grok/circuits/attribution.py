"""Attribution patching: a first-order estimate of what patching every node would do, beside the exact effect.

Shape legend: N example, n examples of a chunk, T position, H head, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from grok.circuits.ablations import (
    BATCH,
    ablation,
    both_answers,
    noisy,
)
from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.circuits.nodes import (
    Node,
    first_positions,
    hooks,
    insist_on_nodes,
    label,
    nodes_of,
    place,
    positions_shown,
    record,
    run,
)
from grok.circuits.patching import Counterfactual
from grok.circuits.reading import picked
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel

__all__ = ["agreement", "attribution_patching", "exact_patching"]


def attribution_patching(
    model: StepModel,
    split: Split,
    counterfactual: Counterfactual,
    nodes: Sequence[Node] | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Grid:
    """First-order estimate of `exact_patching` for all nodes at once (Nanda 2023; Syed et al. 2023).

    By how much logit(answer) − logit(counterfactual's answer) falls if a node's write is replaced: minus
    (counterfactual − clean) · gradient, from one forward and one backward pass. The weights get no gradient.

    Args:
        model: any step model with token outputs.
        split: N examples.
        counterfactual: the other queries, taken whole.
        nodes: None means all of `nodes_of`.
        seed: selects the random changes that give the floor, as large as the real ones in the hooks' values (of a head
            before its output projection).
        batch: most examples of one pass; bounds memory.

    Raises:
        BadInput: for nodes that do not exist, or answers that are no tokens.
    """
    chosen = nodes_of(model, split) if nodes is None else list(nodes)
    insist_on_nodes(model, split, chosen)
    names = sorted({name for node in chosen for name in hooks(model, node)})
    tokens, shown = both_answers(split, counterfactual), positions_shown(model, split)
    known = (counterfactual.exists & (counterfactual.answer >= 0)).cpu()
    values: list[Tensor] = []
    floor: list[Tensor] = []
    with analysing(model) as device:
        for start in range(0, len(split), batch):
            rows = slice(start, start + batch)
            piece = first_positions(split.take(rows), shown).to(device)
            clean = record(model, piece, names)[1]
            other = record(model, replace(piece, inputs=counterfactual.inputs[rows, :shown].to(device)), names)[1]
            gradient = _gradients(model, piece, tokens[rows].to(device), names)
            for source, parts in ((other, values), (noisy(clean, other, piece, seed), floor)):
                products = {name: -((source[name] - clean[name]) * gradient[name]).sum(-1) for name in names}
                each = [torch.stack([_at(products[name], n) for name in hooks(model, n)]).sum(0) for n in chosen]
                parts.append(torch.stack(each, 1).cpu().masked_fill(~known[rows, None], torch.nan))
    axes = {"node": tuple(label(split, node) for node in chosen)}
    return Grid.of("attribution_patching/logit_difference", axes, torch.cat(values), torch.cat(floor))


def _at(value: Tensor, node: Node) -> Tensor:
    """`[n]`, the entries of the node in a hook's value."""
    for index in place(node):
        value = value.select(1, index)
    return value


def _gradients(model: StepModel, split: Split, tokens: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Gradient of logit(answer) − logit(other answer), summed over examples, in every hook: `[n, T, …]`."""
    probes: dict[str, Tensor] = {}

    def tap(name: str, value: Tensor) -> Tensor:
        if name not in names:
            return value
        probes[name] = torch.zeros_like(value, requires_grad=True)
        return value + probes[name]

    # Lightning validates in inference mode, whose tensors no backward pass may keep: hence the copies.
    with torch.inference_mode(False), torch.enable_grad():
        ids = None if split.position_ids is None else split.position_ids.clone()
        state = run(model, model.embed(split.inputs.clone(), ids), tap)
        at, both = split.at[:, :1].clone(), tokens.clamp(min=0)
        logits = model.readout(picked(model, state, at))[:, 0].gather(1, both)
        difference = (logits[:, 0] - logits[:, 1]).sum()
        found = torch.autograd.grad(difference, list(probes.values()), materialize_grads=True)
    return dict(zip(probes, found, strict=True))


def exact_patching(
    model: StepModel,
    split: Split,
    counterfactual: Counterfactual,
    nodes: Sequence[Node] | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Grid:
    """What `attribution_patching` estimates, by activation patching of one node after the other; same arguments."""
    return ablation(model, split, nodes, "resample", "logit_difference", counterfactual, seed, batch)


def agreement(estimate: Grid, exact: Grid) -> float:
    """Pearson correlation over the cells of two grids; NaN if either is constant or fewer than two cells are known.

    Raises:
        BadInput: if the grids have other axes.
    """
    if dict(estimate.axes) != dict(exact.axes):
        raise BadInput(
            Problem("axes", dict(estimate.axes), f"give two grids of the same nodes; the other has {exact.axes}")
        )
    both = torch.stack([estimate.values.flatten(), exact.values.flatten()]).double()
    known = both[:, ~both.isnan().any(0)]
    return float(torch.corrcoef(known)[0, 1]) if known.shape[1] > 1 else torch.nan
