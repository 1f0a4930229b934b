"""Retrieval and copying: ten tasks that differ in direction and in whether symbols repeat.

Jobanputra et al. 2025 (arXiv 2505.21785), trained from scratch: a model is shown a context, then either a symbol of it
whose neighbour it has to name, or nothing, and it has to write the context again. The question is which of the tasks a
transformer that has learned them on short contexts still solves on longer ones.

Shape legend: N query, T position, A slot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.keyed import keyed_uniform
from grok.data.retrieval_queries import BOS, EOS, OPPOSITE, SEP, SPECIAL, copying, retrieval
from grok.data.split import Split
from grok.data.stream import FreshStream
from grok.errors import Problem, insist
from grok.task import Task

__all__ = ["RetrievalCopying"]

TaskName = Literal["UR", "UL", "NRFirst", "NLFirst", "NRLast", "NLLast", "UF", "UB", "NF", "NB"]
COPYING = ("UF", "UB", "NF", "NB")
LONGEST = 5000  # symbols of a test context
MOST_SYMBOLS = 100  # of contexts that are drawn until a symbol repeats


class RetrievalCopying(RegimeDataModule):
    """Name the neighbour of a symbol in a context, or copy the context; tested on longer contexts than trained.

    | task | what is asked |
    |---|---|
    | `UR`, `UL` | the query symbol occurs once: its right, left neighbour |
    | `NRFirst`, `NLFirst` | it occurs twice or more: the neighbour of its first occurrence |
    | `NRLast`, `NLLast` | the neighbour of its last occurrence |
    | `UF`, `UB` | copy a string without repeats, forward or backward |
    | `NF`, `NB` | copy a string with repeats |

    Retrieval shows `<bos> context <sep> query`, and the answer is read at the query. Copying shows
    `<bos> s <sep> s'`, teacher-forced, and every symbol of s' and the closing `<eos>` is read one position before;
    exact match asks for all of them. The evaluation split `length_kx` has contexts of lengths up to k times
    `train_length` and above those of the split before; training queries are made anew at each step.

    Tokens are the four special ones, then the symbols. `truth` holds `length` `[N]`, symbols of the context, and
    `source` `[N, A]`, the position in the context of the token that is read in each slot (in retrieval: of the
    occurrence that is meant), -1 where it has none.

    Args:
        task: see above.
        train_length: longest trained context; the paper takes 50.
        shortest: shortest context; None is 4 for retrieval and 1 for copying, as published.
        bins: evaluation splits `length_1x`, `length_2x`, …; the paper has 3.
        symbols: size of the alphabet; None is 5, or `train_length` times `bins` for `UF` and `UB`, as published.
        random_offset: count the positions of each training query from a random number on, so that all position
            embeddings up to the longest test's are trained; evaluation counts from 0. Published for learned positions.
        opposite: share of training queries that ask the mirrored task (`UL` for `UR`, `UB` for `UF`) behind another
            separator; its tests are `opposite_1x`, …. Ours, for a corpus with more of one direction.
        test_size: queries per evaluation split; the paper takes 2,000.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: fixes the training queries; None takes it from `seed`.
        evaluation_batch: see `RegimeDataModule`.
    """

    remedy = "raise `test_size`"

    def __init__(
        self,
        task: TaskName = "UR",
        train_length: int = 50,
        shortest: int | None = None,
        bins: int = 3,
        symbols: int | None = None,
        random_offset: bool = True,
        opposite: float = 0.0,
        test_size: int = 2000,
        batch: int = 64,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 512,
    ) -> None:
        insist(self.check(task, train_length, shortest, bins, symbols, opposite, test_size, batch, evaluation_batch))
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.asked, self.train_length, self.bins, self.test_size = task, train_length, bins, test_size
        self.copies = task in COPYING
        self.shortest = (1 if self.copies else 4) if shortest is None else shortest
        self.symbols = symbols or (train_length * bins if task in ("UF", "UB") else 5)
        self.random_offset, self.opposite = random_offset, opposite
        self.held_out_splits = tuple(f"length_{k}x" for k in range(bins, 0, -1))

    @staticmethod
    def check(
        task: str = "UR",
        train_length: int = 50,
        shortest: int | None = None,
        bins: int = 3,
        symbols: int | None = None,
        opposite: float = 0.0,
        test_size: int = 2000,
        batch: int = 64,
        evaluation_batch: int = 512,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        problems = RegimeDataModule.check_common(batch=batch, evaluation_batch=evaluation_batch)
        if task not in get_args(TaskName):  # on which the rest depends
            return [Problem("task", task, f"use {', '.join(get_args(TaskName))}"), *problems]
        least = 1 if task in COPYING else 4
        if not least <= train_length <= LONGEST:
            problems.append(Problem("train_length", train_length, f"use {least} to {LONGEST:,} for {task}"))
        elif bins < 1 or train_length * bins > LONGEST:
            most = f"use 1 to {LONGEST // train_length:,} with train_length={train_length} (published: 3)"
            problems.append(Problem("bins", bins, most))
        if shortest is not None and not least <= shortest <= train_length:
            problems.append(Problem("shortest", shortest, f"use {least} to train_length={train_length} for {task}"))
        fewest, why = (train_length * bins, "the longest test has no repeats") if task in ("UF", "UB") else (3, task)
        if symbols is not None and symbols < fewest:
            problems.append(Problem("symbols", symbols, f"use {fewest} or more ({why})"))
        if symbols is not None and symbols > MOST_SYMBOLS and task[:2] in ("NR", "NL"):
            most = f"use at most {MOST_SYMBOLS}, of which one repeats, for {task}"
            problems.append(Problem("symbols", symbols, most))
        if not 0 <= opposite < 1:
            problems.append(Problem("opposite", opposite, "give a share from 0 to below 1"))
        if test_size < 1:
            problems.append(Problem("test_size", test_size, "use 1 or more queries"))
        return problems

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`: positions for the longest test, so that offsets fit too."""
        tokens = SPECIAL + self.symbols
        positions = self._width(self.train_length * self.bins)
        return Task(positions, outputs=tokens, tokens=tokens, answers_shown=self.copies)

    def _width(self, length: int) -> int:
        """Positions of a query on a context of `length` symbols; `<eos>` is never shown."""
        return 2 * length + 2 if self.copies else length + 3

    def token_name(self, token: int) -> str:
        """See `RegimeDataModule.token_name`."""
        return {BOS: "<bos>", SEP: "<sep>", EOS: "<eos>", OPPOSITE: "<opposite>"}.get(token, f"s{token - SPECIAL}")

    def floor(self, split: str) -> float | None:
        """One over the possible answers: in unique retrieval the query symbol is none; unknown for whole strings."""
        return None if self.copies else 1 / (self.symbols - self.asked.startswith("U"))

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        evaluation = {}
        for kind, share in (("length", 0.0), ("opposite", 1.0))[: 1 + (self.opposite > 0)]:
            for k in range(1, self.bins + 1):
                lengths = (self.shortest if k == 1 else (k - 1) * self.train_length + 1, k * self.train_length)
                seed = keyed_uniform(1 << 32, "tested", self.seed, kind, k)
                evaluation[f"{kind}_{k}x"] = self._draw(self.test_size, lengths, share, int(seed))
        return Generated(FreshStream(self._training_batch, self.batch), evaluation)

    def _training_batch(self, step: int) -> Split:
        """The queries of a training step, on the CPU."""
        seed = int(keyed_uniform(1 << 32, "fresh", self.order_seed, step))
        split = self._draw(self.batch, (self.shortest, self.train_length), self.opposite, seed).without_truth()
        return replace(split, position_ids=self._offset(split, seed)) if self.random_offset else split

    def _draw(self, count: int, lengths: tuple[int, int], opposite: float, seed: int) -> Split:
        """`count` queries on contexts of lengths drawn from `lengths`, ends included."""
        generator = torch.Generator().manual_seed(seed)
        length = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=generator)
        mirrored = torch.rand(count, generator=generator) < opposite
        leftward = mirrored ^ (self.asked[1] in "LB")
        width = self._width(lengths[1])
        if self.copies:
            return copying(self.asked[0] == "N", length, leftward, mirrored, width, self.symbols, generator)
        kind = self.asked[2:] or "U"
        return retrieval(kind, length, leftward, mirrored, width, self.symbols, generator)

    def _offset(self, split: Split, seed: int) -> Tensor:
        """Position ids `[N, T]` from a random number on, so far that the last position shown still has an embedding."""
        room = self.task.positions - 1 - split.at.amax(1)
        share = torch.rand(len(split), generator=torch.Generator().manual_seed(seed ^ 1))  # not those of the contexts
        ids = (share * (room + 1)).long()[:, None] + torch.arange(split.inputs.shape[1])
        return ids.clamp(max=self.task.positions - 1)  # beyond is only what nothing sees

    def groups(self, split: Split) -> dict[str, Tensor]:
        """Key positions `[N, A, T]` by what they are to each slot's position, in the paper's words.

        `previous_token`; `anti_induction`, the source match; `induction`, the token after it; `others`, the rest that
        is seen. A slot without a source match has no `anti_induction` and `induction`.
        """
        place, at, source = torch.arange(split.inputs.shape[1]), split.at[..., None], split.truth["source"][..., None]
        named = {
            "previous_token": place == at - 1,
            "anti_induction": place == source,
            "induction": (place == source + 1) & (source >= 0),
        }
        rest = (place <= at) & ~torch.stack(list(named.values())).any(0)
        return {**named, "others": rest}
