"""What a look-up without reasoning scores: the floor that two-hop accuracies are to be compared with."""

from __future__ import annotations

import torch

from grok.data.split import Split
from grok.data.stream import Stream, TableStream

__all__ = ["two_hop_baselines"]


def two_hop_baselines(stream: Stream, split: Split, answer: int = 1, last: str = "r2") -> dict[str, float]:
    """Accuracy of `shortcut` on a split of two-hop queries; nothing for other splits, or without a training table.

    `shortcut` answers with the most frequent answer of the training queries that have the same second relation,
    whatever the rest of the query (the lowest tokens, if several are as frequent; no answer, if none has it).

    Args:
        stream: of the training.
        split: whose queries are answered.
        answer: tokens of an answer.
        last: the position of the last relation, for queries of more hops than two.
    """
    if not isinstance(stream, TableStream) or last not in split.positions or bool((split.truth["bridge"] < 0).any()):
        return {}
    at, table = split.positions.index(last), stream.table
    # An atomic query has padding or its answer at this position, never a relation, so that none is looked up.
    key, asked = table.inputs[:, at], split.inputs[:, at]
    answers = torch.cat([table.targets[:, :answer], split.targets[:, :answer]])
    digits = (1 + int(answers.max())) ** torch.arange(answer).flip(0)
    # Numbered in order, as a table over all pairs of tokens would not fit into memory.
    trained, wanted = torch.unique((answers * digits).sum(1), return_inverse=True)[1].split([len(key), len(asked)])
    size = 1 + int(torch.cat([key, trained, asked]).max())
    pairs, counts = torch.unique(key * size + trained, return_counts=True)
    best = torch.full((size,), -1).scatter_reduce(0, pairs // size, counts * size + size - 1 - pairs % size, "amax")
    found = torch.where(best >= 0, size - 1 - best % size, -1)
    return {"shortcut": (found[asked] == wanted).double().mean().item()}
