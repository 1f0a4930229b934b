"""From questions in symbols to model inputs: what is shown, where the answer is read, and what is right there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from grok.data.split import Split
from grok.errors import Problem, insist
from grok.task import Task

__all__ = ["Encoding", "FillIn", "NextToken", "Questions"]

GPT2_TOKENS = 50_257  # rows of the GPT-2 byte-pair vocabulary that the reference code keeps and never uses
GPT2_END_OF_TEXT = 50_256


@dataclass(frozen=True)
class Questions:
    """Queries as symbols, before any choice of model: N query, P prompt position, A answer token.

    Args:
        prompt: `[N, P]` symbol ids, -1 after the end of a shorter prompt.
        answer: `[N, A]` symbol ids, -1 after the end of a shorter answer.
        names: names of the P prompt positions.
        truth: ground truth columns, see `Split`; symbol ids in the columns named in `symbols`.
        symbols: names of the `truth` columns that hold symbol ids and are translated to token ids.
    """

    prompt: Tensor
    answer: Tensor
    names: tuple[str, ...]
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    symbols: tuple[str, ...] = ("bridge",)


class Encoding(ABC):
    """Turns `Questions` over a vocabulary of symbols into a `Split`."""

    @abstractmethod
    def task(self, symbols: int, prompt: int, answer: int) -> Task:
        """Sizes for a vocabulary of `symbols`, prompts up to `prompt` and answers up to `answer` symbols long."""

    @abstractmethod
    def encode(self, questions: Questions, symbols: int, end: int) -> Split:
        """Inputs and slots of `questions`; `end` is the symbol that closes an answer (`</a>`)."""

    @abstractmethod
    def token(self, symbol: Tensor) -> Tensor:
        """Token id of each symbol id; -1 stays -1."""


def _sequence(questions: Questions, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """prompt ++ answer ++ end, left-aligned: `[N, P + A + 1]` (-1 beyond the end), prompt and answer lengths."""
    prompt_length = (questions.prompt >= 0).sum(1, keepdim=True)
    answer_length = (questions.answer >= 0).sum(1, keepdim=True)
    rows, width = len(questions.prompt), questions.prompt.shape[1] + questions.answer.shape[1] + 1
    sequence = torch.full((rows, width), -1, dtype=torch.int64, device=questions.prompt.device)
    sequence[:, : questions.prompt.shape[1]] = questions.prompt
    for token in range(questions.answer.shape[1]):
        sequence.scatter_(1, prompt_length + token, questions.answer[:, token : token + 1])
    return sequence.scatter_(1, prompt_length + answer_length, end), prompt_length, answer_length


def _translated(questions: Questions, encoding: Encoding) -> dict[str, Tensor]:
    return {
        name: encoding.token(column) if name in questions.symbols else column
        for name, column in questions.truth.items()
    }


class NextToken(Encoding):
    """Left to right: the answer is predicted at the last prompt position, each further token one position on.

    With the defaults only what is needed is computed: the closed vocabulary, no padding beyond the longest query, and
    one supervised position for a one-token answer (*answer-only*). The other settings reproduce the numerics of the
    code of Wang et al. 2024 (appendix A: GPT-2 vocabulary of 52,464 rows, padding to 10 tokens, loss on `t` and
    `</a>`).

    Args:
        vocab: `closed`, only the task's own symbols; `gpt2`, those added to the 50,257 GPT-2 tokens, padded to a
            multiple of 8 rows.
        pad: `tight`, no longer than the longest query; or a fixed number of positions.
        supervise_eos: also predict the closing `</a>`.
    """

    def __init__(
        self,
        vocab: Literal["closed", "gpt2"] = "closed",
        pad: Literal["tight"] | int = "tight",
        supervise_eos: bool = False,
    ) -> None:
        insist(self.check(vocab=vocab, pad=pad))
        self.vocab, self.pad, self.supervise_eos = vocab, pad, supervise_eos
        self.offset = GPT2_TOKENS if vocab == "gpt2" else 0

    @staticmethod
    def check(vocab: str = "closed", pad: str | int = "tight") -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = []
        if vocab not in ("closed", "gpt2"):
            problems.append(Problem("vocab", vocab, "use closed or gpt2"))
        if pad != "tight" and not (isinstance(pad, int) and pad >= 1):
            problems.append(Problem("pad", pad, "use tight or a number of positions (the reference code: 10)"))
        return problems

    def _positions(self, prompt: int, answer: int) -> int:
        tight = prompt + answer - 1 + self.supervise_eos
        if self.pad == "tight":
            return tight
        if int(self.pad) < tight:
            raise_to = f"use tight, or at least {tight} positions for a prompt of {prompt} and an answer of {answer}"
            insist([Problem("pad", self.pad, raise_to)])
        return int(self.pad)

    def task(self, symbols: int, prompt: int, answer: int) -> Task:
        """See `Encoding.task`."""
        rows = symbols if self.vocab == "closed" else -(-(self.offset + symbols) // 8) * 8
        return Task(positions=self._positions(prompt, answer), outputs=rows, tokens=rows)

    def token(self, symbol: Tensor) -> Tensor:
        """See `Encoding.token`."""
        return torch.where(symbol >= 0, symbol + self.offset, -1)

    def encode(self, questions: Questions, symbols: int, end: int) -> Split:
        """See `Encoding.encode`."""
        sequence, prompt_length, answer_length = _sequence(questions, end)
        longest = questions.answer.shape[1]
        positions = self._positions(questions.prompt.shape[1], longest)
        # Padding comes after every supervised position, so under a causal mask its value is inert.
        padding = GPT2_END_OF_TEXT if self.vocab == "gpt2" else end
        tokens = torch.where(sequence >= 0, sequence + self.offset, padding)
        inputs = tokens.new_full((len(tokens), positions), padding)
        shown = min(positions, tokens.shape[1])
        inputs[:, :shown] = tokens[:, :shown]
        slot = torch.arange(longest + self.supervise_eos, device=tokens.device)
        at = prompt_length - 1 + slot
        mask = slot < answer_length + self.supervise_eos
        at = torch.where(mask, at, prompt_length - 1)
        shown_after = torch.arange(positions, device=tokens.device) > at.amax(1, keepdim=True)
        inputs = torch.where(shown_after, padding, inputs)  # no answer is shown that is not needed for the next token
        names = (*questions.names, *(f"answer{i + 1}" if longest > 1 else "t" for i in range(longest)), "end")
        names += tuple(f"pad{i + 1}" for i in range(positions - len(names)))
        return Split(
            inputs=inputs,
            at=at,
            targets=tokens.gather(1, at + 1),
            mask=mask,
            positions=names[:positions],
            truth=_translated(questions, self),
        )


class FillIn(Encoding):
    """The whole sequence is predicted in place from the prompt padded with zeros (He et al. 2026, section 2).

    Token 0 is padding and symbol s is token s + 1. Every position of `prompt answer </a>` is supervised, the copied
    prompt included; slot 0 is the answer, as everywhere.
    """

    def task(self, symbols: int, prompt: int, answer: int) -> Task:
        """See `Encoding.task`."""
        return Task(positions=prompt + answer + 1, outputs=symbols + 1, tokens=symbols + 1)

    def token(self, symbol: Tensor) -> Tensor:
        """See `Encoding.token`."""
        return symbol + (symbol >= 0).long()

    def encode(self, questions: Questions, symbols: int, end: int) -> Split:
        """See `Encoding.encode`."""
        sequence, prompt_length, _ = _sequence(questions, end)
        labels = sequence + 1
        place = torch.arange(labels.shape[1], device=labels.device)
        at = (prompt_length + place) % labels.shape[1]  # starting from the answer, around to the prompt
        targets = labels.gather(1, at)
        answer_names = (
            ("t",)
            if questions.answer.shape[1] == 1
            else tuple(f"answer{i + 1}" for i in range(questions.answer.shape[1]))
        )
        return Split(
            inputs=torch.where(place < prompt_length, labels, 0),
            at=at,
            targets=targets,
            mask=targets > 0,
            positions=(*questions.names, *answer_names, "end"),
            truth=_translated(questions, self),
        )
