"""`StepModel`: embed, then steps, then read-out; the only interface that training and analysis know.

Shape legend: B query, T position, A slot (a chosen position), D width, V output (token or value).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from grok.errors import Problem, insist
from grok.task import Task

__all__ = ["Memory", "State", "Step", "StepModel", "Tap", "keeping", "pick"]

State = Mapping[str, Tensor]
"""Named streams, `[B, T, D]` each, everything a later step needs; `resid` is the one that is read out."""

Tap = Callable[[str, Tensor], Tensor]
"""Called with a hook name and its value, returns the value to go on with: a cache returns what it was given, a patch or
an ablation something else."""

Memory = Mapping[str, Tensor]
"""What a step needs of positions before the first one in its state, by hook name without the step: keys and values
`[B, P, H, K]` of attention."""


def pick(x: Tensor, at: Tensor) -> Tensor:
    """`x[b, at[b, a]]`: `[B, T, …]` and `[B, A]` to `[B, A, …]`."""
    index = at.view(*at.shape, *(1,) * (x.ndim - 2)).expand(*at.shape, *x.shape[2:])
    return x.gather(1, index)


class Step(Protocol):
    """One application of a block. Blocks may be shared; each application is a step with its own index."""

    def __call__(
        self, state: State, at: Tensor | None = None, tap: Tap | None = None, memory: Memory | None = None
    ) -> State:
        """The next state.

        Args:
            state: streams `[B, T, D]`.
            at: `[B, A]` indices into the state's positions; the only ones computed; the streams become `[B, A, D]`.
            tap: called at every hook point.
            memory: of a causal model: clean keys and values of P earlier positions; the state holds those from P on.
        """
        ...


class StepModel(nn.Module, ABC):
    """Answers queries by applying `steps` in order to a state; weights may repeat between steps.

    A subclass takes a `Task` first, so that the data decide its sizes, and gives `steps`, `embed` and `readout`.
    """

    causal: bool = True
    """Whether a position depends on earlier positions only."""

    streams: tuple[str, ...] = ("resid",)
    """The streams of the state that a patch overwrites; the others are inputs that every step needs."""

    memory_hooks: tuple[str, ...] = ("attn.hook_k", "attn.hook_v")
    """Hook points of a step of a causal model whose values at earlier positions are its `memory`."""

    task: Task

    loops: int | None = None
    """How many times `steps` go through the same weights; None for a model that has no such number to change."""

    auxiliary: bool = False
    """Whether `auxiliary_loss` adds to the loss of the answers."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether the steps heed the entry `ancestors` of a state (`grok.models.prefixes`)."""
        return False

    @property
    @abstractmethod
    def steps(self) -> Sequence[Step]:
        """The steps in order, one entry per application."""

    @abstractmethod
    def embed(self, inputs: Tensor, position_ids: Tensor | None = None) -> State:
        """State before the first step, from tokens `[B, T]` or columns `[B, T, F]`."""

    @abstractmethod
    def readout(self, state: State, norm: bool = True) -> Tensor:
        """Logits or values `[B, T, V]` at every position the state holds; `norm=False` leaves out the final norm."""

    def with_loops(self, loops: int) -> Self:
        """The same model with its weights shared, not copied, whose steps go through them `loops` times.

        It is in the mode (training or evaluation) that this one is in now, and does not follow when that changes.

        Raises:
            BadInput: if the model has no loops, or for a number below 1.
        """
        if self.loops is None:
            insist([Problem("loops", loops, f"{type(self).__name__} has no loops whose number could be changed")])
        if loops < 1:
            insist([Problem("loops", loops, "use 1 or more")])
        other = copy.copy(self)
        other.loops = loops
        return other

    def run(
        self, state: State, start: int = 0, stop: int | None = None, at: Tensor | None = None, tap: Tap | None = None
    ) -> State:
        """Apply `steps[start:stop]`.

        Args:
            state: the state before step `start`.
            start: first step.
            stop: one past the last step; None means all.
            at: `[B, A]` positions wanted after the last step, which then computes no others.
            tap: called at every hook point, by names `steps.{i}.…`.
        """
        steps = self.steps
        last = len(steps) if stop is None else stop
        for index in range(start, last):
            state = steps[index](
                state, at if index == last - 1 else None, None if tap is None else _named(tap, f"steps.{index}.")
            )
        return state

    def forward(
        self,
        inputs: Tensor,
        at: Tensor | None = None,
        position_ids: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        """Logits or values `[B, T, V]` (`[B, A, V]` at positions `at`) for tokens `[B, T]` or columns `[B, T, F]`."""
        return self.forward_with_state(inputs, at, position_ids, tap)[0]

    def forward_with_state(
        self,
        inputs: Tensor,
        at: Tensor | None = None,
        position_ids: Tensor | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, State]:
        """What `forward` gives, and the last state."""
        state = self.embed(inputs, position_ids)
        if at is not None and not self.steps:
            state = self.picked(state, at)
        state = self.run(state, at=at, tap=tap)
        return self.readout(state), state

    def auxiliary_loss(self, state: State, right: Tensor) -> Tensor:
        """Loss `[B]` of each query beside that of its answers, if the model is `auxiliary`.

        Args:
            state: the last state.
            right: `[B]` bool, whether all answers of the query are right.
        """
        raise NotImplementedError(f"{type(self).__name__} has no auxiliary loss")

    def picked(self, state: State, at: Tensor) -> State:
        """The streams at positions `at` `[B, A]`, as after a last step that was asked for them: `[B, A, D]`."""
        return {name: pick(state[name], at) for name in self.streams}

    def stream_at(self, index: int) -> str:
        """The stream of S[`index`] in which a lens looks: the one that the step before it has written."""
        return self.streams[0]

    def states(self, inputs: Tensor, position_ids: Tensor | None = None) -> list[State]:
        """S[0] … S[n]: the embedding, then the state after each step."""
        states = [self.embed(inputs, position_ids)]
        for index in range(len(self.steps)):
            states.append(self.run(states[-1], index, index + 1))
        return states

    @torch.no_grad()
    def run_with_cache(self, inputs: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits or values `[B, T, V]`, and what was seen at every hook point, by the names of TransformerLens.

        `blocks.{i}.attn.hook_pattern`, `blocks.{i}.hook_resid_post`, …, where i counts *applications* of blocks: of a
        stack of two blocks that is run twice, 0 to 3. Steps of several blocks have names of their own,
        `steps.{i}.blocks.{j}.…`.
        """
        seen: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            _, index, rest = name.split(".", 2)
            seen[name if rest.startswith("blocks.") else f"blocks.{index}.{rest}"] = value
            return value

        return self(inputs, position_ids=position_ids, tap=keep), seen

    def remembered(self, inputs: Tensor, position_ids: Tensor | None = None) -> tuple[list[State], list[Memory]]:
        """S[0] … S[n] as in `states`, and the memory of every step, over all positions."""
        states = [self.embed(inputs, position_ids)]
        memories: list[Memory] = []
        for step in self.steps:
            memory: dict[str, Tensor] = {}
            states.append(step(states[-1], tap=keeping(memory, self.memory_hooks)))
            memories.append(memory)
        return states, memories

    @torch.no_grad()
    def rollout(
        self, inputs: Tensor, at: Tensor, count: int, following: Callable[[Tensor, int], Tensor], back: int = 0
    ) -> Tensor:
        """Answer, write down what follows from the answer, and answer again: outputs `[B, count, V]`.

        Args:
            inputs: tokens `[B, T]` or columns `[B, T, F]`; whatever stands after `at` is not looked at.
            at: `[B]`, where the first answer is read.
            count: answers.
            following: of the outputs `[B, V]` of answer k, what stands at the next positions, `[B, S]` or `[B, S, F]`:
                the next answer is read at the last of them. Not asked after the last answer.
            back: how many positions that were there already `following` writes anew before the next ones, the one whose
                answer was read among them: 1 for columns that hold a question and, once it is known, its answer.

        Raises:
            BadInput: if the model is not causal.
            ValueError: if its positions do not suffice.
        """
        if not self.causal:
            insist([Problem("causal", False, "only a causal model generates answer by answer: use one that is")])
        inputs, at = inputs.clone(), at.clone()
        rows, outputs = torch.arange(len(at), device=at.device), []
        for k in range(count):
            outputs.append(self(inputs, at=at[:, None])[:, 0])
            if k + 1 == count:
                break
            at = at - back
            for written in following(outputs[-1], k).unbind(1):
                at = at + 1
                needed = int(at.max()) + 1
                if needed > self.task.positions:
                    raise ValueError(f"{needed} positions needed, the model has {self.task.positions}")
                if needed > inputs.shape[1]:
                    inputs = torch.cat([inputs, torch.zeros_like(inputs[:, :1])], 1)
                inputs[rows, at] = written.to(inputs.dtype)
        return torch.stack(outputs, 1)

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        length: Tensor,
        count: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """`[B, count]` tokens that follow each prompt.

        Args:
            prompt: tokens `[B, T]`, left-aligned; whatever stands after a shorter prompt is not looked at.
            length: `[B]` length of each prompt.
            count: tokens to generate.
            temperature: 0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature).
            top_k: draw among this many most likely tokens only.
            seed: fixes what is drawn.

        Raises:
            BadInput: if the model is not causal.
            ValueError: if prompt and answer exceed its positions.
        """
        width = max(prompt.shape[1], int(length.max()) + count - 1)
        if width > self.task.positions:
            raise ValueError(f"{width} positions needed, the model has {self.task.positions}")
        tokens: list[Tensor] = []
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device

        def choose(logits: Tensor, _: int) -> Tensor:
            chosen = _drawn(logits, temperature, top_k, generator) if temperature else logits.argmax(-1)
            tokens.append(chosen)
            return chosen[:, None]

        logits = self.rollout(prompt, length - 1, count, choose)
        choose(logits[:, -1], count)
        return torch.stack(tokens, 1)


def _drawn(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """A token `[B]` for every row of `logits` `[B, V]`."""
    scores = logits.float().cpu() / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0].to(logits.device)


def _named(tap: Tap, prefix: str) -> Tap:
    return lambda name, value: tap(prefix + name, value)


def keeping(kept: dict[str, Tensor], names: Collection[str], tap: Tap | None = None) -> Tap:
    """A tap that keeps what it sees at the hooks `names` in `kept`, as `tap` leaves it if one is given."""

    def keep(name: str, value: Tensor) -> Tensor:
        if tap is not None:
            value = tap(name, value)
        if name in names:
            kept[name] = value
        return value

    return keep
