"""Prefixes that queries share, computed once.

In a causal model the state at a position depends on the tokens up to it, and on nothing else. In a small world most of
the first tokens of a batch are the same: of 512 two-hop queries over 50 entities and 10 relations, 50 states at `h` and
some 320 at `r1` are all there are, and computing those gives the same answers and gradients with 0.57 of the work.

Shape legend: B query, T position, A slot (a chosen position), R row (a distinct prefix), V output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grok.models.steps import StepModel

__all__ = ["PrefixTree", "answers_sharing_prefixes"]


@dataclass(frozen=True)
class PrefixTree:
    """The distinct prefixes of a batch of token sequences, as one sequence of rows.

    Args:
        tokens: `[R]`, the last token of each prefix.
        places: `[R]`, its position.
        ancestors: `[R, T]`, rows of the prefixes of a prefix, itself last; -1 beyond.
        rows: `[B, T]`, the row of every query and position.
    """

    tokens: Tensor
    places: Tensor
    ancestors: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, inputs: Tensor, tokens: int) -> PrefixTree:
        """The tree of `inputs` `[B, T]`, tokens below `tokens`; at the last position nothing is looked for to share."""
        batch, length = inputs.shape
        every = torch.arange(batch, device=inputs.device)
        of_position: list[Tensor] = []
        rows: list[Tensor] = []
        key, total = inputs[:, 0], 0
        for place in range(length):
            if place < length - 1:
                distinct, which = torch.unique(key, return_inverse=True)
                first = torch.empty_like(distinct).scatter_(0, which, every)  # any query that has the prefix
                key = which * tokens + inputs[:, place + 1]
            else:
                which = first = every
            rows.append(which + total)
            of_position.append(first)
            total += len(first)
        table = torch.stack(rows, 1)
        chosen = torch.cat(of_position)
        places = torch.arange(length, device=inputs.device).repeat_interleave(
            torch.tensor([len(first) for first in of_position], device=inputs.device)
        )
        known = torch.arange(length, device=inputs.device) <= places[:, None]
        ancestors = torch.where(known, table[chosen], -1)
        return cls(inputs[chosen, places], places, ancestors, table)


def answers_sharing_prefixes(net: StepModel, tree: PrefixTree, at: Tensor) -> Tensor:
    """What `net(inputs, at=at)` gives, `[B, A, V]`, up to the order of summation, from the `tree` of the inputs.

    Args:
        net: a model that `shares_prefixes`; the rows take the place of the positions of one long sequence.
        tree: of the queries.
        at: `[B, A]` positions at which answers are read.
    """
    state = net.embed(tree.tokens[None], tree.places[None])
    wanted = tree.rows.gather(1, at).view(1, -1)
    state = net.run({**state, "ancestors": tree.ancestors}, at=wanted)
    return net.readout(state).view(*at.shape, -1)
