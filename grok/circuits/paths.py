"""Path patching: which node acts through which.

Shape legend: N example, n examples of a chunk, S sender, R receiver, T position, H head, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from zlib import crc32

import torch
from torch import Tensor

from grok.circuits.ablations import (
    BATCH,
    Ablated,
    Folded,
    both_answers,
    insist_on_measure,
    query_hash,
    random_change,
)
from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.circuits.nodes import (
    Node,
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
)
from grok.circuits.patching import Counterfactual
from grok.circuits.reading import Reading
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel
from grok.models.steps import State, keeping

__all__ = ["LOGITS", "path_patching"]

LOGITS = "logits"
"""The receiver of direct effects: the read-out at the answer's position."""


def path_patching(
    model: StepModel,
    split: Split,
    counterfactual: Counterfactual,
    senders: Sequence[Node] | None = None,
    receivers: Sequence[Node | str] | None = None,
    measure: str = "logit_difference",
    floor: bool = True,
    seed: int = 0,
    batch: int = BATCH,
) -> Grid:
    """The effect of each direct path sender → receiver (Wang et al. 2023, section 3.1; Goldowsky-Dill et al. 2023).

    What the sender writes in the counterfactual run minus what it writes in the clean run is added to the receiver's
    input alone: a head sees another `hook_resid_pre`, at all positions that it attends to; an MLP another
    `hook_resid_mid`; a whole step another state; `logits` another last state. All else is clean, and what the receiver
    then writes is put into the clean run. Of a model that re-embeds between steps, only the path past the re-embedding
    counts for heads and MLPs.

    Args:
        model: any step model with token outputs.
        split: N examples.
        counterfactual: the other queries, taken whole (its `positions` do not matter).
        senders: None means all of `nodes_of`.
        receivers: nodes or `"logits"`; None means all of `nodes_of` and the logits.
        measure: one of `grok.circuits.ablations.MEASURES`.
        floor: also send a random change of the same size: the floor, at twice the cost; without it NaN.
        seed: selects the random changes.
        batch: most rows (sender × example) of one forward pass; bounds memory, beside the effect of every path on every
            example, which is kept: N · S · R float32 numbers, twice as many with the floor.

    Returns:
        A grid sender × receiver; NaN where there is no direct path (the receiver comes first or cannot see the sender).

    Raises:
        BadInput: for nodes or measures that do not exist, or answers that are no tokens.
    """
    insist_on_measure(measure)
    nodes = nodes_of(model, split)
    sending = nodes if senders is None else list(senders)
    receiving: list[Node | str] = [*nodes, LOGITS] if receivers is None else list(receivers)
    for one in receiving:
        if not isinstance(one, Node) and one != LOGITS:
            raise BadInput(Problem("receivers", one, f"use nodes, or {LOGITS!r} for the read-out"))
    nodes_only = [one for one in receiving if isinstance(one, Node)]
    insist_on_nodes(model, split, [*sending, *nodes_only])
    if len(model.streams) > 1 and any(node.component != "step" for node in [*sending, *nodes_only]):
        fix = "only whole steps (component step) send and receive, as a part does not say into which stream it writes"
        raise BadInput(Problem("senders", model.streams, fix))
    if not sending or not receiving:
        raise BadInput(Problem("senders" if receiving else "receivers", [], "give one or more"))
    values = torch.full((1 + floor, len(split), len(sending), len(receiving)), torch.nan)
    tokens, size, shown = both_answers(split, counterfactual), min(batch, len(split)), positions_shown(model, split)
    with analysing(model) as device:
        for start in range(0, len(split), size):
            rows = slice(start, start + size)
            piece, other = first_positions(split.take(rows), shown).to(device), counterfactual.take(rows)
            chunk = _Paths(model, piece, other, tokens[rows], [*sending, *nodes_only])
            groups = batch // size
            for first in range(0, len(sending), groups):
                part = slice(first, first + groups)
                changes = chunk.changes(sending[part])
                values[0, rows, part] = _effects(chunk, sending[part], receiving, changes, measure)
                if floor:
                    shaken = chunk.shaken(changes, sending[part], seed)
                    values[1, rows, part] = _effects(chunk, sending[part], receiving, shaken, measure)
    axes = {
        "sender": tuple(label(split, node) for node in sending),
        "receiver": tuple(label(split, one) if isinstance(one, Node) else one for one in receiving),
    }
    return Grid.of(f"path_patching/{measure}", axes, values[0], values[1] if floor else None)


def _input(receiver: Node | str) -> tuple[int, str]:
    """Step and name of the value that the receiver reads."""
    if not isinstance(receiver, Node):
        return -1, LOGITS
    names = {"mlp": "hook_resid_mid", "step": "state"}
    return receiver.step, f"steps.{receiver.step}.{names.get(receiver.component, 'hook_resid_pre')}"


class _Paths:
    """Clean and counterfactual run of n examples.

    Args:
        model: any step model.
        split: n examples, on the device of the model, without positions that cannot matter.
        counterfactual: of the same examples.
        tokens: `[n, 2]` both answers.
        nodes: senders and receivers.
    """

    def __init__(
        self,
        model: StepModel,
        split: Split,
        counterfactual: Counterfactual,
        tokens: Tensor,
        nodes: Sequence[Node],
    ) -> None:
        written = [f"steps.{node.step}.hook_attn_out" for node in nodes if node.component.startswith("head")]
        names = {*written, *(name for node in nodes for name in hooks(model, node))}
        self.model, self.query, self.at = model, query_hash(split), split.at[:, 0].cpu()
        self.clean = Folded(model, split, tokens.to(split.inputs.device), names)
        inputs = counterfactual.inputs[:, : split.inputs.shape[1]].to(split.inputs.device)
        self.other = record(model, replace(split, inputs=inputs), names)[1]
        self.tokens, self.exists = tokens.cpu(), counterfactual.exists.cpu()
        self.answer = self.clean.read(self.clean.states[-1]).map(Tensor.cpu)

    def changes(self, senders: Sequence[Node]) -> dict[str, Tensor]:
        """By stream, what each sender writes in the counterfactual run minus what it writes in the clean run:
        `[S, n, D]`.
        """
        zero = {name: torch.zeros_like(self.clean.states[0][name][:, 0]) for name in self.model.streams}
        each = [{**zero, **self._change(sender)} for sender in senders]
        return {name: torch.stack([one[name] for one in each]) for name in zero}

    def _change(self, sender: Node) -> dict[str, Tensor]:
        """`[n, D]` of one sender; a head's comes from one step in which nothing but the head is replaced."""
        clean, at = self.clean.values, sender.position
        if sender.component == "step":
            names = zip(self.model.streams, hooks(self.model, sender), strict=True)
            return {stream: self.other[name][:, at] - clean[name][:, at] for stream, name in names}
        name = hooks(self.model, sender)[0]
        if sender.component == "mlp":
            return {"resid": self.other[name][:, at] - clean[name][:, at]}
        swap, written = (
            replacing(masks_of(self.model, [[sender]], clean), self.other),
            f"steps.{sender.step}.hook_attn_out",
        )
        kept: dict[str, Tensor] = {}
        run(self.model, self.clean.states[sender.step], keeping(kept, [written], swap), sender.step, sender.step + 1)
        return {"resid": kept[written][:, at] - clean[written][:, at]}

    def shaken(self, changes: Mapping[str, Tensor], senders: Sequence[Node], seed: int) -> dict[str, Tensor]:
        """Random changes of the same size."""
        keys = {name: [crc32(f"{name} {tuple(sender)}".encode()) for sender in senders] for name in changes}
        return {
            name: torch.stack(
                [random_change(one, self.query, seed, key) for one, key in zip(change, keys[name], strict=True)]
            )
            for name, change in changes.items()
        }

    def is_path(self, sender: Node, receiver: Node | str) -> Tensor:
        """For which examples the sender comes before the receiver, where it can see it: `[n]` bool."""
        if not isinstance(receiver, Node):
            return self.at == sender.position
        earlier = sender.step < receiver.step
        if sender.step == receiver.step:
            earlier = sender.component.startswith("head") and receiver.component == "mlp"
        if receiver.component == "mlp":
            seen = sender.position == receiver.position
        else:
            seen = sender.position <= receiver.position or not self.model.causal
        return torch.full_like(self.at, earlier and seen, dtype=torch.bool)


class _Sent:
    """What some senders send, and what becomes of it.

    Args:
        paths: the examples.
        senders: S of them.
        changes: by stream `[S, n, D]`, what each sends.
    """

    def __init__(self, paths: _Paths, senders: Sequence[Node], changes: Mapping[str, Tensor]) -> None:
        self.paths, self.senders = paths, senders
        positions = torch.tensor([sender.position for sender in senders])
        self.added = {
            name: change.new_zeros(*change.shape[:2], paths.clean.states[0][name].shape[1], change.shape[2])
            for name, change in changes.items()
        }  # [S, n, T, D]
        for name, change in changes.items():
            self.added[name][torch.arange(len(senders)), :, positions] = change
        self._input: tuple[int, str] | None = None  # the input of the last receiver: all that read it share one run
        self._written: dict[str, Tensor] = {}

    def effect(self, receiver: Node | str, measure: str) -> Tensor:
        """`[n, S]`, NaN where there is no path."""
        paths = self.paths
        open_ = torch.stack([paths.is_path(sender, receiver) for sender in self.senders], 1)
        values, chosen = torch.full(open_.shape, torch.nan), open_.any(0).nonzero()[:, 0].tolist()
        if chosen:
            after = self._through(receiver, chosen) if isinstance(receiver, Node) else self._direct(chosen)
            outcome = Ablated(paths.tokens, paths.answer, after.map(Tensor.cpu), paths.exists)
            values[:, chosen] = outcome.effect(measure)
        return values.masked_fill(~open_, torch.nan)

    def _direct(self, chosen: Sequence[int]) -> Reading:
        """The answer if the last state is changed."""
        clean = self.paths.clean
        return clean.read(self._changed(len(clean.states) - 1, chosen), len(chosen))

    def _through(self, receiver: Node, chosen: Sequence[int]) -> Reading:
        """The answer if the receiver writes what it makes of another input."""
        paths = self.paths
        if self._input != _input(receiver):
            self._input, self._written = _input(receiver), self._outputs(receiver)
        masks = masks_of(paths.model, [[receiver]] * len(chosen), paths.clean.values)
        source = {name: self._written[name][chosen] for name in masks}
        return paths.clean.changed(receiver.step, len(chosen), replacing(masks, source))

    def _outputs(self, receiver: Node) -> dict[str, Tensor]:
        """What all heads, or the MLP, of the receiver's step write if each sender changes what is read: `[S, n, …]`."""
        paths, (step, name) = self.paths, _input(receiver)
        every = range(len(self.senders))
        whole = receiver.component == "step"
        state = self._changed(step, every) if whole else paths.clean.start(step, len(self.senders))

        def add(hook: str, value: Tensor) -> Tensor:
            return value + self.added["resid"].flatten(0, 1) if hook == name else value

        kept: dict[str, Tensor] = {}
        run(paths.model, state, keeping(kept, hooks(paths.model, receiver), add), step, step + 1)
        return {hook: value.reshape(len(self.senders), -1, *value.shape[1:]) for hook, value in kept.items()}

    def _changed(self, step: int, chosen: Sequence[int]) -> State:
        """The clean state before `step` with each sender's change."""
        state = dict(self.paths.clean.start(step, len(chosen)))
        for name, added in self.added.items():
            state[name] = state[name] + added[list(chosen)].flatten(0, 1)
        return state


def _effects(
    paths: _Paths,
    senders: Sequence[Node],
    receivers: Sequence[Node | str],
    changes: Mapping[str, Tensor],
    measure: str,
) -> Tensor:
    """`[n, S, R]`, NaN where there is no path."""
    sent = _Sent(paths, senders, changes)
    values = torch.full((len(paths.tokens), len(senders), len(receivers)), torch.nan)
    for index in sorted(range(len(receivers)), key=lambda index: str(_input(receivers[index]))):
        values[..., index] = sent.effect(receivers[index], measure)
    return values
