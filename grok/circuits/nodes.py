"""Nodes of a model, what writes into the residual stream, and what the answer is without them.

One mechanism does it all: a tap that replaces what some nodes write in some rows. Every (set of nodes × example) is a
row of one batch, which starts from the clean state before the earliest step involved.

Shape legend: N example, n examples of a chunk, S set of nodes, T position, H head, K head width, D width,
J token looked for (the answer, the other query's answer).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias, get_args
from zlib import crc32

import torch
from torch import Tensor

from grok.circuits.counterfactuals import other_queries
from grok.circuits.examples import analysing, column
from grok.circuits.grid import Grid
from grok.circuits.patching import Counterfactual
from grok.circuits.reading import Reading, read
from grok.data.keyed import keyed_hash
from grok.data.split import Split
from grok.errors import BadInput, Problem, insist
from grok.models import StepModel
from grok.models.steps import State, Tap, pick

__all__ = [
    "MEASURES", "Ablated", "Edge", "Folded", "How", "Node", "NodeSet", "ablate", "ablation", "both_answers",
    "edge_ablation", "first_positions", "hooks", "insist_on_measure", "insist_on_nodes", "label", "masks_of",
    "nodes_of", "noisy", "place", "positions_shown", "query_hash", "random_change", "record", "replacing", "run",
]  # fmt: skip

How = Literal["zero", "mean", "resample"]

MEASURES = ("changed", "accuracy", "loss", "logit", "probability", "flipped", "logit_difference")
"""`changed`: the predicted token changes. `accuracy`, `logit`, `probability`: by how much the answer's falls. `loss`:
by how much it rises. `flipped`: the prediction becomes the other query's answer. `logit_difference`: by how much
logit(answer) − logit(other query's answer) falls."""

BATCH = 4096


class Node(NamedTuple):
    """One write into the residual stream: `component` is "head0", "head1", … | "mlp" | "step" (a whole core call)."""

    step: int
    component: str
    position: int


class Edge(NamedTuple):
    """One entry of an attention pattern: what `head` moves from position `source` to position `target`."""

    step: int
    head: int
    source: int
    target: int


NodeSet: TypeAlias = Iterable["Node | Edge"]


def label(split: Split, part: Node | Edge) -> str:
    """`2.head0@r1` for a node, `2.head0:h→r1` for an edge."""
    if isinstance(part, Node):
        return f"{part.step}.{part.component}@{split.positions[part.position]}"
    return f"{part.step}.head{part.head}:{split.positions[part.source]}→{split.positions[part.target]}"


def positions_shown(model: StepModel, split: Split) -> int:
    """How many positions can matter to the answer: of a causal model those up to the latest answer."""
    if not len(split):
        raise BadInput(Problem("examples", 0, "give one query or more"))
    return int(split.at[:, 0].max()) + 1 if model.causal else split.inputs.shape[1]


def nodes_of(model: StepModel, split: Split) -> list[Node]:
    """All nodes that can matter to the answer at slot 0, by step, position, heads before MLP.

    Every head and MLP of every step, at every position that the answer can see; in the last step only where some answer
    is read. A step that shows neither to a tap is one node, `step`.
    """
    shown, answers = positions_shown(model, split), set(split.at[:, 0].tolist())
    return [
        Node(step, component, position)
        for step, parts in enumerate(_components(model, split))
        for position in range(shown)
        if step < len(model.steps) - 1 or position in answers
        for component in parts
    ]


def _components(model: StepModel, split: Split) -> list[list[str]]:
    """Heads and MLP of every step, as a tap sees them in one forward pass; a hook that fires twice is no node."""
    heads: dict[str, int] = {}
    fired: Counter[str] = Counter()

    def tap(name: str, value: Tensor) -> Tensor:
        fired[name] += 1
        heads[name] = value.shape[2] if name.endswith("attn.hook_z") else 0
        return value

    with analysing(model) as device:
        one = split.take(slice(0, 1)).to(device)
        model(one.inputs, position_ids=one.position_ids, tap=tap)
    parts = []
    for step in range(len(model.steps)):
        z, mlp = f"steps.{step}.attn.hook_z", f"steps.{step}.hook_mlp_out"
        names = [f"head{head}" for head in range(heads[z])] if fired[z] == 1 else []
        parts.append([*names, *["mlp"] * (fired[mlp] == 1)] or ["step"])
    return parts


def insist_on_nodes(model: StepModel, split: Split, parts: Iterable[Node | Edge]) -> None:
    """Raise `BadInput` for nodes and edges that the model does not have, naming those it has."""
    components, shown = _components(model, split), positions_shown(model, split)
    there = "; ".join(f"step {step} has {', '.join(names)}" for step, names in enumerate(components))
    problems = []
    for part in dict.fromkeys(parts):
        places = (part.position,) if isinstance(part, Node) else (part.source, part.target)
        component = part.component if isinstance(part, Node) else f"head{part.head}"
        known = [*components[part.step], *["step"] * isinstance(part, Node)] if 0 <= part.step < len(components) else []
        if component not in known or not all(0 <= place < shown for place in places):
            fix = f"no such node; {there}; positions are 0 to {shown - 1}"
            problems.append(Problem("node" if isinstance(part, Node) else "edge", tuple(part), fix))
    insist(problems[:1])


def hooks(model: StepModel, part: Node | Edge) -> list[str]:
    """Names under which `run` gives a tap what the node writes; of a whole step, one per stream."""
    if isinstance(part, Edge):
        return [f"steps.{part.step}.attn.hook_pattern"]
    if part.component == "step":
        return [f"steps.{part.step}.write.{stream}" for stream in model.streams]
    return [f"steps.{part.step}.{'hook_mlp_out' if part.component == 'mlp' else 'attn.hook_z'}"]


def place(part: Node | Edge) -> tuple[int, ...]:
    """Where the node is in the value of its hooks, without the example: (position, head), or (head, to, from)."""
    if isinstance(part, Edge):
        return part.head, part.target, part.source
    head = part.component.startswith("head")
    return (part.position, int(part.component.removeprefix("head"))) if head else (part.position,)


def run(model: StepModel, state: State, tap: Tap, start: int = 0, stop: int | None = None) -> State:
    """As `StepModel.run`, but the tap is also given what each step adds to each stream: `steps.{i}.write.{stream}`."""
    for index in range(start, len(model.steps) if stop is None else stop):
        before, state = state, dict(model.run(state, index, index + 1, tap=tap))
        for name in model.streams:
            added = state[name] - before[name]
            written = tap(f"steps.{index}.write.{name}", added)
            if written is not added:  # an untouched state stays the same to the bit
                state[name] = before[name] + written
    return state


def record(model: StepModel, split: Split, names: Iterable[str]) -> tuple[list[State], dict[str, Tensor]]:
    """States S[0] … S[n] `[n, T, D]`, and the values of the hooks `names` `[n, T, …]`."""
    wanted, values = set(names), {}

    def keep(name: str, value: Tensor) -> Tensor:
        if name in wanted:
            values[name] = value
        return value

    states: list[State] = [model.embed(split.inputs, split.position_ids)]
    for index in range(len(model.steps)):
        states.append(run(model, states[-1], keep, index, index + 1))
    return states, values


def replacing(masks: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> Tap:
    """A tap that puts `source` `[n, T, …]` (or `[S, n, T, …]`) where `masks` `[S, T, …]` of the hook say so."""

    def tap(name: str, value: Tensor) -> Tensor:
        if name not in masks:
            return value
        mask = masks[name]
        return torch.where(mask[:, None], source[name], value.reshape(len(mask), -1, *value.shape[1:])).flatten(0, 1)

    return tap


def masks_of(
    model: StepModel, sets: Sequence[Sequence[Node | Edge]], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """By hook, where the nodes of each set are: bool `[S, T, 1]`, `[S, T, H, 1]`, or `[S, H, T, T]` of edges."""
    masks: dict[str, Tensor] = {}
    for index, parts in enumerate(sets):
        for part in parts:
            for name in hooks(model, part):
                shape = values[name].shape[1:] if isinstance(part, Edge) else (*values[name].shape[1:-1], 1)
                mask = masks.setdefault(name, torch.zeros(len(sets), *shape, dtype=torch.bool))
                mask[(index, *place(part))] = True
    return {name: mask.to(values[name].device) for name, mask in masks.items()}


def random_change(change: Tensor, query: Tensor, *key: int) -> Tensor:
    """A random direction of the same size for every change `[n, …, D]`, a function of `query` `[n]` and `key`."""
    index = torch.arange(change[0].numel(), device=change.device).view(change.shape[1:])
    bits = keyed_hash("noise", *key, query.view(-1, *(1,) * index.ndim), index)
    uniform = (((bits >> 11) & ((1 << 52) - 1)).double() + 0.5) / (1 << 52)
    normal: Tensor = torch.special.ndtri(uniform).to(change.dtype)
    size, drawn = (torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (change, normal))
    scaled: Tensor = normal * (size / drawn)
    return scaled


def noisy(clean: Mapping[str, Tensor], source: Mapping[str, Tensor], split: Split, seed: int) -> dict[str, Tensor]:
    """By hook, `clean` `[n, T, …, D]` plus a random change as large as that to `source`."""
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


def first_positions(split: Split, shown: int) -> Split:
    """The same queries without the positions from `shown` on, which cannot matter."""
    ids = None if split.position_ids is None else split.position_ids[:, :shown]
    return replace(split, inputs=split.inputs[:, :shown], positions=split.positions[:shown], position_ids=ids)


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
        answer = {name: pick(x, self.at.repeat(groups, 1)) for name, x in state.items()}
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
        clean, after = self.clean, self.after
        if measure == "changed":
            values = (after.top[..., 0] != clean.top[..., 0]).float()
        elif measure == "accuracy":
            values = self.correct[0].float() - self.correct[1].float()
        elif measure == "loss":  # a probability of 0 counts as the smallest float32
            smallest = torch.finfo(torch.float32).tiny
            values = clean.probability[..., 0].clamp(smallest).log() - after.probability[..., 0].clamp(smallest).log()
        elif measure in ("logit", "probability"):
            values = getattr(clean, measure)[..., 0] - getattr(after, measure)[..., 0]
        elif measure == "flipped":
            values = (after.top[..., 0] == self.tokens[:, 1:]).float().masked_fill(self.tokens[:, 1:] < 0, torch.nan)
        else:
            insist_on_measure(measure)
            values = clean.logit[..., 0] - clean.logit[..., 1] - (after.logit[..., 0] - after.logit[..., 1])
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
        noise: instead of the replacement add a random change of the same size: the floor.

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
    shown, tokens = positions_shown(model, split), both_answers(split, other)
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

    The floor is the same with a random change of the same size added to what the node writes, which tells what the
    write says from what any push as hard would do. (A query with the same answer is no floor for a node: those that
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

    The floor takes the entry from another query with the same answer; NaN if no query has one. See `ablation` for the
    arguments.

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
    values = ablate(model, split, sets, how, other, seed, batch).effect(measure)
    same = other_queries(split, seed, same_answer=True)[0]
    floor = ablate(model, split, sets, "resample", same, seed, batch).effect(measure)
    axes = {"edge": tuple(label(split, edge) for edge in edges)}
    return Grid.of(f"edge_ablation/{how}/{measure}", axes, values, floor)
