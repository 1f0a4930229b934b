"""Nodes of a model, what writes into the residual stream, and runs in which some of them write something else.

One mechanism does it all: a tap that replaces what some nodes write in some rows.

Shape legend: N example, n examples of a chunk, S set of nodes, T position, H head, K head width, D width.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from grok.circuits.examples import analysing
from grok.data.split import Split
from grok.errors import BadInput, Problem, insist
from grok.models import StepModel
from grok.models.steps import State, Tap, keeping

__all__ = [
    "Edge", "Node", "NodeSet", "first_positions", "hooks", "insist_on_nodes", "label", "masks_of", "node_of",
    "nodes_of", "place", "positions_shown", "record", "replacing", "run",
]  # fmt: skip


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


def node_of(model: StepModel, split: Split, name: str) -> Node:
    """The node whose `label` is `name`; raises `BadInput` if the model has none."""
    match = re.fullmatch(r"(\d+)\.(head\d+|mlp|step)@(.+)", name)
    if match is None or match[3] not in split.positions:
        fix = f"write STEP.head0@POSITION or STEP.mlp@POSITION; positions are {', '.join(split.positions)}"
        raise BadInput(Problem("nodes", name, fix))
    node = Node(int(match[1]), match[2], split.positions.index(match[3]))
    insist_on_nodes(model, split, [node])
    return node


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
    values: dict[str, Tensor] = {}
    keep = keeping(values, set(names))
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


def first_positions(split: Split, shown: int) -> Split:
    """The same queries without the positions from `shown` on, which cannot matter."""
    ids = None if split.position_ids is None else split.position_ids[:, :shown]
    return replace(split, inputs=split.inputs[:, :shown], positions=split.positions[:shown], position_ids=ids)
