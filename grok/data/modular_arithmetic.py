"""Modular arithmetic, the task on which grokking was found (Power et al. 2022, arXiv 2201.02177).

Every pair (a, b) of numbers below p is a query `a b =` with one right answer; a share of the pairs is trained, the rest
is held out. The circuit that one-layer transformers learn for addition is known (Nanda et al. 2023, arXiv 2301.05217).

Shape legend: N query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.encoding import Encoding, NextToken, Questions
from grok.data.keyed import keyed_hash
from grok.data.split import Split
from grok.data.stream import TableStream
from grok.errors import Problem, insist
from grok.task import Task

__all__ = ["ModularArithmetic"]

OPERATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
}
LARGEST_MODULUS = 3000  # nine million pairs: about 2 GB while they are encoded


class ModularArithmetic(RegimeDataModule):
    """a + b, a - b or a · b modulo p: all p² pairs, of which exactly `train_share` (rounded) are trained.

    The trained pairs are those with the smallest keyed hashes, so that the pairs of a smaller share are part of those
    of a larger one, and that all three operations share them. Symbols are the numbers 0 … p - 1, `=` and the closing
    `</a>`, in this order. `truth` holds `a` and `b`, `[N]` each.

    Args:
        operation: `add`, `subtract` or `multiply`.
        modulus: p; Power et al. take 97, Nanda et al. 113.
        train_share: share of the pairs in training, above 0 and below 1.
        encoding: how queries become model inputs; None is `NextToken()`.
        split_seed: fixes which pairs are trained; None takes it from `seed`.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    memorised_split = "train"
    held_out_splits = ("test",)
    remedy = "raise `modulus`, or move `train_share` away from 0 or 1"

    def __init__(
        self,
        operation: Literal["add", "subtract", "multiply"] = "add",
        modulus: int = 97,
        train_share: float = 0.3,
        encoding: Encoding | None = None,
        split_seed: int | None = None,
        batch: int = 512,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        insist(self.check(operation, modulus, train_share, batch, evaluation_batch))
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.operation, self.modulus, self.train_share = operation, modulus, train_share
        self.encoding: Encoding = encoding or NextToken()
        self.split_seed = seed if split_seed is None else split_seed

    @staticmethod
    def check(
        operation: str = "add",
        modulus: int = 97,
        train_share: float = 0.3,
        batch: int = 512,
        evaluation_batch: int = 4096,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        problems = []
        if operation not in OPERATIONS:
            problems.append(Problem("operation", operation, f"use {', '.join(OPERATIONS)}"))
        if not 2 <= modulus <= LARGEST_MODULUS:
            problems.append(Problem("modulus", modulus, f"use 2 to {LARGEST_MODULUS} (published: 97 and 113)"))
        if not 0 < train_share < 1:
            problems.append(Problem("train_share", train_share, "give a share above 0 and below 1 (published: 0.3)"))
        return problems + RegimeDataModule.check_common(batch=batch, evaluation_batch=evaluation_batch)

    @property
    def symbols(self) -> int:
        """Size of the vocabulary: the numbers, `=` and `</a>`."""
        return self.modulus + 2

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return self.encoding.task(self.symbols, prompt=3, answer=1)

    def token_name(self, token: int) -> str:
        """See `RegimeDataModule.token_name`."""
        found = (self.encoding.token(torch.arange(self.symbols)) == token).nonzero()
        if not len(found):
            return f"<|{token}|>"  # padding
        symbol = int(found[0])
        return str(symbol) if symbol < self.modulus else ("=", "</a>")[symbol - self.modulus]

    def membership(self) -> Tensor:
        """Whether each pair is trained: `[N]` bool over all p² pairs, pair (a, b) at row a · p + b."""
        pairs = self.modulus**2
        # By the hash of a, then of b: membership is a property of the pair, whatever its row.
        order = keyed_hash("pair", self.split_seed, *self._pairs()).argsort(stable=True)
        trained = torch.zeros(pairs, dtype=torch.bool)
        trained[order[: round(self.train_share * pairs)]] = True
        return trained

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """a and b of every pair, `[N]` each."""
        pair = torch.arange(self.modulus**2)
        return torch.div(pair, self.modulus, rounding_mode="floor"), pair % self.modulus

    def encode(self, a: Tensor, b: Tensor) -> Split:
        """Inputs, slots and truth of the queries `a b =`, from numbers `[N]` each."""
        answer = OPERATIONS[self.operation](a, b) % self.modulus
        prompt = torch.stack([a, b, torch.full_like(a, self.modulus)], 1)
        questions = Questions(prompt, answer[:, None], ("a", "b", "="), {"a": a, "b": b}, symbols=())
        split = self.encoding.encode(questions, self.symbols, end=self.modulus + 1)
        return replace(split, labels=self.encoding.token(torch.arange(self.modulus)))

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        everything, trained = self.encode(*self._pairs()), self.membership()
        splits = {"train": everything.take(trained), "test": everything.take(~trained)}
        return Generated(TableStream(splits["train"], self.batch, self.order_seed), splits)
