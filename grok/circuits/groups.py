"""Attention mass on groups of positions that the data regime knows: the source of the answer, the same pattern, …

Shape legend: N example, A slot, S · H head (of every attention), G group, T key position.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from grok.circuits.attention import attention_patterns
from grok.circuits.grid import Grid
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel

__all__ = ["group_mass", "head_roles"]

_KEPT = 1 << 26  # weights of attention patterns held at a time: a quarter of a gigabyte


def group_mass(model: StepModel, split: Split, groups: Mapping[str, Tensor], batch: int = 1024) -> Grid:
    """Mean attention of every head, from where each slot is read, to each group of positions: `head` × `group`.

    An example counts by the mean over those of its slots for which the group has a member; slots that it does not have
    are left out. The floor is uniform attention over the positions that can be seen.

    Args:
        model: see `attention_patterns`.
        split: the examples.
        groups: `[N, A, T]` bool by name, members of each group for each slot, see `RegimeDataModule.groups`.
        batch: most queries of one forward pass.

    Raises:
        BadInput: if there are no groups.
    """
    if not groups:
        raise BadInput(Problem("groups", "none", "this data has no groups of positions"))
    members = torch.stack(list(groups.values()), 2).float().cpu()  # [N, A, G, T]
    members = members * split.mask.cpu()[:, :, None, None]
    positions, steps = split.inputs.shape[1], max(1, len(model.steps))
    rows = max(1, min(batch, _KEPT // (positions**2 * steps * 8)))
    heads: tuple[str, ...] = ()
    masses, floors = [], []
    for first in range(0, len(split), rows):
        piece, inside = split.take(slice(first, first + rows)), members[first : first + rows]
        attention = attention_patterns(model, piece, rows)
        heads = attention.heads
        at = piece.at.cpu()
        looks = attention.patterns.float().flatten(1, 2)  # [n, S · H, T, T]
        looks = looks.gather(2, at[:, None, :, None].expand(-1, looks.shape[1], -1, positions))
        place = torch.arange(positions)
        seen = (place <= at[..., None]) if attention.causal else torch.ones_like(place <= at[..., None])
        if not getattr(model, "sees_itself", True):  # but the first position, which has nothing else
            seen = seen & ((place != at[..., None]) | (at[..., None] == 0))
        uniform = seen / seen.sum(-1, keepdim=True)
        masses.append(_mean_over_slots(torch.einsum("nhat,nagt->nhag", looks, inside), inside))
        floors.append(_mean_over_slots(torch.einsum("nat,nagt->nag", uniform, inside)[:, None], inside))
    mass = torch.cat(masses)
    return Grid.of("groups/mass", {"head": heads, "group": tuple(groups)}, mass, torch.cat(floors).expand_as(mass))


def _mean_over_slots(mass: Tensor, members: Tensor) -> Tensor:
    """`[n, h, A, G]` to `[n, h, G]`, over the slots whose group has a member; NaN where none has."""
    counted = members.any(-1)[:, None].expand_as(mass)
    return (mass * counted).sum(2) / counted.sum(2)


def head_roles(grid: Grid) -> dict[str, str]:
    """The group to which each head gives most of its attention, by the name of the head."""
    heads, groups = grid.axes.values()
    most = grid.values.nan_to_num(-1).argmax(1).tolist()
    return {head: groups[group] for head, group in zip(heads, most, strict=True)}
