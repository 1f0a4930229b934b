"""Retrieval and copying: attention edges that a model has, and that it needs.

Jobanputra et al. 2025 (arXiv 2505.21785).

Three kinds of edges, from a position to an earlier one, named as in the paper:

- `previous_token`: from each context position, and the separator, to the position before it;
- `anti_induction`: from where an answer is read to the source match, the token in the context that is read there;
- `induction`: from there to the token after the source match.

A right neighbour, or a forward copy, can be found along an induction edge by a model whose previous-token edges tell
each token what stands before it; a left neighbour, or a backward copy, along an anti-induction edge, as the match then
holds its own predecessor.

Shape legend: N query, T position, A slot, H head, E kind of edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grok.circuits.attention import place_of
from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.circuits.measures import measures
from grok.data.retrieval_copying import RetrievalCopying
from grok.data.split import Split
from grok.models import StepModel
from grok.models.steps import Tap

__all__ = ["EDGES", "attention_on_edges", "edges_of", "exact_match"]

EDGES = ("previous_token", "anti_induction", "induction")

_PATTERN = ".attn.hook_pattern"
_KEPT = 1 << 23  # weights of one head of one step at a time: 32 MB


@measures.register
def _(data: RetrievalCopying, model: StepModel, name: str, split: Split, batch: int = 1024) -> Sequence[Grid]:
    """Exact match by length, by slot and without each kind of edge, and every head's attention on each kind."""
    right = exact_match(model, split, batch)
    whole = _all_right(right)
    grids = [Grid.by_number("accuracy_by_length", "length", whole, split.truth["length"])]
    if right.shape[1] > 1:
        grids.append(Grid.of("accuracy_by_slot", {"slot": tuple(map(str, range(right.shape[1])))}, right))
    heads, mass, uniform = attention_on_edges(model, split, batch)
    if heads:
        cut = [_all_right(exact_match(model, split, batch, edge)) for edge in EDGES]
        grids.append(Grid.of("attention", {"head": heads, "edge": EDGES}, mass, uniform))
        grids.append(Grid.of("accuracy_without", {"edge": ("nothing", *EDGES)}, torch.stack([whole, *cut], 1)))
    return grids


def edges_of(split: Split) -> Tensor:
    """Whether each pair (attending position, attended position) is an edge of each kind: `[N, T, T, E]` bool."""
    device, source, ends = split.inputs.device, split.truth["source"], split.truth["length"]
    place = torch.arange(split.inputs.shape[1], device=device)
    edges = torch.zeros(len(split), len(place), len(place), len(EDGES), dtype=torch.bool, device=device)
    attends = (place > 0) & (place <= ends[:, None] + 1)  # the context and the separator
    edges[..., 0] = attends[..., None] & (place == place[:, None] - 1)
    query, slot = (source >= 0).nonzero(as_tuple=True)
    for kind, ahead in ((1, 0), (2, 1)):
        edges[query, split.at[query, slot], source[query, slot] + ahead, kind] = True
    return edges


def exact_match(model: StepModel, split: Split, batch: int, without: str | None = None) -> Tensor:
    """Whether each slot is answered right, teacher-forced: `[N, A]`, NaN for a slot that a query does not have.

    Args:
        model: any step model with token outputs.
        split: N queries with their truth.
        batch: most queries of one forward pass.
        without: a kind of edge on which no head of any step may attend; what else a position attends to is scaled up
            to 1. (The paper replaces what these edges carry, by that of another run.)
    """
    parts = []
    with analysing(model) as device:
        for piece in split.chunks(_rows(split, batch)):
            here = piece.to(device)
            tap = None if without is None else _cutting(edges_of(here)[..., EDGES.index(without)])
            # All positions, as a tap sees the patterns of those only that the last step is asked for.
            state = model.run(model.embed(here.inputs, here.position_ids), tap=tap)
            answers = model.readout(model.picked(state, here.at)).argmax(-1)
            parts.append((answers == here.targets).float().masked_fill(~here.mask, torch.nan).cpu())
    return torch.cat(parts)


def attention_on_edges(model: StepModel, split: Split, batch: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Mean attention of each head on each kind of edge, per query, over the positions that have such an edge.

    Args:
        model: any step model; one without attention gives no heads.
        split: N queries with their truth.
        batch: most queries of one forward pass.

    Returns:
        Names of all heads (`0.head2`), the means `[N, heads, E]`, and those of uniform attention.
    """
    masses, floors = [], []
    heads: tuple[str, ...] = ()
    with analysing(model) as device:
        for piece in split.chunks(_rows(split, batch)):
            here = piece.to(device)
            edges = edges_of(here).float()
            found: dict[str, Tensor] = {}

            def keep(name: str, value: Tensor, found: dict[str, Tensor] = found, edges: Tensor = edges) -> Tensor:
                if name.endswith(_PATTERN):
                    found[name] = torch.einsum("nhqt,nqte->nhe", value.float(), edges)
                return value

            model.run(model.embed(here.inputs, here.position_ids), tap=keep)
            size = edges.shape[1]
            seen = (
                torch.arange(1, size + 1, device=device) if model.causal else torch.full((size,), size, device=device)
            )
            found["uniform"] = ((edges.sum(2) / seen[:, None]).sum(1))[:, None]
            mean = (
                torch.cat(list(found.values()), 1) / edges.sum((1, 2))[:, None]
            )  # at most one edge from each position
            masses.append(mean[:, :-1].cpu())
            floors.append(mean[:, -1:].cpu())
            heads = tuple(
                f"{place_of(place)}.head{head}"
                for place, mass in list(found.items())[:-1]
                for head in range(mass.shape[1])
            )
    return heads, torch.cat(masses), torch.cat(floors).expand(-1, len(heads), -1)


def _cutting(edges: Tensor) -> Tap:
    """A tap that takes attention `[N, H, T, T]` off `edges` `[N, T, T]`."""

    def cut(name: str, value: Tensor) -> Tensor:
        if not name.endswith(_PATTERN):
            return value
        left = value.masked_fill(edges[:, None], 0)
        return left / left.sum(-1, keepdim=True).clamp(min=torch.finfo(left.dtype).tiny)

    return cut


def _all_right(slots: Tensor) -> Tensor:
    """`[N]` whether all slots that a query has are right."""
    return slots.nan_to_num(1.0).amin(1)


def _rows(split: Split, batch: int) -> int:
    return max(1, min(batch, _KEPT // split.inputs.shape[1] ** 2))
