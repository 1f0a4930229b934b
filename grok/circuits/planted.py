"""Transformers whose weights are written by hand, to test every analysis on a circuit that is known (Lindner et al.
2023, Tracr: compiled transformers as a laboratory for interpretability).

Each is an ordinary `LoopedTransformer` of four layers and two heads for two-hop queries h r1 r2 → t (`NextToken`
encodings). The residual stream is a sum of one-hot subspaces:

    entity, relation   the token shown           h       the entity shown two positions back
    position           where it is shown         out     the entity that is read out
    head, r1           the token one back        carry   `out` of the position one back

Attention looks at one position with weight exactly 1; an MLP neuron is the AND of the dimensions that it reads. So
float32 has nothing to round, and what a circuit does not use is exactly zero.

Shape legend: E entity, R relation, Q query or fact, P position, K head width, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from grok.circuits.nodes import Node
from grok.data.facts import AtomicFacts
from grok.errors import BadInput, Problem, insist
from grok.models import LoopedTransformer
from grok.models.layers import MLP
from grok.models.transformer import Block
from grok.task import Task

__all__ = ["Circuit", "Planted", "compositions", "planted"]

Circuit = Literal["bridge", "memory", "both"]

_R1, _R2 = 1, 2  # positions
_STEPS, _HEADS = 4, 2
_EVERY = tuple(range(_STEPS + 1))
_SHARP = 1000.0  # attention score of the position looked at, the others have 0: exp(-1000) is exactly 0
_SHOWN = 0.01  # share of the gain with which the token shown is read out; answers of any weight above it outrank it

_BRIDGE = (Node(0, "head0", _R1), Node(1, "mlp", _R1), Node(2, "head0", _R2), Node(3, "mlp", _R2))
_MEMORY = (Node(0, "head0", _R2), Node(0, "head1", _R2), Node(1, "mlp", _R2))


@dataclass(frozen=True)
class Planted:
    """A model and the circuit that was written into it.

    Args:
        model: float32, in evaluation mode.
        circuit: which circuit.
        table: share of the answer's logit that the table of memorised queries gives; the bridge gives the rest.
        gain: logit of an answer.
        readable: by position, the i of the states S[i, p] at which the lens reads the bridge.
        decisive: by position, the i of the states S[i, p] that decide the answer: patched with those of a
            counterfactual query that differs in this token and has another answer, the answer becomes that one (in
            `both` as long as the table holds the counterfactual queries).
        nodes: whatever the answer depends on; every other node can be ablated without any effect on the answer.
    """

    model: LoopedTransformer
    circuit: Circuit
    table: float
    gain: float
    readable: Mapping[str, tuple[int, ...]]
    decisive: Mapping[str, tuple[int, ...]]
    nodes: tuple[Node, ...]


def planted(
    circuit: Circuit,
    task: Task,
    facts: AtomicFacts,
    mix: float = 0.25,
    queries: Tensor | None = None,
    gain: float = 20.0,
) -> Planted:
    """A transformer that answers two-hop queries by a known circuit.

    `bridge`: step 0 copies h to r1; step 1 looks the fact (h, r1) up and writes the bridge into `out`; step 2 copies it
    to r2; step 3 looks the fact (bridge, r2) up. It answers atomic queries too. `memory`: step 0 copies h and r1 to r2;
    step 1 looks the whole query up; there is no bridge anywhere. `both`: the two side by side.

    Args:
        circuit: which one.
        task: sizes; the answer is read at the third position, as `NextToken` does.
        facts: all atomic facts, in tokens.
        mix: w of `both`: the table writes w times the answer and the circuit 1 - w times. A patched bridge with the
            answer t' leaves the logits w · gain for t and (1 - w) · gain for t', so t' wins if w < 0.5 (0.5: a tie).
        queries: `[Q, 3]` tokens h, r1, r2 of the memorised queries; None means all compositions of two facts.
        gain: logit of an answer.

    Raises:
        BadInput: for an unknown circuit, a mix outside (0, 1), a gain that is not positive, a task or facts without
            room for the circuit, or memorised queries that have no answer.
    """
    insist(_problems(circuit, task, facts, mix, gain))
    facts = facts.to("cpu")
    known = _checked(compositions(facts) if queries is None else torch.unique(queries.cpu(), dim=0), facts)
    table = {"bridge": 0.0, "memory": 1.0, "both": mix}[circuit]
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # the initial weights draw random numbers for nothing
        builder = _Builder(task, facts, 0 if circuit == "bridge" else len(known))
        builder.read_out(gain)
        if circuit != "memory":
            builder.bridge(1 - table)
        if circuit != "bridge":
            builder.memory(known, table)
    return Planted(
        model=builder.model.eval(),
        circuit=circuit,
        table=table,
        gain=gain,
        readable={"h": (), "r1": () if circuit == "memory" else (2, 3, 4), "r2": ()},
        decisive={"h": (0,), "r1": (0, 1, 2) if table < 0.5 else (0,), "r2": _EVERY},
        nodes={"bridge": _BRIDGE, "memory": _MEMORY, "both": tuple(sorted(_BRIDGE + _MEMORY))}[circuit],
    )


def compositions(facts: AtomicFacts) -> Tensor:
    """Tokens h, r1, r2 of every two-hop query that the facts answer: `[Q, 3]`."""
    first, second = (facts.tail[:, None] == facts.head).nonzero().unbind(1)
    return torch.stack([facts.head[first], facts.relation[first], facts.relation[second]], 1)


def _problems(circuit: str, task: Task, facts: AtomicFacts, mix: float, gain: float) -> list[Problem]:
    problems = []
    if circuit not in ("bridge", "memory", "both"):
        problems.append(Problem("circuit", circuit, "use bridge, memory or both"))
    if not 0 < mix < 1:
        problems.append(Problem("mix", mix, "use a share between 0 (that is `bridge`) and 1 (that is `memory`)"))
    if not gain > 0:
        problems.append(Problem("gain", gain, "use a positive number"))
    if task.tokens is None or task.outputs != task.tokens or task.positions < 3:
        problems.append(Problem("task", task, "tokens in and out and three positions, h, r1, r2, are needed"))
    elif not len(facts.head):
        problems.append(Problem("facts", 0, "give one fact or more"))
    else:
        largest = int(torch.stack([facts.head.max(), facts.relation.max(), facts.tail.max()]).max())
        if largest >= task.tokens:
            problems.append(Problem("facts", largest, f"no such token: the task has {task.tokens}"))
    return problems


def _checked(queries: Tensor, facts: AtomicFacts) -> Tensor:
    """The same queries, if all have an answer."""
    if queries.ndim != 2 or queries.shape[1] != 3:
        raise BadInput(Problem("queries", tuple(queries.shape), "give a tensor [Q, 3] of tokens h, r1, r2"))
    h, r1, r2 = queries.unbind(1)
    unanswered = queries[facts.follow(facts.follow(h, r1), r2) < 0]
    if len(unanswered):
        fix = f"{len(unanswered)} of {len(queries)} have no answer in the facts, this one first"
        raise BadInput(Problem("queries", unanswered[0].tolist(), fix))
    return queries


class _Builder:
    """An all-zero transformer into which circuits are written; `dims[subspace]` are dimensions of the stream."""

    def __init__(self, task: Task, facts: AtomicFacts, queries: int) -> None:
        self.facts = facts
        self.entities, self.relations = torch.unique(torch.cat([facts.head, facts.tail])), torch.unique(facts.relation)
        e, r, p = len(self.entities), len(self.relations), task.positions
        sizes = {"entity": e, "relation": r, "position": p, "head": e, "r1": r, "h": e, "out": e, "carry": e}
        dims = torch.split(torch.arange(sum(sizes.values())), list(sizes.values()))
        self.dims = dict(zip(sizes, dims, strict=True))
        self.model = LoopedTransformer(
            task,
            # A head needs a key per position, and room for the entity and the relation that it copies.
            width=_HEADS * max(math.ceil(sum(sizes.values()) / _HEADS), p, e + r),
            layers=_STEPS,
            heads=_HEADS,
            hidden=len(facts.head) + queries,
            activation="relu",
            norm="none",
            tied=False,
        ).float()
        for parameter in self.model.parameters():
            parameter.zero_()
        embedding = self.model.get_parameter("embedding.weight")
        embedding[self.entities, self.dims["entity"]] = 1
        embedding[self.relations, self.dims["relation"]] = 1
        self.model.get_parameter("position.weight")[torch.arange(p), self.dims["position"]] = 1

    def read_out(self, gain: float) -> None:
        """`out`, and faintly the token shown, so that a state without an answer says what stands there."""
        weight = self.model.get_parameter("head.weight")
        weight[self.entities, self.dims["out"]] = gain
        weight[self.entities, self.dims["entity"]] = _SHOWN * gain
        weight[self.relations, self.dims["relation"]] = _SHOWN * gain

    def bridge(self, weight: float) -> None:
        """Two look-ups of one fact each, the second of which writes `weight` times the answer."""
        head, tail = self._entity(self.facts.head), self._entity(self.facts.tail)
        relation = self._relation(self.facts.relation)
        self._copy(0, 0, 1, "entity", "head")
        self._look_up(1, 0, {"head": head, "relation": relation}, tail, 1.0)
        self._copy(2, 0, 1, "out", "carry")
        self._look_up(3, 0, {"carry": head, "relation": relation}, tail, weight)

    def memory(self, queries: Tensor, weight: float) -> None:
        """One look-up of the whole query, which writes `weight` times the answer; neurons after those of the facts."""
        h, r1, r2 = queries.T.contiguous()
        answer = self._entity(self.facts.follow(self.facts.follow(h, r1), r2))
        self._copy(0, 0, 1, "relation", "r1")
        self._copy(0, 1, 2, "entity", "h")
        reads = {"h": self._entity(h), "r1": self._relation(r1), "relation": self._relation(r2)}
        self._look_up(1, len(self.facts.head), reads, answer, weight)

    def _entity(self, tokens: Tensor) -> Tensor:
        return torch.searchsorted(self.entities, tokens)

    def _relation(self, tokens: Tensor) -> Tensor:
        return torch.searchsorted(self.relations, tokens)

    def _block(self, step: int) -> Block:
        return cast(Block, self.model.blocks[step])

    def _copy(self, step: int, head: int, back: int, read: str, write: str) -> None:
        """Attend to the position `back` places back, or the first one, and copy its subspace `read` into `write`."""
        attention = self._block(step).attn
        size = attention.width // _HEADS
        query, key, value = attention.qkv.weight.view(3, _HEADS, size, -1)[:, head]  # [K, D] each
        position = self.dims["position"]
        place = torch.arange(len(position))
        query[(place - back).clamp(min=0), position] = _SHARP * math.sqrt(size)
        key[place, position] = 1
        slot = torch.arange(len(self.dims[read])) + (len(self.entities) if read == "relation" else 0)
        value[slot, self.dims[read]] = 1
        cast(nn.Linear, attention.out).weight[self.dims[write], head * size + slot] = 1

    def _look_up(self, step: int, first: int, reads: Mapping[str, Tensor], tail: Tensor, weight: float) -> None:
        """Neurons from `first` on: the q-th is on where each subspace holds its `reads` `[Q]`, and writes `tail[q]`."""
        mlp = cast(MLP, self._block(step).mlp)
        neuron = torch.arange(first, first + len(tail))
        for subspace, index in reads.items():
            mlp.up.weight[neuron, self.dims[subspace][index]] = 1
        mlp.up.bias[neuron] = 1.0 - len(reads)
        mlp.out.weight[self.dims["out"][tail], neuron] = weight
