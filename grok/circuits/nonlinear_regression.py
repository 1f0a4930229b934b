"""Nonlinear regression in context: how far off the answer is, and what queries and keys compare.

Shape legend: N query, T column, K feature vector, D width of an x, H head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from grok.circuits.attention import key_query_products
from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.circuits.measures import measures
from grok.data.nonlinear_regression import NonlinearRegression
from grok.data.split import Split
from grok.models import StepModel

__all__ = ["answers", "query_key"]


@measures.register
def _(data: NonlinearRegression, model: StepModel, name: str, split: Split, batch: int = 1024) -> Sequence[Grid]:
    """Squared errors relative to the variance of the labels, and, once, the query-key matrix of the first step."""
    right = split.targets.cpu()
    squared = (answers(data, model, split, batch) - right).square()
    variance = (right - right.mean()).square()
    error = Grid.of("error", {"of": ("model", "lookup", "mean")}, squared, base=variance)
    return [error, *(query_key(data, model) if name == next(iter(data.splits)) else [])]


def answers(data: NonlinearRegression, model: StepModel, split: Split, batch: int) -> Tensor:
    """What is answered, `[N, 3]`: by the model, by the mean label of the query's feature, by the mean of all labels.

    The second is what full attention on the query's feature gives (NaN where the context has none), the third is
    uniform attention.
    """
    with analysing(model) as device:
        parts = [piece.to(device) for piece in split.chunks(batch)]
        answered = torch.cat([model(piece.inputs, at=piece.at)[:, 0] for piece in parts]).cpu()
    labels, same = split.inputs[:, :-1, -1], data.groups(split)["query_feature"][:, 0, :-1].float()
    lookup = (labels * same).sum(1, keepdim=True) / same.sum(1, keepdim=True)  # 0 / 0 is NaN
    return torch.cat([answered, lookup.cpu(), labels.mean(1, keepdim=True).cpu()], 1)


def query_key(data: NonlinearRegression, model: StepModel) -> list[Grid]:
    """Products of queries and keys of the first step on the feature vectors, without labels: v_i^T M v_j.

    Rows `equal` (i = j) and `different` (the mean over j ≠ i), a column per head.
    Empty if the step has no queries and keys.
    """
    products = key_query_products(model, pad(data.vectors, (0, 1))[None])
    if products is None:
        return []
    equal = products.diagonal(dim1=1, dim2=2)
    different = (products.sum(2) - equal) / max(1, len(data.vectors) - 1)
    values = torch.stack([equal, different], 1).permute(2, 1, 0)  # [K, 2, H]
    heads = tuple(f"0.head{head}" for head in range(len(products)))
    return [Grid.of("query_key", {"features": ("equal", "different"), "head": heads}, values)]
