"""Attention that acts on continuous columns as they are: one consolidated key-query matrix, and no other weights.

The parameterisation of theory papers (Huang et al. 2023, arXiv 2310.05249; Yang et al. 2025, arXiv 2508.08222).

Shape legend: B query, T position, A query position of attention, H head, D width of a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from grok.errors import Problem, insist
from grok.models.layers import Attention
from grok.models.steps import pick
from grok.task import Field, Task

__all__ = ["ColumnAttention", "problems_of_columns"]


class ColumnAttention(Attention):
    """Scores x_q^T M x_k with one matrix M per head, block-diagonal over the matched fields; values are the columns.

    What a head has read it writes into the fields that are its own, the other features are left zero.

    Args:
        fields: the parts of a column; their heads must be 0 … H - 1.
        heads: H.
        causal: see `Attention`.
        sees_itself: see `Attention`.
        scaled: see `Attention`.
        dropout: see `Attention`.

    Raises:
        BadInput: if there are other heads than the fields ask for, or no field is matched.
    """

    compared: Tensor
    written: Tensor

    def __init__(
        self,
        fields: Sequence[Field],
        heads: int = 1,
        causal: bool = True,
        sees_itself: bool = True,
        scaled: bool = False,
        dropout: float = 0.0,
    ) -> None:
        wanted = 1 + max((field.head for field in fields), default=0)
        if heads != wanted:
            insist([Problem("heads", heads, f"with projections=key_query the fields of this data ask for {wanted}")])
        if not any(field.matched for field in fields):
            fix = "key_query needs columns with fields to compare, which this data has not: use all"
            insist([Problem("projections", "key_query", fix)])
        width = sum(field.size for field in fields)
        super().__init__(width, heads, causal, dropout=dropout, output=False, sees_itself=sees_itself, scaled=scaled)
        ones = [torch.full((field.size, field.size), float(field.matched)) for field in fields]
        compared = torch.block_diag(*ones)  # type: ignore[no-untyped-call]
        self.register_buffer("compared", compared, persistent=False)
        owner = torch.tensor([field.head for field in fields for _ in range(field.size)])
        mine = (owner == torch.arange(heads)[:, None]).float()
        self.register_buffer("written", mine, persistent=False)

    def _make_weights(self, bias: bool, output: bool) -> None:
        self.key_query = nn.Parameter(torch.zeros(self.heads, self.width, self.width))

    def _project(self, x: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        asked = x if at is None else pick(x, at)
        query = torch.einsum("bad,hde->bahe", asked, self.key_query * self.compared.to(x.dtype))
        column = x[:, :, None].expand(-1, -1, self.heads, -1)
        return query, column, column

    def _write(self, mixed: Tensor) -> Tensor:
        return (mixed * self.written.to(mixed.dtype)).sum(2)


def problems_of_columns(
    task: Task, width: int | None, re_embed: bool, as_they_are: Mapping[str, bool], projections: str, init: str
) -> list[Problem]:
    """Problems with options of a model that go with continuous columns, or with columns as they are, only.

    Args:
        task: of the model.
        width: of its residual stream; None for that of the columns.
        re_embed: whether it embeds expected tokens between loops.
        as_they_are: options by name, and whether they take columns as they are.
        projections: of its attention.
        init: of its weights.
    """
    problems = []
    needs = {"all": "normal", "no_output": "identity or normal", "key_query": "zero or normal"}[projections]
    if init not in needs:
        problems.append(Problem("init", init, f"would never learn with projections={projections}: use {needs}"))
    if task.tokens is not None:
        wrong = {key: "fixed" for key, on in as_they_are.items() if on}
        wrong |= {"projections": projections} if projections == "key_query" else {}
        problems += [Problem(key, value, "needs continuous columns, not tokens") for key, value in wrong.items()]
        return problems + ([Problem("width", None, "give that of the residual stream")] if width is None else [])
    if re_embed:
        problems.append(Problem("re_embed", True, "needs token inputs; this task has continuous columns"))
    whole = [key for key, on in {**as_they_are, "projections": projections == "key_query"}.items() if on]
    if whole and width not in (None, task.features):
        fix = f"{', '.join(whole)} keeps columns as they are: use null, for their {task.features} features"
        problems.append(Problem("width", width, fix))
    return problems
