"""What the regimes on named facts share: the arguments, and how queries are written.

After Abramov et al. 2025 (arXiv 2504.20752): a small knowledge is augmented until phi, inferred facts per atomic fact,
is large enough for grokking, and some of what is added is wrong. What a wrong fact is: `grok.data.augmentation`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch

from grok.data.baselines import two_hop_baselines
from grok.data.composition import token_name, used_in_compositions
from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.encoding import Encoding, NextToken, Questions
from grok.data.fact_graph import Knowledge
from grok.data.fact_report import same_value, sizes
from grok.data.fact_tasks import LAST_SYMBOLS, TASKS, Composed, TaskName
from grok.data.facts import AtomicFacts
from grok.data.lessons import Lessons
from grok.data.split import Split, concatenate
from grok.data.stream import TableStream
from grok.data.verbal import Verbaliser, widened
from grok.errors import Problem
from grok.task import Task

__all__ = ["FactRegime"]


class FactRegime(RegimeDataModule):
    """Atomic facts `h r → t`, and inferred ones through two of them.

    Of the known facts some are *original*; of these the share `ood` is trained as atomic facts alone. The others are
    *added*, and a share of them is wrong. Where `phi` needs more, facts about new entities are *invented*. The tests go
    through true facts only: `test_inferred_iid` through unseen pairs of facts that training queries use in other pairs,
    `test_inferred_ood` through pairs of facts that are trained as atomic facts alone. `id_atomic` asks what is taught.

    Args:
        task: `composition`, `h r1 r2 → t`, or `comparison`, `e1 r e2 → yes | no`: do both have the same r?
        serialisation: `structured`, one token per entity and relation; `natural`, English sentences in byte-pair tokens
            (needs the package `tokenizers`).
        vocabulary: most byte-pair tokens.
        original: original facts; None means all that are known.
        atomic: atomic facts in training, as few of them invented as `phi` allows; None means all that are known, and as
            many invented ones as `phi` needs.
        phi: inferred facts in training per atomic fact, OOD facts included.
        wrong_fact_rate: share of the added facts that are wrong.
        wrong_facts: `consistent`, inferred facts follow the wrong fact; `contradicted`, they follow the true one.
        ood: share of the original facts that is in no inferred fact of training.
        iid: share of the other inferred facts through true facts that is held out.
        test_size: most queries in an evaluation split.
        encoding: how queries become model inputs; None is `NextToken()`, with `</a>` supervised in natural language,
            where one answer can be the beginning of another.
        graph_seed: fixes what is known and taught, and the splits; None takes it from `seed`.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    memorised_split = "train_inferred"
    held_out_splits = ("test_inferred_iid", "test_inferred_ood")
    remedy = "use more facts, or larger shares `iid` and `ood`"

    def __init__(
        self,
        task: TaskName = "composition",
        serialisation: Literal["structured", "natural"] = "structured",
        vocabulary: int = 2000,
        original: int | None = None,
        atomic: int | None = None,
        phi: float = 6.25,
        wrong_fact_rate: float = 0.0,
        wrong_facts: Literal["consistent", "contradicted"] = "consistent",
        ood: float = 0.3,
        iid: float = 0.05,
        test_size: int = 1000,
        encoding: Encoding | None = None,
        graph_seed: int | None = None,
        batch: int = 512,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.kind, self.natural, self.vocabulary = TASKS[task], serialisation == "natural", vocabulary
        self.encoding: Encoding = encoding or NextToken(supervise_eos=self.natural)
        self._arguments: dict[str, Any] = {
            "original": original, "atomic": atomic, "phi": phi, "wrong_fact_rate": wrong_fact_rate,
            "contradicted": wrong_facts == "contradicted", "ood": ood, "iid": iid, "test_size": test_size,
            "seed": seed if graph_seed is None else graph_seed,
        }  # fmt: skip

    @staticmethod
    def check_words(
        *,
        task: str = "composition",
        serialisation: str = "structured",
        vocabulary: int = 2000,
        wrong_facts: str = "consistent",
        **further: Any,
    ) -> list[Problem]:
        """All problems with these arguments, and with those that `Lessons` and `RegimeDataModule` check."""
        words = {"task": task, "serialisation": serialisation, "wrong_facts": wrong_facts}
        wrong = ((key, word) for key, word in words.items() if word not in _WORDS[key])
        problems = [Problem(key, word, f"use {' or '.join(_WORDS[key])}") for key, word in wrong]
        if vocabulary < 1:
            problems.append(Problem("vocabulary", vocabulary, "give a number of tokens, 1 or more"))
        checked = {key: value for key, value in further.items() if key not in _UNCHECKED}
        return problems + Lessons.check(**checked) + RegimeDataModule.check_common(**further)

    @abstractmethod
    def knowledge(self) -> Knowledge:
        """The facts that are known, read or made anew."""

    @cached_property
    def lessons(self) -> Lessons:
        """What is taught and asked."""
        return Lessons(self.knowledge(), self.kind, **self._arguments)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """How each symbol is written: entities (invented ones last), relations, `yes`, `no`, `</a>`."""
        known, entities = self.lessons.knowledge, self.lessons.rows(self.lessons.taught).sizes[0]
        invented = (f"invented {number + 1}" for number in range(entities - len(known.entities)))
        return (*known.entities, *invented, *known.relations, *LAST_SYMBOLS)

    @cached_property
    def words(self) -> Verbaliser:
        """How queries are written in natural language."""
        return Verbaliser(self.names[:-1], self.kind.atomic_text, self.kind.text, self.vocabulary)

    @cached_property
    def _questions(self) -> dict[str, Questions]:
        """All queries, by what they are for, as long as the longest."""
        asked = {name: rows.questions(hops) for name, (rows, hops) in self.lessons.asked.items()}
        if not self.natural:
            return asked
        return widened({name: self.words.questions(questions) for name, questions in asked.items()})

    @property
    def symbols(self) -> int:
        """Size of the vocabulary, `</a>` included, which is the last."""
        return self.words.tokens + 1 if self.natural else len(self.names)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        one = self._questions["atomic"]
        return self.encoding.task(self.symbols, prompt=one.prompt.shape[1], answer=one.answer.shape[1])

    def token_name(self, token: int) -> str:
        """See `RegimeDataModule.token_name`."""
        written = self.words.write if self.natural else lambda symbol: self.names[symbol]
        symbols = self.encoding.token(torch.arange(self.symbols))
        return token_name(token, symbols, lambda symbol: "</a>" if symbol == self.symbols - 1 else written(symbol))

    def encode(self, name: str) -> Split:
        """Inputs, slots and truth of the queries `name` of `Lessons.asked`."""
        split = self.encoding.encode(self._questions[name], self.symbols, end=self.symbols - 1)
        rows, hops = self.lessons.asked[name]
        if self.natural:
            return split
        return replace(split, labels=self.encoding.token(rows.answers(inferred=bool((hops.second >= 0).any()))))

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        splits = {name: self.encode(name) for name in self._questions}
        table = concatenate([splits.pop("atomic"), splits.pop("inferred")])
        return Generated(TableStream(table, self.batch, self.order_seed), splits, self._atomic_facts())

    def _atomic_facts(self) -> AtomicFacts | None:
        """The facts in tokens, where a fact is one of tokens and two of them are composed."""
        if self.natural or self.kind is not Composed:
            return None
        rows, token = self.lessons.rows(self.lessons.taught), self.encoding.token
        head, relation, tail = rows.columns.T
        composed = used_in_compositions(self.lessons.trained, rows.facts)
        return AtomicFacts(token(head), token(relation + rows.sizes[0]), token(tail), composed)

    def baselines(self, split: str) -> dict[str, float]:
        """See `two_hop_baselines`, and `same_value` for comparisons."""
        if self.kind is Composed:
            return two_hop_baselines(self.generated.train, self.splits[split])
        return same_value(self.lessons, split)

    def floor(self, split: str) -> float | None:
        """See `RegimeDataModule.floor`; of a comparison one half, in natural language too."""
        compared = self.kind is not Composed and not split.endswith("atomic")
        return 0.5 if compared else super().floor(split)

    def sizes(self) -> dict[str, float]:
        """See `RegimeDataModule.sizes`."""
        return self._sizes

    @cached_property
    def _sizes(self) -> dict[str, float]:
        return sizes(self.lessons)


_WORDS = {
    "task": tuple(TASKS), "serialisation": ("structured", "natural"), "wrong_facts": ("consistent", "contradicted")
}  # fmt: skip
_UNCHECKED = ("batch", "evaluation_batch", "encoding", "graph_seed", "seed", "order_seed")
