"""What the answer is without some nodes or attention edges.

Every (set of nodes × example) is a row of one batch, which starts at the clean state before the earliest step involved.

Shape legend: N example, n examples of a chunk, S set of nodes, T position, D width, J token looked for (the answer, the
other query's answer).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args
from zlib import crc32

import torch
from torch import Tensor

from grok.circuits.counterfactuals import other_queries
from grok.circuits.examples import analysing, column
from grok.circuits.grid import Grid
from grok.circuits.nodes import (
    Edge,
    Node,
    NodeSet,
    first_positions,
    hooks,
    insist_on_nodes,
    label,
    masks_of,
    nodes_of,
    positions_shown,
    record,
    replacing,
    run,
)  # fmt: skip
from grok.circuits.patching import Counterfactual
from grok.circuits.reading import Reading, effect, picked, read
from grok.data.keyed import keyed_hash
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel
from grok.models.steps import State, Tap

__all__ = [
    "BATCH", "MEASURES", "Ablated", "Folded", "How", "ablate", "ablation", "both_answers", "edge_ablation",
    "insist_on_measure", "noisy", "query_hash", "random_change",
]  # fmt: skip

How = Literal["zero", "mean", "resample"]

MEASURES = ("changed", "accuracy", "loss", "logit", "probability", "flipped", "logit_difference")
"""`changed`: the predicted token changes. `accuracy`, `logit`, `probability`: by how much the answer's falls. `loss`:
by how much it rises. `flipped`: the prediction becomes the other query's answer. `logit_difference`: by how much
logit(answer) − logit(other query's answer) falls."""

BATCH = 4096


def random_change(change: Tensor, query: Tensor, *key: int) -> Tensor:
    """A random direction of the same size for every change `[n, …, D]`, a function of `query` `[n]` and `key`.

    The size is the Euclidean norm over the last dimension, in the space of the `change`.
    """
    index = torch.arange(change[0].numel(), device=change.device).view(change.shape[1:])
    bits = keyed_hash("noise", *key, query.view(-1, *(1,) * index.ndim), index)
    uniform = (((bits >> 11) & ((1 << 52) - 1)).double() + 0.5) / (1 << 52)
    normal: Tensor = torch.special.ndtri(uniform).to(change.dtype)
    size, drawn = (torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (change, normal))
    scaled: Tensor = normal * (size / drawn)
    return scaled


def noisy(clean: Mapping[str, Tensor], source: Mapping[str, Tensor], split: Split, seed: int) -> dict[str, Tensor]:
    """By hook, `clean` `[n, T, …, D]` plus a random change as large as that to `source`.

    As large in the value of the hook. What an MLP or a step writes is in the residual stream; a head's value is taken
    before its output projection, which may shrink a random change more, or less, than the real one.
    """
    query = query_hash(split)
    return {
        name: value + random_change(source[name] - value, query, seed, crc32(name.encode()))
        for name, value in clean.items()
    }


def query_hash(split: Split) -> Tensor:
    """`[N]` a hash of what each query shows, tokens or values."""
    return keyed_hash("query", *split.inputs.flatten(1).double().view(torch.int64).unbind(1))


def both_answers(split: Split, other: Counterfactual | None) -> Tensor:
    """`[N, 2]` the answer, and the other query's (-1 for none)."""
    answer = column(split, "answer")
    return torch.cat([answer, torch.full_like(answer, -1) if other is None else other.answer.to(answer)[:, None]], 1)


def insist_on_measure(measure: str) -> None:
    """Raise `BadInput` for a measure that does not exist."""
    if measure not in MEASURES:
        raise BadInput(Problem("measure", measure, f"use {', '.join(MEASURES)}"))


class Folded:
    """The clean run of n examples, and changed runs folded into the rows of one batch beside it.

    Args:
        model: any step model with token outputs.
        split: n examples.
        tokens: `[n, J]` to look for.
        names: hooks whose clean values `[n, T, …]` are kept in `values`.
    """

    def __init__(self, model: StepModel, split: Split, tokens: Tensor, names: Iterable[str]) -> None:
        self.model, self.at, self.tokens = model, split.at[:, :1], tokens
        self.states, self.values = record(model, split, names)

    def start(self, step: int, groups: int) -> State:
        """The clean state before `step`, `groups` times: `[S · n, T, D]`."""
        return {name: x.repeat(groups, *(1,) * (x.ndim - 1)) for name, x in self.states[step].items()}

    def changed(self, step: int, groups: int, tap: Tap) -> Reading:
        """The answer `[n, S, J]` if the rest of the clean run from `step` on goes through `tap`."""
        return self.read(run(self.model, self.start(step, groups), tap, step), groups)

    def read(self, state: State, groups: int = 1) -> Reading:
        """The answer `[n, S, J]` in a last state `[S · n, T, D]`."""
        answer = picked(self.model, state, self.at.repeat(groups, 1))
        reading = read(self.model.readout(answer)[:, 0].float(), self.tokens.repeat(groups, 1))
        return reading.map(lambda x: x.view(groups, -1, x.shape[-1]).transpose(0, 1))


@dataclass(frozen=True)
class Ablated:
    """The answers with and without each change.

    Args:
        tokens: `[N, 2]` the answer, and the other query's (-1 for none).
        clean: `[N, 1, 2]`.
        after: `[N, S, 2]`.
        exists: `[N]` bool, whether there is another query to resample from.
    """

    tokens: Tensor
    clean: Reading
    after: Reading
    exists: Tensor

    @property
    def correct(self) -> tuple[Tensor, Tensor]:
        """Whether the answer is predicted, without `[N, 1]` and with each change `[N, S]`: bool."""
        answer = self.tokens[:, :1]  # by the prediction and not the rank, which is 0 where all logits are equal
        return self.clean.top[..., 0] == answer, self.after.top[..., 0] == answer

    def effect(self, measure: str) -> Tensor:
        """`[N, S]`, see `MEASURES`; NaN where there is no other query or no other answer."""
        insist_on_measure(measure)
        values = effect(self.clean, self.after, self.tokens[:, None], measure)
        return values.masked_fill(~self.exists[:, None], torch.nan)


def ablate(
    model: StepModel,
    split: Split,
    sets: Sequence[NodeSet],
    how: How = "mean",
    other: Counterfactual | None = None,
    seed: int = 0,
    batch: int = BATCH,
    noise: bool = False,
    tokens: Tensor | None = None,
) -> Ablated:
    """The answers of N examples without the nodes of each of S sets; see `ablation`.

    Args:
        model: any step model with token outputs.
        split: the examples.
        sets: nodes or edges replaced together; an empty set replaces nothing.
        how: see `ablation`.
        other: see `ablation`.
        seed: see `ablation`.
        batch: most rows (set × example) of one forward pass; bounds memory.
        noise: instead of the replacement add a random change of the same size (see `noisy`): the floor.
        tokens: `[N, 2]` to look for; None means the answer and that of `other`.

    Raises:
        BadInput: for nodes or replacements that do not exist, or answers that are no tokens.
    """
    parts = [list(one) for one in sets]
    if not parts:
        raise BadInput(Problem("nodes", [], "give one or more"))
    insist_on_nodes(model, split, itertools.chain(*parts))
    if how not in get_args(How):
        raise BadInput(Problem("how", how, f"use {', '.join(get_args(How))}"))
    names = sorted({name for part in itertools.chain(*parts) for name in hooks(model, part)})
    if how == "resample" and other is None:
        other = other_queries(split, seed)[0]
    shown, tokens = positions_shown(model, split), both_answers(split, other) if tokens is None else tokens
    size, clean, after = max(1, min(batch, len(split))), [], []
    with analysing(model) as device:
        mean = _means(model, split, names, size) if how == "mean" else {}
        for start in range(0, len(split), size):
            rows = slice(start, start + size)
            piece = first_positions(split.take(rows), shown).to(device)
            chunk = Folded(model, piece, tokens[rows].to(device), names)
            source: Mapping[str, Tensor] = mean
            if how == "zero":
                source = {name: torch.zeros_like(value) for name, value in chunk.values.items()}
            elif other is not None and how == "resample":
                inputs = other.inputs[rows, :shown].to(device)
                source = record(model, replace(piece, inputs=inputs), names)[1]
            if noise:
                source = noisy(chunk.values, source, piece, seed)
            clean.append(chunk.read(chunk.states[-1]).map(Tensor.cpu))
            after.append(_without(chunk, parts, source, max(1, batch // len(piece))))
    everywhere = torch.ones(len(split), dtype=torch.bool)
    exists = other.exists.cpu() if other is not None and how == "resample" else everywhere
    return Ablated(tokens.cpu(), Reading.join(clean, torch.cat), Reading.join(after, torch.cat), exists)


def _means(model: StepModel, split: Split, names: Sequence[str], size: int) -> dict[str, Tensor]:
    """Mean value of each hook over all examples: `[1, T, …]`."""
    total: dict[str, Tensor] = {}
    for piece in split.chunks(size):
        shown = first_positions(piece, positions_shown(model, split)).to(next(model.parameters()).device)
        for name, value in record(model, shown, names)[1].items():
            total[name] = total.get(name, torch.zeros((), device=value.device)) + value.double().sum(0, keepdim=True)
            dtype = value.dtype
    return {name: (value / len(split)).to(dtype) for name, value in total.items()}


def _without(
    chunk: Folded, sets: Sequence[Sequence[Node | Edge]], source: Mapping[str, Tensor], groups: int
) -> Reading:
    """The answers `[n, S, J]` with each set replaced, `groups` sets per forward pass."""
    readings = []
    for first in range(0, len(sets), groups):
        part = sets[first : first + groups]
        start = min((node.step for nodes in part for node in nodes), default=len(chunk.states) - 1)
        tap = replacing(masks_of(chunk.model, part, chunk.values), source)
        readings.append(chunk.changed(start, len(part), tap).map(Tensor.cpu))
    return Reading.join(readings, lambda parts: torch.cat(parts, 1))


def ablation(
    model: StepModel,
    split: Split,
    nodes: Sequence[Node | NodeSet] | None = None,
    how: How = "mean",
    measure: str = "changed",
    other: Counterfactual | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Grid:
    """What each node does for the answer: the effect of replacing what it writes (Wang et al. 2023, section 2.1).

    The floor is a random change of the same size instead, which tells what the write says from what any push as hard
    would do. The size is that in the hook's value: of MLPs and steps what they write, but of a head what it gives to
    its output projection (`hook_z`), so that in the residual stream the two differ in size by what the projection makes
    of their directions. (A query with the same answer is no floor for a node: those that
    carry h to the first look-up have every right to break the answer when they carry another h.)

    Args:
        model: any step model with token outputs.
        split: N examples.
        nodes: nodes, or sets of nodes that are replaced together; None means all of `nodes_of`, one at a time.
        how: `zero`; `mean`, of the node over the examples given; `resample`, what it writes in another query.
        measure: one of `MEASURES`.
        other: of `resample`, the other queries, taken whole; None draws queries of the split with other answers
            (`other_queries`).
        seed: selects the draws.
        batch: most rows (set × example) of one forward pass; bounds memory.

    Returns:
        A grid with the axis `node`, labels as `2.head0@r1`, those of a set joined by ` + `.

    Raises:
        BadInput: for nodes, replacements or measures that do not exist, or answers that are no tokens.
    """
    insist_on_measure(measure)
    chosen: Sequence[Node | NodeSet] = nodes_of(model, split) if nodes is None else nodes
    sets = [[one] if isinstance(one, Node) else list(one) for one in chosen]
    with_floor = (ablate(model, split, sets, how, other, seed, batch, noise) for noise in (False, True))
    values, floor = (one.effect(measure) for one in with_floor)
    labels = tuple(" + ".join(label(split, part) for part in parts) or "nothing" for parts in sets)
    return Grid.of(f"ablation/{how}/{measure}", {"node": labels}, values, floor)


def edge_ablation(
    model: StepModel,
    split: Split,
    edges: Sequence[Edge],
    how: How = "mean",
    measure: str = "changed",
    other: Counterfactual | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Grid:
    """What each attention edge does for the answer: one entry of the pattern replaced, the others as they were.

    The floor takes the entry from another query with the same answer, and looks for the same two answers; NaN if no
    query has one. See `ablation` for the arguments.

    Args:
        model: any step model with heads.
        split: N examples.
        edges: entries of attention patterns, replaced one at a time.
        how: see `ablation`.
        measure: see `ablation`.
        other: see `ablation`.
        seed: see `ablation`.
        batch: see `ablation`.

    Returns:
        A grid with the axis `edge`, labels as `2.head0:r1→r2`.

    Raises:
        BadInput: as `ablation`.
    """
    insist_on_measure(measure)
    sets = [[edge] for edge in edges]
    replaced = ablate(model, split, sets, how, other, seed, batch)
    same = other_queries(split, seed, same_answer=True)[0]
    floor = ablate(model, split, sets, "resample", same, seed, batch, tokens=replaced.tokens).effect(measure)
    axes = {"edge": tuple(label(split, edge) for edge in edges)}
    return Grid.of(f"edge_ablation/{how}/{measure}", axes, replaced.effect(measure), floor)
