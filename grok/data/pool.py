"""Whether there are as many inferred facts as phi asks for."""

from __future__ import annotations

import math

from grok.errors import BadInput, Problem

__all__ = ["insist_on_pool"]


def insist_on_pool(phi: float, ood: float, size: int, pool: int, facts: int, of: tuple[str, str]) -> None:
    """Refuse a phi that asks for more inferred facts than can be trained.

    Args:
        phi: as asked for.
        ood: share of the facts that are out of distribution, which leaves the fewer the larger it is.
        size: inferred facts that it asks for.
        pool: inferred facts that can be trained.
        facts: facts that phi counts by.
        of: what the two are called (`("ID compositions", "ID facts")`).

    Raises:
        BadInput: naming the largest phi that can be, or saying that there is none.
    """
    if not facts or not pool:
        fix = f"leave more facts in distribution, and hold fewer queries out: no {of[0]} can be trained"
        raise BadInput(Problem("ood", ood, fix))
    if size > pool:
        largest = math.floor(pool / facts * 1000) / 1000
        fix = f"use at most {largest}: {pool:,} {of[0]} can be trained, for {facts:,} {of[1]}"
        raise BadInput(Problem("phi", phi, fix))
