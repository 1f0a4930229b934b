"""Complex reasoning: comparisons of values that are not even given (Wang et al. 2024, "Grokked Transformers are
Implicit Reasoners", arXiv 2405.15071, section 5).

What is known of an out-of-distribution value are comparisons with ID entities only. The hard test asks for two such
entities, where the answer follows from given comparisons together with ID values, but not from comparisons alone.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grok.data.attribute_regime import AttributeRegime, Comparisons
from grok.data.attribute_values import EQUAL, LESS, Pairs
from grok.data.encoding import Encoding, NextToken
from grok.data.order import UNKNOWN, derived
from grok.errors import BadInput, Problem, insist

__all__ = ["ComplexReasoning"]

_LABELS = ("less", "equal", "greater")


class ComplexReasoning(AttributeRegime):
    """ID atomic facts, a share of the comparisons of two ID entities and of an ID with an OOD entity; no OOD fact.

    Atomic facts are `<q> e a <mask> </q> → <a> value </a>`, comparisons `a <q> e1 <mask> e2 </q> → <a> label </a>`.
    All three tokens of an answer are supervised, and an answer counts as right if all are. Slot 0, where lens and
    tracing look, is the value or the label, read at the position where `<a>` is shown; the slots of `<a>` and `</a>`
    come after it.

    Splits beside the usual ones: `train_inferred_cross` (the trained comparisons of an ID with an OOD entity),
    `ood_atomic` (not trained here: it probes whether hidden values were inferred), and `test_hard`, with as many
    queries for each answer.

    Args:
        share: share of the ID-ID comparisons (those not held out) and of the ID-OOD comparisons that is trained.
        hard_per_label: queries in `test_hard` for each of less, equal and greater.
        encoding: how queries become model inputs; None is `NextToken(supervise_eos=True)`.
        knowledge: see `AttributeRegime`.
    """

    held_out_splits = ("test_inferred_iid", "test_inferred_ood", "test_hard", "ood_atomic")
    fact_form = ("<q>", "e", "a", "<mask>", "</q>")
    query_form = ("a", "<q>", "e1", "<mask>", "e2", "</q>")
    answer_form = ("<a>", "answer")

    def __init__(
        self, share: float = 0.03, hard_per_label: int = 50, encoding: Encoding | None = None, **knowledge: Any
    ) -> None:
        insist(self.check(share=share, hard_per_label=hard_per_label, **knowledge))
        super().__init__(encoding=encoding or NextToken(supervise_eos=True), **knowledge)
        self.share, self.hard_per_label = share, hard_per_label

    @staticmethod
    def check(*, share: float = 0.03, hard_per_label: int = 50, **knowledge: Any) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        problems = AttributeRegime.check(**knowledge)
        if not 0 < share <= 1:
            problems.append(Problem("share", share, "give a share above 0, at most 1 (the paper: 0.03)"))
        if hard_per_label < 0:
            problems.append(Problem("hard_per_label", hard_per_label, "give a number, 0 or more (the paper: 50)"))
        return problems

    def comparisons(self) -> Comparisons:
        """See `AttributeRegime.comparisons`.

        Raises:
            BadInput: if there are too few hard queries.
        """
        known, test_size = self.knowledge, self.test_size
        evaluation = {
            "test_inferred_iid": known.sample(
                test_size, "probe", lambda a: known.among(a, False, False) & known.held_out(self.iid, a)
            ),
            "test_inferred_ood": known.sample(test_size, "probe", lambda a: known.among(a, True, True)),
            "test_hard": self._hard_test(),
        }
        train = {"train_inferred": self.given["id"], "train_inferred_cross": self.given["cross"]}
        return Comparisons(train, evaluation, trained_ood=False)

    @cached_property
    def given(self) -> dict[str, Pairs]:
        """The comparisons in training: of two ID entities (`id`), and of an ID with an OOD entity (`cross`)."""
        known = self.knowledge

        def trainable(attribute: int) -> Tensor:
            return known.among(attribute, False, False) & ~known.held_out(self.iid, attribute)

        def cross(attribute: int) -> Tensor:
            return known.among(attribute, False, True) | known.among(attribute, True, False)

        pools = {"id": trainable, "cross": cross}
        return {name: known.sample(round(self.share * known.count(pool)), "phi", pool) for name, pool in pools.items()}

    def derived(self, attribute: int) -> tuple[Tensor, Tensor]:
        """What follows about every two entities on an attribute, see `order.derived`: `[E, E]` each.

        From comparisons with OOD entities and the ID values; and from all given comparisons, but no values.
        """
        known = self.knowledge
        value, known_value = known.values[:, attribute], ~known.ood[:, attribute]
        both = known_value[:, None] & known_value
        cross, among = (self._edges(self.given[name], attribute) for name in ("cross", "id"))
        less, equal = both & (value[:, None] < value), both & (value[:, None] == value)
        return derived(cross[0] | less, cross[1] | equal), derived(cross[0] | among[0], cross[1] | among[1])

    def _edges(self, pairs: Pairs, attribute: int) -> tuple[Tensor, Tensor]:
        """What given comparisons say on an attribute, as edges `less` and `equal`: bool `[E, E]` each."""
        here = pairs.take(pairs.attribute == attribute)
        compared = self.knowledge.compared(here)
        less, equal = torch.zeros(2, self.entities, self.entities, dtype=torch.bool)
        equal[here.first[compared == EQUAL], here.second[compared == EQUAL]] = True
        low = torch.where(compared == LESS, here.first, here.second)[compared != EQUAL]
        less[low, torch.where(compared == LESS, here.second, here.first)[compared != EQUAL]] = True
        return less, equal

    def hard(self) -> Tensor:
        """The label of every hard comparison, `UNKNOWN` for all others: int8 `[A, E, E]`."""
        found = []
        for attribute in range(self.attributes):
            with_values, without = self.derived(attribute)
            hard = self.knowledge.among(attribute, True, True) & (without == UNKNOWN)
            found.append(torch.where(hard, with_values, UNKNOWN))
        return torch.stack(found)

    def _hard_test(self) -> Pairs:
        hard = self.hard() if self.hard_per_label else torch.empty(self.attributes, 0, 0)
        supply = [int((hard == label).sum()) for label in range(3)]
        if min(supply) < self.hard_per_label:
            short = supply.index(min(supply))
            fix = f"only {supply[short]} hard queries have the answer {_LABELS[short]}: use at most as many, another "
            fix += "graph_seed, more entities, a larger ood, or a smaller share"
            raise BadInput(Problem("hard_per_label", self.hard_per_label, fix))
        drawn = [
            self.knowledge.sample(self.hard_per_label, "hard", lambda a, label=label: hard[a] == label)  # type: ignore[misc]
            for label in range(3)
        ]
        return Pairs(*(torch.cat(column) for column in zip(*drawn, strict=True)))
