"""Pattern composition: errors of rollouts with and without steps, and what queries and keys compare.

Shape legend: N query, L example, K step, D width of a pattern, H head, R vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from grok.circuits.attention import key_query_products
from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.circuits.measures import measures
from grok.data.pattern_composition import PatternComposition
from grok.data.pattern_prompts import shortened, without_steps
from grok.data.split import Split, nearest, snap
from grok.data.step_transitions import StepTransitions, faulty
from grok.errors import Problem, insist
from grok.models import StepModel

__all__ = ["icl_errors", "key_query", "rollout_errors"]

EXAMPLES = (1, 5, 10, 20, 40, 80, 160)
"""Numbers of examples at which errors are measured, as far as prompts have so many (the paper: 0 to 100)."""
ALPHAS, TAUS, RHOS = (0.4, 0.6, 0.8, 1.0), (0.4, 0.5, 0.6, 0.7), (0.2, 0.3, 0.4, 0.5)
"""What errors are ordered by; the paper has the same alpha and tau, and rho from 0.5 to 0.8."""
ACCURACY = 0.6
"""Of the steps of examples whose rho varies: tau stays 0.6^K."""
HARDER = EXAMPLES[:5]
"""Numbers of examples of the errors by alpha, tau and rho."""


@measures.register
def _(data: PatternComposition, model: StepModel, name: str, split: Split, batch: int = 1024) -> Sequence[Grid]:
    """Errors by number of examples; with `test_cot` also by alpha, tau and rho, and the products of queries and keys.

    Raises:
        BadInput: for a split of ICL prompts, whose errors are those of the CoT split's queries.
    """
    if not bool((split.truth["pattern"].view(len(split), -1, data.steps) >= 0)[:, :-1].all()):
        fix = "holds examples without their steps: name the split that ends in _cot"
        insist([Problem("measures.splits", name, fix)])
    longest = len(split.positions) // data.steps - 1
    numbers = tuple(number for number in EXAMPLES if number <= longest)
    values = [
        torch.stack([errors(data, model, shortened(split, data.steps, number), batch) for number in numbers], 1)
        for errors in (rollout_errors, icl_errors)
    ]
    axes = {"prompt": ("cot", "icl"), "examples": tuple(map(str, numbers))}
    error = Grid.of("error_by_examples", axes, torch.stack(values, 1))
    if name not in data.held_out_splits:
        return [error]
    return [error, *key_query(data, model), *_orderings(data, model, len(split), batch)]


def rollout_errors(data: PatternComposition, model: StepModel, split: Split, batch: int) -> Tensor:
    """Share of the K steps that a chain of thought has wrong, `[N]`: each answer is snapped to the nearest pattern and
    written into the prompt, then the next step is asked."""
    return torch.cat([_rolled_out(data, model, piece) for piece in split.chunks(batch)])


def _rolled_out(data: PatternComposition, model: StepModel, split: Split) -> Tensor:
    with analysing(model) as device:
        split = split.to(device)
        codes, steps = split.codes or (), data.step_vectors.to(device)
        at = torch.full((len(split),), len(split.positions) - data.steps, device=device)
        column = split.inputs[:, -data.steps].clone()  # of the query's first step
        column[:, data.dim :] = 0
        inputs = split.inputs.clone()
        inputs[:, -data.steps] = column

        def following(outputs: Tensor, k: int) -> Tensor:
            nonlocal column
            answer = snap(outputs, codes)
            done = torch.cat([column[:, : data.dim], answer], 1)
            column = F.pad(answer + steps[k + 1], (0, data.dim))
            return torch.stack([done, column], 1)

        outputs = model.rollout(inputs, at, data.steps, following, back=1)
        wrong = nearest(outputs, codes)[..., 0] != split.truth["chain"][:, 1:]
    return wrong.float().mean(1).cpu()


def icl_errors(data: PatternComposition, model: StepModel, split: Split, batch: int) -> Tensor:
    """Whether the last output is answered wrongly where examples have no steps: `[N]`, 0 or 1."""
    with analysing(model) as device:
        pieces = [without_steps(piece, data.step_vectors).to(device) for piece in split.chunks(batch)]
        wrong = [
            nearest(model(piece.inputs, at=piece.at)[:, 0], piece.codes or ()) != piece.truth["chain"][:, -1:]
            for piece in pieces
        ]
    return torch.cat(wrong)[:, 0].float().cpu()


def _orderings(data: PatternComposition, model: StepModel, size: int, batch: int) -> list[Grid]:
    """Errors of chains of thought by alpha' with the regime's mistakes, by tau, and by rho (`faulty`)."""
    patterns = len(data.test_vectors)
    # With few patterns there is not every tau and rho: the right outcome must lead, and its competitor come second.
    by_tau = {
        f"tau={tau}": faulty(data.steps, patterns, right)
        for tau in TAUS
        if (right := tau ** (1 / data.steps)) * patterns > 1
    }
    by_rho = {
        f"rho={rho}": faulty(data.steps, patterns, ACCURACY, ACCURACY - rho)
        for rho in RHOS
        if (ACCURACY - rho) * (patterns - 1) + 1e-9 >= 1 - ACCURACY and patterns > 2
    }
    settings: dict[str, dict[str, tuple[float, StepTransitions]]] = {
        "alpha": {f"alpha={alpha}": (alpha, data.transitions) for alpha in ALPHAS},
        "tau": {label: (data.test_alpha, transitions) for label, transitions in by_tau.items()},
        "rho": {label: (data.test_alpha, transitions) for label, transitions in by_rho.items()},
    }
    numbers = [number for number in HARDER if number <= data.test_examples]
    grids = []
    for what, rows in settings.items():
        if not rows:
            continue
        values = []
        for alpha, transitions in rows.values():
            split = data.prompts(size, "order", data.seed, alpha=alpha, transitions=transitions)
            shorter = [shortened(split, data.steps, number) for number in numbers]
            values.append(torch.stack([rollout_errors(data, model, one, batch) for one in shorter], 1))
        axes = {what: tuple(rows), "examples": tuple(map(str, numbers))}
        grids.append(Grid.of(f"error_{what}_by_examples", axes, torch.stack(values, 1)))
    return grids


def key_query(data: PatternComposition, model: StepModel) -> list[Grid]:
    """Products of queries and keys on the trained patterns and on the step vectors: the blocks of W_Q^T W_K.

    Rows are heads; columns the mean products of a pattern with itself, with other patterns, of a step vector with
    itself, with others, and across. Each block is given the vectors as they are: of later layers that is a reading of
    their weights, not of what comes to them. Empty if no step has queries and keys.
    """
    count = len(data.train_vectors)
    columns = F.pad(torch.cat([data.train_vectors, data.step_vectors]), (0, data.dim))[None]
    found = {step: key_query_products(model, columns, step) for step in range(len(model.steps))}
    products = {step: product for step, product in found.items() if product is not None}
    if not products:
        return []
    rows = torch.stack([_blocks(product, count) for product in products.values()]).flatten(0, 1)
    heads = tuple(f"{step}.head{head}" for step, product in products.items() for head in range(len(product)))
    kinds = ("pattern", "other_pattern", "step", "other_step", "across")
    return [Grid.of("key_query", {"head": heads, "with": kinds}, rows[None])]


def _blocks(products: Tensor, count: int) -> Tensor:
    """Means of the blocks of `[H, R, R]`, patterns before step vectors, diagonals apart: `[H, 5]`."""
    means = []
    for block in (products[:, :count, :count], products[:, count:, count:]):
        same = block.diagonal(dim1=1, dim2=2).mean(1)
        size = block.shape[1]
        others = (block.sum((1, 2)) / size - same) / max(1, size - 1)
        means += [same, others]
    across = torch.cat([products[:, :count, count:].flatten(1), products[:, count:, :count].flatten(1)], 1)
    return torch.stack([*means, across.mean(1)], 1)
