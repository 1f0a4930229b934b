"""What follows from given comparisons: reachability in a graph of `less` and `equal` edges.

Shape legend: E entity, C class of entities that follow to be equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grok.data.attribute_values import EQUAL, GREATER, LESS

__all__ = ["UNKNOWN", "derived"]

UNKNOWN = -1
"""What `derived` says where nothing follows."""


def derived(less: Tensor, equal: Tensor) -> Tensor:
    """How every two entities compare as far as it follows from what is given: `[E, E]` int8, `UNKNOWN` if it does not.

    x = y follows from a path of `equal` edges, read in both directions; x < y from a path of `less` and `equal` edges
    with a `less` one among them.

    Args:
        less: `[E, E]` bool, x < y is given; without contradictions.
        equal: `[E, E]` bool, x = y is given.
    """
    which = _classes(equal)
    classes = int(which.max()) + 1
    below = torch.zeros(classes, classes)
    low, high = less.nonzero().unbind(1)
    below[which[low], which[high]] = 1
    known = -1
    while int(below.sum()) > known:  # squaring doubles the length of the paths
        known = int(below.sum())
        below = ((below + below @ below) > 0).float()
    beneath = below.bool()[which[:, None], which]
    found = torch.full(less.shape, UNKNOWN, dtype=torch.int8)
    found[beneath], found[beneath.T] = LESS, GREATER
    found[which[:, None] == which] = EQUAL
    return found


def _classes(equal: Tensor) -> Tensor:
    """Number of the class of each entity `[E]`: the components of the graph of `equal` edges."""
    linked = (equal | equal.T).fill_diagonal_(True)
    which = torch.arange(len(equal))
    while True:  # every entity takes the lowest number among its neighbours, then that of the one it names
        lowest = torch.where(linked, which, len(equal)).amin(1)
        lowest = lowest[lowest]
        if torch.equal(lowest, which):
            break
        which = lowest
    numbered: Tensor = torch.unique(which, return_inverse=True)[1]
    return numbered
