"""Activation patching of whole states, all patches at once.

Every (state × example) is a row of one batch. A row joins when its patched state is reached, each step runs once, and
of a causal model only the positions from the patched one on are computed, against the clean run's keys and values. The
same ranks as with one forward pass per patch, an order of magnitude sooner.

Shape legend: N example, C counterfactual, S patched state, K token, T position, n examples of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grok.circuits.examples import analysing, step_range
from grok.circuits.reading import Reading, decoded, read
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel
from grok.models.steps import Memory, State

__all__ = ["Counterfactual", "Patched", "patch_states"]


@dataclass(frozen=True)
class Counterfactual:
    """Other queries, whose states at some positions are put in place of the original ones.

    Args:
        name: what was replaced (`h`, `r1`, `r2`).
        inputs: `[N, T]` the other queries.
        positions: which positions are overwritten.
        answer: `[N]` token that is right for the other query; -1 if it has none.
        exists: `[N]` bool, False where no such counterfactual was found.
    """

    name: str
    inputs: Tensor
    positions: tuple[int, ...]
    answer: Tensor
    exists: Tensor

    def take(self, rows: Tensor | slice) -> Counterfactual:
        """Those of the examples at `rows`."""
        return Counterfactual(self.name, self.inputs[rows], self.positions, self.answer[rows], self.exists[rows])

    def to(self, device: torch.device) -> Counterfactual:
        """The same on `device`."""
        return Counterfactual(
            self.name, self.inputs.to(device), self.positions, self.answer.to(device), self.exists.to(device)
        )


@dataclass(frozen=True)
class Patched:
    """What the target state says with and without each patch.

    Args:
        clean: the unpatched run, `[N, C, K]` (the tokens looked for differ between counterfactuals).
        patched: `[N, C, S, K]`.
        steps: i of the patched states S[i].
        streams: the stream of each of the patched states, if every stream was patched by itself.
    """

    clean: Reading
    patched: Reading
    steps: tuple[int, ...]
    streams: tuple[str, ...] = ()

    def part(self, counterfactuals: slice) -> Patched:
        """Of some of the counterfactuals."""
        clean, patched = (side.map(lambda x: x[:, counterfactuals]) for side in (self.clean, self.patched))
        return Patched(clean, patched, self.steps, self.streams)


def patch_states(
    model: StepModel,
    split: Split,
    counterfactuals: Sequence[Counterfactual],
    tokens: Sequence[Tensor],
    steps: Sequence[int] | None = None,
    target_step: int | None = None,
    target_position: int | None = None,
    labels: Tensor | None = None,
    norm: bool = True,
    batch: int = 2048,
    streams: Sequence[str] | None = None,
) -> Patched:
    """Overwrite S[i, p] by the counterfactual run's state, run the remaining steps, and read the target state.

    Args:
        model: any step model with token outputs; one that is not causal is recomputed at all positions.
        split: N examples.
        counterfactuals: C of them.
        tokens: for each counterfactual `[N, K]` tokens to look for, -1 for none.
        steps: states to patch; None means S[0] up to the target.
        target_step: state that is read; None means the last.
        target_position: where it is read; None means where the answer is.
        labels: possible answers, among which ranks are taken; None means the whole vocabulary.
        norm: read out through the final norm.
        batch: most rows of one forward pass; bounds memory. One example with all its patches of one counterfactual is
            the least that is run.
        streams: those overwritten; None means all of the model's. The target is read from the one decoded there.

    Raises:
        BadInput: if a state or a stream does not exist.
    """
    last = len(model.steps) if target_step is None else target_step
    chosen = step_range(model, steps, last)
    overwritten = model.streams if streams is None else tuple(streams)
    if not overwritten or not set(overwritten) <= set(model.streams):
        raise BadInput(Problem("streams", overwritten, f"no such stream; this model has {', '.join(model.streams)}"))
    if not counterfactuals:
        raise BadInput(Problem("counterfactuals", [], "give one or more"))
    clean, patched = [], []
    with analysing(model) as device:
        size = max(1, batch // len(chosen))
        for start in range(0, len(split), size):
            rows = slice(start, start + size)
            chunk = _Chunk(model, split.take(rows).to(device), chosen, last, target_position, labels, norm, overwritten)
            pairs = [
                chunk.readings(one.take(rows).to(device), looked[rows].to(device))
                for one, looked in zip(counterfactuals, tokens, strict=True)
            ]
            clean.append(Reading.join([pair[0] for pair in pairs], lambda parts: torch.stack(parts, 1).cpu()))
            patched.append(Reading.join([pair[1] for pair in pairs], lambda parts: torch.stack(parts, 1).cpu()))
    return Patched(Reading.join(clean, torch.cat), Reading.join(patched, torch.cat), tuple(chosen))


class _Chunk:
    """The clean run of a few examples, and the patched runs beside it."""

    def __init__(
        self,
        model: StepModel,
        split: Split,
        steps: Sequence[int],
        last: int,
        target_position: int | None,
        labels: Tensor | None,
        norm: bool,
        streams: Sequence[str],
    ) -> None:
        self.model, self.steps, self.last, self.norm, self.streams = model, steps, last, norm, streams
        self.labels = None if labels is None else labels.to(split.inputs.device)
        self.position_ids = split.position_ids
        self.at = split.at[:, :1] if target_position is None else torch.full_like(split.at[:, :1], target_position)
        self.states: list[State]
        self.memories: list[Memory] = []
        if model.causal:
            self.states, self.memories = model.remembered(split.inputs, split.position_ids)
        else:
            self.states = model.states(split.inputs, split.position_ids)

    def readings(self, counterfactual: Counterfactual, tokens: Tensor) -> tuple[Reading, Reading]:
        """Of the clean run `[n, K]`, and of the patched runs `[n, S, K]`."""
        clean = self._read(self.model.picked(self.states[self.last], self.at), tokens)
        # What is overwritten after the position that is read cannot be seen there.
        first = min(min(counterfactual.positions), int(self.at.min())) if self.model.causal else 0
        others = self._other_states(counterfactual)
        active: State | None = None
        for index in range(self.last + 1):
            if index in self.steps:
                joined = self._overwritten(index, others[index], counterfactual.positions, first)
                joined = joined if index < self.last else self.model.picked(joined, self.at - first)
                active = joined if active is None else self._concatenate(active, joined)
            if index < self.last and active is not None:
                active = self._step(index, active, first)
        assert active is not None
        groups = len(self.steps)
        reading = self._read(active, tokens.repeat(groups, 1))
        return clean, reading.map(lambda x: x.view(groups, -1, x.shape[-1]).transpose(0, 1))

    def _other_states(self, counterfactual: Counterfactual) -> list[State]:
        """The counterfactual run, of a causal model up to the last overwritten position only."""
        shown = max(counterfactual.positions) + 1 if self.model.causal else counterfactual.inputs.shape[1]
        ids = None if self.position_ids is None else self.position_ids[:, :shown]
        states = [self.model.embed(counterfactual.inputs[:, :shown], ids)]
        for step in self.model.steps[: max(self.steps)]:
            states.append(step(states[-1]))
        return states

    def _overwritten(self, index: int, other: State, positions: Sequence[int], first: int) -> State:
        """S[index] from position `first` on, with the chosen streams of the other run at `positions`."""
        state = {name: stream[:, first:] for name, stream in self.states[index].items()}
        for name in self.streams:
            stream = state[name].clone()
            for position in positions:
                if position >= first:
                    stream[:, position - first] = other[name][:, position]
            state[name] = stream
        return state

    def _step(self, index: int, state: State, first: int) -> State:
        """Run step `index` for every patch that has joined, against the clean keys and values before `first`."""
        groups = len(state[self.model.streams[0]]) // len(self.at)
        memory = None
        if first:
            memory = {
                name: value[:, :first].repeat(groups, *(1,) * (value.ndim - 1))
                for name, value in self.memories[index].items()
            }
        at = (self.at - first).repeat(groups, 1) if index == self.last - 1 else None
        return self.model.steps[index](state, at=at, memory=memory)

    def _concatenate(self, one: State, other: State) -> State:
        """Rows of both; after a step that computed the target only, what a later step would need is of no use."""
        names = [name for name in one if name in other and one[name].shape[1:] == other[name].shape[1:]]
        return {name: torch.cat([one[name], other[name]]) for name in names}

    def _read(self, state: State, tokens: Tensor) -> Reading:
        state = decoded(self.model, state, self.last)
        return read(self.model.readout(state, norm=self.norm)[:, 0].float(), tokens, self.labels)
