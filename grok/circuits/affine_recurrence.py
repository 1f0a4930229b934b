"""Affine recurrences: error by observed terms, what each state reads out as, and heads that copy or subtract.

Shape legend: N sequence, T observed term, D width of a term, I step, H head of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grok.circuits.attention import attention_patterns, zeroing
from grok.circuits.examples import analysing, state_names
from grok.circuits.grid import Grid
from grok.circuits.measures import measures
from grok.data.affine_recurrence import AffineRecurrence
from grok.data.split import Split
from grok.models import StepModel
from grok.models.steps import State, Step, keeping

__all__ = ["contributions", "heads", "least_squares", "recurrence_error", "state_readouts"]


@measures.register
def _(data: AffineRecurrence, model: StepModel, name: str, split: Split, batch: int = 1024) -> Sequence[Grid]:
    """See `recurrence_error`, `state_readouts` and `heads`."""
    attention = attention_patterns(model, split, batch)
    with analysing(model) as device:
        pieces = [piece.inputs.to(device) for piece in split.chunks(batch)]
        states = [model.states(piece) for piece in pieces]
        readouts = torch.stack(
            [torch.cat([model.readout(run[i]).cpu() for run in states]) for i in range(len(states[0]))]
        )
        direct = torch.cat([contributions(model, run).cpu() for run in states])
    return [
        recurrence_error(data, split, readouts[-1]),
        *state_readouts(data, split, readouts),
        heads(data, split, direct, attention.patterns.flatten(1, 2), attention.heads),
    ]


def recurrence_error(data: AffineRecurrence, split: Split, answers: Tensor) -> Grid:
    """Squared error of the next term by number of observed terms, beside that of repeating the current term and of a
    fit to the observed terms by least squares.

    Args:
        data: the regime.
        split: the sequences.
        answers: `[N, T, D]`.
    """
    observed = split.inputs.cpu()
    wanted = split.targets.cpu().view_as(observed)
    predictions = torch.stack([answers, observed, least_squares(data, observed)], 1)
    terms = tuple(str(count + 1) for count in range(observed.shape[1]))
    errors = (predictions - wanted[:, None]).square().sum(-1)
    return Grid.of("error", {"of": ("model", "copy", "least_squares"), "terms": terms}, errors)


def least_squares(data: AffineRecurrence, observed: Tensor) -> Tensor:
    """The next term after each of `observed` `[N, T, D]`, by the smallest b and A_p that fit all terms so far best.

    After `data.determined` terms it is right up to rounding.
    """
    x = observed.double()
    design = torch.cat([torch.ones_like(x[..., :1]), data.powers(x).flatten(2)], -1)  # [N, T, 1 + P · D]
    found = [torch.zeros_like(x[:, 0])]
    for last in range(1, x.shape[1]):
        solution = torch.linalg.pinv(design[:, :last], rtol=1e-6) @ x[:, 1 : last + 1]
        found.append((design[:, last, None] @ solution)[:, 0])
    return torch.stack(found, 1).to(observed.dtype)


def state_readouts(data: AffineRecurrence, split: Split, readouts: Tensor) -> list[Grid]:
    """What each state reads out as: its correlations with the current, the previous and the next term, and the
    coefficients of its regression on all three, which tell more where the three terms resemble each other.

    Over all sequences and all places where the next term is determined.

    Args:
        data: the regime.
        split: the sequences.
        readouts: `[I + 1, N, T, D]`.
    """
    x, first = split.inputs.cpu(), data.determined - 1
    terms = {"current": x, "previous": x.roll(1, 1), "next": split.targets.cpu().view_as(x)}
    known = torch.stack([term[:, first:].flatten() for term in terms.values()]).double()
    told = readouts[:, :, first:].flatten(1).double()
    correlations = [[correlation(state, term) for term in known] for state in told]
    design = torch.cat([known, torch.ones_like(known[:1])]).T
    coefficients = (torch.linalg.pinv(design) @ told.T)[:-1].T
    axes = {"state": state_names(range(len(readouts))), "term": tuple(terms)}
    return [
        Grid.of("readout_correlation", axes, torch.tensor(correlations)[None]),
        Grid.of("readout_coefficient", axes, coefficients[None]),
    ]


def contributions(model: StepModel, states: Sequence[State]) -> Tensor:
    """What each head by itself adds to the answer, `[N, I · H, T, D]`: the answer, less that without what it writes.

    Later steps are left as they are: this is the direct path to the read-out, final norm included.
    """
    final, answer = states[-1], model.readout(states[-1])
    found = []
    for step, state in zip(model.steps, states[:-1], strict=True):
        kept: dict[str, Tensor] = {}
        step(state, tap=keeping(kept, ["attn.hook_z", "hook_attn_out"]))
        for head in range(kept["attn.hook_z"].shape[2]):
            written = kept["hook_attn_out"] - _without(step, state, head)
            found.append(answer - model.readout({**final, "resid": final["resid"] - written}))
    return torch.stack(found, 1)


def _without(step: Step, state: State, head: int) -> Tensor:
    """What the attention of a step writes `[N, T, width]` where one of its heads has read nothing."""
    kept: dict[str, Tensor] = {}
    step(state, tap=keeping(kept, ["hook_attn_out"], zeroing(head)))
    return kept["hook_attn_out"]


def heads(data: AffineRecurrence, split: Split, direct: Tensor, patterns: Tensor, names: tuple[str, ...]) -> Grid:
    """Correlations, for each head, that tell whether it copies or subtracts, and whether it seeks similar terms.

    `gain`: of what the head adds to the answer with the term that it attends to (the mean by its weights): a head that
    copies has a gain near 1, one that subtracts a gain near -1 (a *negative* head here). `similarity`: of its weight on
    each earlier term with minus the distance of that term from the current one. Places as in `state_readouts`.

    Args:
        data: the regime.
        split: the sequences.
        direct: `[N, I · H, T, D]`, see `contributions`.
        patterns: `[N, I · H, T, T]`.
        names: of the heads.
    """
    x, first = split.inputs.cpu(), data.determined - 1
    read = torch.einsum("nhij,njd->nhid", patterns, x)
    nearness = -(x[:, :, None] - x[:, None]).norm(dim=-1)
    earlier = torch.ones(x.shape[1], x.shape[1]).tril(-1).bool()
    earlier[:first] = False
    gains = [correlation(direct[:, head, first:], read[:, head, first:]) for head in range(len(names))]
    similar = [correlation(patterns[:, head][:, earlier], nearness[:, earlier]) for head in range(len(names))]
    return Grid.of("heads", {"measure": ("gain", "similarity"), "head": names}, torch.tensor([gains, similar])[None])


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of all entries of two tensors; NaN where one is constant."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])
