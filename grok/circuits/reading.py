"""What logits say of given tokens: rank, logit, probability, and the tokens on top.

Shape legend: B row, V vocabulary, K token looked for, J top token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from grok.errors import BadInput, Problem
from grok.models import StepModel
from grok.models.steps import State

__all__ = ["Reading", "decoded", "effect", "read"]

_NUMBERS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Reading:
    """Of each row of logits; the leading dimensions are the same in all four.

    A row without probabilities (a logit is NaN or +∞, or all are -∞) belongs to a model that has diverged. It says
    nothing, and must not look as if it said the right thing: its tokens have the rank V, one below the worst, and
    nothing is on top.

    Args:
        rank: `[…, K]` int32, number of tokens with a strictly greater logit; V in a row without probabilities; -1 for
            no token.
        logit: `[…, K]`, NaN for no token.
        probability: `[…, K]`, NaN for no token, and in a row without probabilities.
        top: `[…, J]` int32, tokens in falling order of their logit; -1 in a row without probabilities.
    """

    rank: Tensor
    logit: Tensor
    probability: Tensor
    top: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Reading:
        """The same change made to all four tensors."""
        return Reading(change(self.rank), change(self.logit), change(self.probability), change(self.top))

    @staticmethod
    def join(parts: Sequence[Reading], join: Callable[[list[Tensor]], Tensor]) -> Reading:
        """`torch.cat` or `torch.stack` of many readings."""
        fields = ("rank", "logit", "probability", "top")
        return Reading(*(join([getattr(part, field) for part in parts]) for field in fields))


def read(logits: Tensor, tokens: Tensor, labels: Tensor | None = None, top: int = 1) -> Reading:
    """Read `logits` `[B, V]` for `tokens` `[B, K]` (-1 for none), by counting and never by sorting.

    Args:
        logits: of the whole vocabulary.
        tokens: looked for in each row.
        labels: token ids among which ranks and probabilities are taken; None means the whole vocabulary.
        top: J, how many of the highest tokens to keep.

    Raises:
        BadInput: if a token looked for is not among the `labels`.
    """
    if labels is None:
        inside, place = logits, tokens
    else:
        inside = logits[:, labels]
        where = torch.full((logits.shape[1],), -1, dtype=torch.int64, device=logits.device)
        where[labels] = torch.arange(len(labels), device=logits.device)
        place = torch.where(tokens >= 0, where[tokens.clamp(min=0)], -1)
        if bool(((tokens >= 0) & (place < 0)).any()):
            raise BadInput(Problem("restrict", True, "a token looked for is no possible answer: use restrict=false"))
    # On a CPU, rows that fit into the cache are compared three times faster than many at once.
    rows = max(1, _NUMBERS_AT_ONCE // inside.shape[1]) if inside.device.type == "cpu" else max(1, len(inside))
    pieces = zip(inside.split(rows), place.split(rows), strict=True)  # type: ignore[no-untyped-call]
    reading = Reading.join([_read(some, looked, top) for some, looked in pieces], torch.cat)
    return reading if labels is None else replace(reading, top=_labelled(reading.top, labels))


def _read(logits: Tensor, tokens: Tensor, top: int) -> Reading:
    missing = tokens < 0
    logit = logits.gather(1, tokens.clamp(min=0))
    rank = torch.stack([(logits > column[:, None]).sum(1) for column in logit.unbind(1)], 1)
    probability = logits.softmax(1).gather(1, tokens.clamp(min=0))  # 15 times faster than logsumexp on a CPU
    diverged = probability[:, :1].isnan()  # a softmax is NaN everywhere or nowhere
    highest = logits.argmax(1, keepdim=True) if top == 1 else logits.topk(min(top, logits.shape[1]), dim=1).indices
    return Reading(
        rank=rank.masked_fill(diverged, logits.shape[1]).masked_fill(missing, -1).int(),
        logit=logit.masked_fill(missing, torch.nan),
        probability=probability.masked_fill(missing, torch.nan),
        top=highest.masked_fill(diverged, -1).int(),
    )


def _labelled(top: Tensor, labels: Tensor) -> Tensor:
    """Token ids of places among the labels; -1 stays -1."""
    return torch.where(top >= 0, labels[top.long().clamp(min=0)].int(), -1)


def decoded(model: StepModel, state: State, index: int, stream: str = "") -> State:
    """S[index] as the read-out shall see it: its first stream is `stream`, or else the one decoded at S[index]."""
    return {**state, model.streams[0]: state[stream or model.stream_at(index)]}


def effect(clean: Reading, after: Reading, tokens: Tensor, measure: str) -> Tensor:
    """What a change did to an answer `[…]`; columns of both readings and of `tokens` `[…, 2]`: the answer, another one.

    Args:
        clean: without the change; its leading dimensions broadcast with those of `after`.
        after: with the change.
        tokens: -1 for none.
        measure: `changed`, the predicted token changes; `rank`, the answer is not at rank 0 any more; `flipped`, the
            prediction becomes the other answer; `accuracy`, `logit`, `probability`, by how much the answer's falls;
            `loss`, by how much it rises; `logit_difference`, by how much logit(answer) − logit(other answer) falls.
    """
    answer, other = tokens.unbind(-1)
    if measure == "changed":
        return (after.top[..., 0] != clean.top[..., 0]).float()
    if measure == "rank":
        return (after.rank[..., 0] != 0).float()
    if measure == "flipped":
        return (after.top[..., 0] == other).float().masked_fill(other < 0, torch.nan)
    if measure == "accuracy":
        return (clean.top[..., 0] == answer).float() - (after.top[..., 0] == answer).float()
    if measure == "loss":  # a probability of 0 counts as the smallest float32
        smallest = torch.finfo(torch.float32).tiny
        return clean.probability[..., 0].clamp(smallest).log() - after.probability[..., 0].clamp(smallest).log()
    if measure == "logit_difference":
        return clean.logit[..., 0] - clean.logit[..., 1] - (after.logit[..., 0] - after.logit[..., 1])
    before, now = getattr(clean, measure), getattr(after, measure)
    return cast(Tensor, before[..., 0] - now[..., 0])
