"""Linear probes: what a linear classifier can learn to read from every state S[i, p] (Alain and Bengio 2016).

Shape legend: N example, G group of examples, S state, T position, D width, C class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grok.circuits.examples import analysing, step_range
from grok.circuits.examples import column as column_of
from grok.circuits.grid import Grid, group_means
from grok.data.keyed import keyed_hash, keyed_permutation
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel

__all__ = ["Probes", "linear_probes", "probe_groups"]


@dataclass(frozen=True)
class Probes:
    """Held-out predictions of every probe.

    Args:
        column: what was probed for.
        rows: `[N]` the held-out examples, rows of the split.
        groups: `[N]` group of each held-out example.
        correct: `[N, S, T]` 1 where the probe is right, 0 elsewhere.
        control: `[N, S, T]` the same for probes trained on shuffled labels: the floor.
        unseen: held-out examples whose class no training example has: every probe is wrong there.
        trained: number of training examples.
        steps: i of the states S[i].
        positions: names of the positions.
    """

    column: str
    rows: Tensor
    groups: Tensor
    correct: Tensor
    control: Tensor
    unseen: int
    trained: int
    steps: tuple[int, ...]
    positions: tuple[str, ...]

    def grid(self) -> Grid:
        """Held-out accuracy at every state, unseen classes counted as wrong; n is the number of held-out groups.

        The mean and its interval are taken over groups, each with the mean of its examples: examples of a group share
        states, so that they do not count as independent ones.
        """
        axes = {"step": tuple(f"S[{step}]" for step in self.steps), "position": self.positions}
        values, floor = (group_means(one, self.groups) for one in (self.correct, self.control))
        return Grid.of(f"probes/accuracy/{self.column}", axes, values, floor)


def linear_probes(
    model: StepModel,
    split: Split,
    column: str = "bridge",
    steps: Sequence[int] | None = None,
    held_out: float = 0.3,
    ridge: float = 0.01,
    groups: Tensor | None = None,
    seed: int = 0,
    batch: int = 1024,
) -> Probes:
    """Train a linear classifier of a column on every state S[i, p], and test it on examples held out.

    Ridge regression onto one-hot classes in closed form, on standardised features with an intercept, in float64.

    In a causal model the state S[i, r1] is the same for all queries that begin with the same (h, r1). Were such queries
    on both sides, a probe that memorises states would look like one that reads them. So whole groups of queries are
    held out: those with the same first fact, see `probe_groups`.

    Args:
        model: any step model.
        split: the examples; those without the column are left out.
        column: classes, one token each, see `grok.circuits.examples.column`.
        steps: states; None means all.
        held_out: share of the groups that is held out, at least one.
        ridge: penalty λ of mean |y - xW|² + λ |W|².
        groups: `[N]` int64 group of each example; None means `probe_groups`.
        seed: selects the held-out groups and the shuffled labels, by what the groups are and not by their order.
        batch: most queries of one forward pass. All states, N · S · T · D numbers, are kept: choose examples.

    Raises:
        BadInput: for ground truth or states that do not exist, several tokens per example, or fewer than two groups.
    """
    if not 0 < held_out < 1:
        raise BadInput(Problem("held_out", held_out, "use a share above 0 and below 1"))
    if ridge <= 0:
        raise BadInput(Problem("ridge", ridge, "use a positive number"))
    chosen, tokens = step_range(model, steps), column_of(split, column)
    if tokens.shape[1] != 1:
        raise BadInput(Problem("column", column, f"has {tokens.shape[1]} tokens per query: use one, {column}[0]"))
    group = (probe_groups(split, column) if groups is None else groups).cpu()
    rows = (tokens[:, 0] >= 0).cpu().nonzero()[:, 0]
    test = _held_out(group[rows], held_out, seed)
    fit, check = rows[~test], rows[test]
    classes, label = torch.unique(tokens[fit, 0].cpu(), return_inverse=True)
    truth = tokens[check, 0].cpu()
    order = keyed_permutation(torch.arange(len(fit)), len(fit), "labels", seed)
    predicted = []
    for states in _states(model, split, chosen, batch):  # [N, T, D]
        trained, tested = (states[part].transpose(0, 1) for part in (fit, check))
        scores = _ridge_scores(trained, tested, torch.stack([label, label[order]]), len(classes), ridge)
        predicted.append(classes[scores.argmax(-1).cpu()].permute(0, 2, 1))  # [2, N, T]
    right = (torch.stack(predicted, 2) == truth[:, None, None]).float()
    return Probes(
        column=column,
        rows=check,
        groups=group[check],
        correct=right[0],
        control=right[1],
        unseen=int((~torch.isin(truth, classes)).sum()),
        trained=len(fit),
        steps=tuple(chosen),
        positions=split.positions,
    )


def probe_groups(split: Split, column: str) -> Tensor:
    """Which examples may share states and label, and so belong on one side: `[N]` int64.

    With known facts, the fact of the first hop, `truth["facts"][:, 0]`. Without them, the shortest beginning of the
    query that determines the column; if no class then has two of them, so that there would be nothing to generalise
    over (the beginning *is* the class, as for the token shown first), the next longer one that leaves some.
    """
    if "facts" in split.truth:
        return split.truth["facts"].view(len(split), -1)[:, 0]
    label = column_of(split, column)[:, 0].contiguous()
    prefix = keyed_hash("prefix", torch.zeros_like(label))
    for position in range(split.inputs.shape[1]):
        prefix = keyed_hash(prefix, split.inputs[:, position].contiguous())
        beginnings = len(torch.unique(prefix))
        both = len(torch.unique(torch.stack([prefix, label], 1), dim=0))
        if both == beginnings > len(torch.unique(label)):
            break
    return prefix


def _held_out(group: Tensor, share: float, seed: int) -> Tensor:
    """Whether each example's group is held out: `[N]` bool; of G groups about `share` · G, at least one, not all."""
    names, member = torch.unique(group, return_inverse=True)
    if len(names) < 2:
        fix = "two groups of queries or more are needed (by default: first facts), one to train on and one to test"
        raise BadInput(Problem("groups", len(names), fix))
    count = min(max(1, round(share * len(names))), len(names) - 1)
    first = keyed_hash("probe", seed, names).argsort()[:count]
    out = torch.zeros(len(names), dtype=torch.bool)
    out[first] = True
    return out[member]


def _states(model: StepModel, split: Split, steps: Sequence[int], batch: int) -> list[Tensor]:
    """`[N, T, D]` of every state, on the device of the model."""
    parts = []
    with analysing(model) as device:
        for piece in split.chunks(batch):
            here = piece.to(device)
            states = model.states(here.inputs, here.position_ids)
            parts.append([states[step][model.stream_at(step)] for step in steps])
    return [torch.cat(state) for state in zip(*parts, strict=True)]


def _ridge_scores(fit: Tensor, check: Tensor, labels: Tensor, classes: int, ridge: float) -> Tensor:
    """Scores `[L, T, n', C]` of examples `check` `[T, n', D]` by probes trained on `fit` `[T, n, D]`, one for each of
    `labels` `[L, n]`."""
    fit, check = fit.double(), check.double()
    mean, std = fit.mean(1, keepdim=True), fit.std(1, correction=0, keepdim=True)
    # A dimension that does not vary says nothing; its rounding noise must not be blown up to one.
    scale = torch.where(std > 1e-6 * (mean.abs() + std.amax(2, keepdim=True)), 1 / std, 0.0)
    x, z = (fit - mean) * scale, (check - mean) * scale
    y = torch.nn.functional.one_hot(labels.to(x.device), classes).double().transpose(0, 1).flatten(1)  # [n, L · C]
    base = y.mean(0)
    count, width = x.shape[1:]
    if width <= count:
        gram = x.transpose(1, 2) @ x + ridge * count * torch.eye(width, dtype=x.dtype, device=x.device)
        scores = z @ torch.linalg.solve(gram, x.transpose(1, 2) @ (y - base))
    else:  # the same by the smaller system: (XᵀX + λ)⁻¹ Xᵀ = Xᵀ (XXᵀ + λ)⁻¹
        gram = x @ x.transpose(1, 2) + ridge * count * torch.eye(count, dtype=x.dtype, device=x.device)
        scores = z @ (x.transpose(1, 2) @ torch.linalg.solve(gram, (y - base).expand(len(x), -1, -1)))
    by_label: Tensor = (scores + base).view(*z.shape[:2], -1, classes)
    return by_label.permute(2, 0, 1, 3)
