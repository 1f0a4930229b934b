"""Comparison of values that are never shown (Wang et al. 2024, "Grokked Transformers are Implicit Reasoners",
arXiv 2405.15071, section 4).

Atomic facts `e a → value`, comparisons `a <q> e1 <mask> e2 → label`. Out-of-distribution facts are trained as atomic
facts but in no comparison; transformers that have grokked compare them all the same, unlike in composition.
"""

from __future__ import annotations

import math
from typing import Any

from grok.data.attribute_regime import AttributeRegime, Comparisons
from grok.data.pool import insist_on_pool
from grok.errors import Problem, insist

__all__ = ["Comparison"]


class Comparison(AttributeRegime):
    """All atomic facts and a sample of the comparisons of two ID entities.

    The sample of a smaller `phi` is part of that of a larger one, and all share values and held-out splits. Pairs of
    two ID entities are `test_inferred_iid` with both orders, or trained; pairs of two entities that are OOD on the
    attribute are `test_inferred_ood`; mixed pairs are neither.

    Args:
        phi: comparisons in training per ID atomic fact.
        knowledge: see `AttributeRegime`.
    """

    held_out_splits = ("test_inferred_iid", "test_inferred_ood")
    fact_form = ("e", "a")
    query_form = ("a", "<q>", "e1", "<mask>", "e2")

    def __init__(self, phi: float = 12.6, **knowledge: Any) -> None:
        insist(self.check(phi=phi, **knowledge))
        super().__init__(**knowledge)
        self.phi = phi

    @staticmethod
    def check(*, phi: float = 12.6, **knowledge: Any) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        problems = AttributeRegime.check(**knowledge)
        if not 0 < phi < math.inf:
            problems.append(
                Problem("phi", phi, "give comparisons per ID atomic fact, above 0 (the paper: 3.6 to 12.6)")
            )
        return problems

    def comparisons(self) -> Comparisons:
        """See `AttributeRegime.comparisons`.

        Raises:
            BadInput: if `phi` asks for more comparisons than there are.
        """
        known = self.knowledge
        facts = len(known.facts(ood=False)[0])
        size = round(self.phi * facts)
        train = known.sample(size, "phi", lambda a: known.among(a, False, False) & ~known.held_out(self.iid, a))
        insist_on_pool(self.phi, self.ood, size, len(train.first), facts, ("ID comparisons", "ID facts"))
        evaluation = {
            "test_inferred_iid": known.sample(
                self.test_size, "probe", lambda a: known.among(a, False, False) & known.held_out(self.iid, a)
            ),
            "test_inferred_ood": known.sample(self.test_size, "probe", lambda a: known.among(a, True, True)),
        }
        return Comparisons({"train_inferred": train}, evaluation, trained_ood=True)
