"""Queries in words, tokenised by a byte-pair vocabulary that is trained on the data itself.

The tokenizer is one of the package `tokenizers`, and nothing is downloaded. It is a pure function of the texts, and so
of data file and seed: nothing is saved with a run. Its smallest pieces are bytes, so that every text over the bytes of
the training texts is encoded and decoded without loss.

Shape legend: N query, P prompt position, A answer token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grok.data.encoding import Questions
from grok.errors import BadInput

__all__ = ["Verbaliser", "widened"]


@dataclass(frozen=True)
class Verbaliser:
    """Writes symbols as words, and words as tokens.

    Args:
        names: how each symbol is written.
        atomic: template of an atomic prompt (its last symbol is -1), with {0}, {1}, {2} for the symbols of a prompt.
        inferred: the same for the others.
        size: most tokens of the vocabulary; never fewer than there are different bytes.
    """

    names: Sequence[str]
    atomic: str
    inferred: str
    size: int

    @cached_property
    def tokenizer(self) -> Any:
        """Trained on first use.

        Raises:
            BadInput: if the `tokenizers` package is not there.
        """
        try:
            from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        except ImportError:
            fix = "pip install 'grok-circuits[text]', or use serialisation=structured"
            raise BadInput(f"serialisation='natural': needs the package tokenizers: {fix}") from None
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=self.size, show_progress=False)
        blank = [text.format("", "", "") for text in (self.atomic, self.inferred)]
        tokenizer.train_from_iterator([*blank, *(f" {name}" for name in self.names)], trainer)
        return tokenizer

    @property
    def tokens(self) -> int:
        """Size of the vocabulary."""
        return int(self.tokenizer.get_vocab_size())

    def prompts(self, questions: Questions) -> list[str]:
        """The prompts, written."""
        rows, texts = questions.prompt.tolist(), (self.atomic, self.inferred)
        return [texts[row[2] >= 0].format(*(self.names[symbol] for symbol in row)) for row in rows]

    def answers(self, questions: Questions) -> list[str]:
        """The answers, written: with the space before them."""
        return [f" {self.names[symbol]}" for (symbol,) in questions.answer.tolist()]

    def questions(self, questions: Questions) -> Questions:
        """The same queries in tokens: `[N, P]` and `[N, A]`; ground truth in symbols is left out.

        Args:
            questions: in symbols, prompts of three and answers of one.
        """
        prompt, answer = self._encoded(self.prompts(questions)), self._encoded(self.answers(questions))
        truth = {name: column for name, column in questions.truth.items() if name not in questions.symbols}
        return Questions(prompt, answer, _places(prompt.shape[1]), truth, ())

    def _encoded(self, texts: list[str]) -> Tensor:
        rows = [torch.tensor(one.ids) for one in self.tokenizer.encode_batch(texts)]
        if not rows:
            return torch.zeros(0, 1, dtype=torch.int64)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    def write(self, token: int) -> str:
        """A token, written as the bytes it stands for."""
        return str(self.tokenizer.decode([token]))


def widened(questions: Mapping[str, Questions]) -> dict[str, Questions]:
    """The same, all with as many places for prompt and answer as the longest."""
    prompt = max(one.prompt.shape[1] for one in questions.values())
    answer = max(one.answer.shape[1] for one in questions.values())

    def padded(rows: Tensor, width: int) -> Tensor:
        return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=-1)

    return {
        name: replace(one, prompt=padded(one.prompt, prompt), answer=padded(one.answer, answer), names=_places(prompt))
        for name, one in questions.items()
    }


def _places(prompt: int) -> tuple[str, ...]:
    return tuple(f"p{place + 1}" for place in range(prompt))
