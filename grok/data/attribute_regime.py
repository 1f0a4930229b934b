"""`AttributeRegime`: what regimes that ask for values and for comparisons of values have in common (arXiv 2405.15071).

Shape legend: N query, P prompt position, A answer token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grok.data.attribute_values import GREATER, LESS, AttributeValues, Pairs
from grok.data.composition import SPECIALS, token_name
from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.encoding import Encoding, NextToken, Questions
from grok.data.keyed import POSITIVE, keyed_hash
from grok.data.knowledge_graph import keyed_sample
from grok.data.split import Split
from grok.data.stream import TableStream
from grok.errors import Problem
from grok.task import Task

__all__ = ["AttributeRegime", "Comparisons"]

ENTITIES_AT_MOST = 5000  # 25 million pairs on an attribute: about a gigabyte while they are hashed


@dataclass(frozen=True)
class Comparisons:
    """What a regime asks.

    Args:
        train: comparisons in the training table, by the name of the evaluation split that probes them.
        evaluation: comparisons of the other evaluation splits, by name.
        trained_ood: whether OOD atomic facts are trained, too.
    """

    train: Mapping[str, Pairs]
    evaluation: Mapping[str, Pairs]
    trained_ood: bool


class AttributeRegime(RegimeDataModule):
    """Atomic facts entity, attribute → value, and comparisons attribute, entity, entity → less, equal or greater.

    A subclass gives the forms of its prompts and `comparisons`. Symbols are entities, attributes, values, three labels
    for each attribute, and the special symbols, in this order. `truth` of a comparison holds the tokens `v1` and `v2`
    `[N, 1]` of the values, which are never shown, and `labels` `[N, 3]` of its attribute. Slot 0 of `Split` is the
    value or the label, whatever is supervised before it.

    Args:
        entities: number of entities.
        attributes: number of attributes.
        values: number of ordinal values.
        ood: share of the entities that are out of distribution, drawn for each attribute by itself.
        iid: share of the pairs of ID entities that are held out, both orders of a pair.
        test_size: most queries in an evaluation split.
        encoding: how queries become model inputs; None is `NextToken()`.
        graph_seed: fixes values and splits; None takes it from `seed`.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    memorised_split = "train_inferred"
    remedy = "raise `entities`, or the share that the split is drawn from (`ood`, `iid`)"
    fact_form: tuple[str, ...]
    """The prompt of an atomic fact: `e` and `a` are its entity and attribute, all else special symbols."""
    query_form: tuple[str, ...]
    """The prompt of a comparison: `a`, `e1`, `e2` and special symbols."""
    answer_form: tuple[str, ...] = ("answer",)
    """The answer: `answer` is the value or the label."""

    def __init__(
        self,
        entities: int = 1000,
        attributes: int = 20,
        values: int = 20,
        ood: float = 0.1,
        iid: float = 0.1,
        test_size: int = 3000,
        encoding: Encoding | None = None,
        graph_seed: int | None = None,
        batch: int = 512,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.entities, self.attributes, self.values = entities, attributes, values
        self.ood, self.iid, self.test_size = ood, iid, test_size
        self.encoding: Encoding = encoding or NextToken()
        self.graph_seed = seed if graph_seed is None else graph_seed
        self._knowledge: AttributeValues | None = None

    @staticmethod
    def check(
        *,
        entities: int = 1000,
        attributes: int = 20,
        values: int = 20,
        ood: float = 0.1,
        iid: float = 0.1,
        test_size: int = 3000,
        **common: Any,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        least = {"entities": (entities, 2), "attributes": (attributes, 1), "values": (values, 2)}
        least["test_size"] = (test_size, 1)
        problems = [Problem(k, v, f"give a number, {low} or more") for k, (v, low) in least.items() if v < low]
        if entities > ENTITIES_AT_MOST:
            problems.append(
                Problem("entities", entities, f"pairs do not fit into memory: use at most {ENTITIES_AT_MOST}")
            )
        shares = {"ood": ood, "iid": iid}
        problems += [Problem(k, v, "give a share between 0 and 1") for k, v in shares.items() if not 0 <= v <= 1]
        return problems + RegimeDataModule.check_common(**common)

    @abstractmethod
    def comparisons(self) -> Comparisons:
        """The comparisons in training and in the evaluation splits."""

    @property
    def symbols(self) -> int:
        """Size of the vocabulary."""
        return self.entities + 4 * self.attributes + self.values + len(SPECIALS)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return self.encoding.task(self.symbols, prompt=len(self.query_form), answer=len(self.answer_form))

    @property
    def knowledge(self) -> AttributeValues:
        """The values of all entities, in symbols, drawn on first use."""
        if self._knowledge is None:
            sizes = self.entities, self.attributes, self.values
            self._knowledge = AttributeValues.random(*sizes, ood=self.ood, seed=self.graph_seed)
        return self._knowledge

    def value(self, value: Tensor) -> Tensor:
        """Symbol of each ordinal value."""
        return self.entities + self.attributes + value

    def special(self, name: str) -> int:
        """The symbol `<a>`, `</a>`, `<q>`, `</q>` or `<mask>`."""
        return self.symbols - len(SPECIALS) + SPECIALS.index(name)

    def symbol_name(self, symbol: int) -> str:
        """How a symbol is written: `<e_12>`, `<attr_3>`, `<7>`, `<attr_3_0>`, `</a>`."""
        sizes = (self.entities, self.attributes, self.values, 3 * self.attributes)
        kinds = ("<e_{0}>", "<attr_{0}>", "<{0}>", "<attr_{1}_{2}>")
        for size, kind in zip(sizes, kinds, strict=True):
            if symbol < size:
                return kind.format(symbol, symbol // 3, symbol % 3)
            symbol -= size
        return SPECIALS[symbol]

    def token_name(self, token: int) -> str:
        """See `RegimeDataModule.token_name`."""
        return token_name(token, self.encoding.token(torch.arange(self.symbols)), self.symbol_name)

    # ------------------------------------------------------------------ questions

    def _filled(self, form: tuple[str, ...], columns: Mapping[str, Tensor]) -> Tensor:
        """Symbols `[N, len(form)]`."""
        size = len(next(iter(columns.values())))
        return torch.stack(
            [columns[name] if name in columns else torch.full((size,), self.special(name)) for name in form], 1
        )

    def _questions(self, form: tuple[str, ...], columns: Mapping[str, Tensor], truth: dict[str, Tensor]) -> Questions:
        width = len(self.query_form)
        prompt = torch.nn.functional.pad(self._filled(form, columns), (0, width - len(form)), value=-1)
        names = ["close" if name == "</q>" else name.strip("<>") for name in form]
        names += [f"pad_{place}" for place in range(len(form), width)]
        symbols = ("v1", "v2", "labels")
        return Questions(prompt, self._filled(self.answer_form, columns), tuple(names), truth, symbols)

    def fact_questions(self, entity: Tensor, attribute: Tensor) -> Questions:
        """Questions for the values of facts, rows of the table of values `[N]` each."""
        answer = self.value(self.knowledge.values[entity, attribute])
        columns = {"e": entity, "a": self.knowledge.attributes[attribute], "answer": answer}
        return self._questions(self.fact_form, columns, {})

    def pair_questions(self, pairs: Pairs) -> Questions:
        """Questions how pairs compare."""
        known, rows = self.knowledge, torch.arange(len(pairs.first))
        labels = known.labels[pairs.attribute]
        v1, v2 = (self.value(known.values[entity, pairs.attribute])[:, None] for entity in pairs[1:])
        columns = {"a": known.attributes[pairs.attribute], "e1": pairs.first, "e2": pairs.second}
        columns["answer"] = labels[rows, known.compared(pairs)]
        return self._questions(self.query_form, columns, {"v1": v1, "v2": v2, "labels": labels})

    def encode(self, questions: Questions) -> Split:
        """Inputs, slots and truth."""
        split = self.encoding.encode(questions, self.symbols, self.special("</a>"))
        slots = list(range(split.at.shape[1]))
        slots.insert(0, slots.pop(self.answer_form.index("answer")))
        return replace(split, at=split.at[:, slots], targets=split.targets[:, slots], mask=split.mask[:, slots])

    # ------------------------------------------------------------------ what is generated

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        asked, known = self.comparisons(), self.knowledge
        kinds = (False, True) if asked.trained_ood else (False,)
        trained = [self.fact_questions(*known.facts(ood)) for ood in kinds]
        trained += [self.pair_questions(pairs) for pairs in asked.train.values()]
        table = Questions(
            torch.cat([one.prompt for one in trained]), torch.cat([one.answer for one in trained]), trained[-1].names
        )
        labels, values = known.labels.flatten(), self.value(torch.arange(self.values))
        splits = {
            "id_atomic": self._split(self.fact_questions(*self._probed(known.facts(ood=False))), values),
            "ood_atomic": self._split(self.fact_questions(*self._probed(known.facts(ood=True))), values),
        }
        for name, pairs in {**asked.train, **asked.evaluation}.items():
            splits[name] = self._split(self.pair_questions(Pairs(*self._probed(pairs))), labels)
        stream = TableStream(self._split(table, torch.cat([values, labels])), self.batch, self.order_seed)
        return Generated(stream, splits, known.renamed(self.encoding.token))

    def _split(self, questions: Questions, answers: Tensor) -> Split:
        return replace(self.encode(questions), labels=self.encoding.token(answers))

    def _probed(self, columns: Sequence[Tensor]) -> Sequence[Tensor]:
        """At most `test_size` of the queries, given by `columns` `[N]`, in random order."""
        rows = keyed_sample(self.test_size, keyed_hash("probe", self.graph_seed, *columns) & POSITIVE)
        return [column[rows] for column in columns]

    def floor(self, split: str) -> float | None:
        """Chance among the answers of the right kind: one of three labels of the attribute, or one of all values."""
        return 1 / (3 if "labels" in self.splits[split].truth else self.values)

    def baselines(self, split: str) -> dict[str, float]:
        """`majority`: the most frequent of the three answers in training comparisons, always. `one_value`: compares the
        first value with the middle of all values, and never looks at the second.
        """
        truth = self.splits[split].truth
        if "labels" not in truth:
            return {}
        middle = self.encoding.token(self.value(torch.tensor((self.values - 1) / 2)))
        guess = torch.where(truth["v1"] > middle, GREATER, LESS)
        trained, asked = self._answered("train_inferred"), self._answered(split)
        majority = (asked == trained.bincount(minlength=3).argmax()).double().mean().item()
        right = truth["labels"].gather(1, guess) == self.splits[split].targets[:, :1]
        return {"majority": majority, "one_value": right.double().mean().item()}

    def _answered(self, split: str) -> Tensor:
        """`LESS`, `EQUAL` or `GREATER`, the right answer of each comparison of a split `[N]`."""
        queries = self.splits[split]
        return (queries.truth["labels"] == queries.targets[:, :1]).long().argmax(1)
