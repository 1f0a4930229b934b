"""What a look-up without reasoning scores: the floor that two-hop accuracies are to be compared with."""

from __future__ import annotations

import torch

from grok.data.split import Split
from grok.data.stream import Stream, TableStream

__all__ = ["two_hop_baselines"]


def two_hop_baselines(stream: Stream, split: Split) -> dict[str, float]:
    """Accuracy of `shortcut` on a split of two-hop queries; nothing for other splits, or without a training table.

    `shortcut` answers with the most frequent answer of the training queries that have the same second relation,
    whatever the rest of the query (the lowest token, if several are as frequent; no answer, if none has it).
    """
    if not isinstance(stream, TableStream) or "r2" not in split.positions or bool((split.truth["bridge"] < 0).any()):
        return {}
    at, table = split.positions.index("r2"), stream.table
    # An atomic query has padding or its answer at this position, never a relation, so that none is looked up.
    key, answer, asked = table.inputs[:, at], table.targets[:, 0], split.inputs[:, at]
    size = 1 + int(torch.cat([key, answer, asked]).max())
    pairs, counts = torch.unique(key * size + answer, return_counts=True)
    best = torch.full((size,), -1).scatter_reduce(0, pairs // size, counts * size + size - 1 - pairs % size, "amax")
    found = torch.where(best >= 0, size - 1 - best % size, -1)
    return {"shortcut": (found[asked] == split.targets[:, 0]).double().mean().item()}
