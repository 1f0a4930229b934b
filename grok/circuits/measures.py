"""`measures`: what a data regime itself measures of a model, beside the accuracy of its splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from grok.circuits.grid import Grid
from grok.data import RegimeDataModule
from grok.data.split import Split
from grok.models import StepModel

__all__ = ["has_measures", "measures"]


@singledispatch
def measures(data: RegimeDataModule, model: StepModel, name: str, split: Split, batch: int = 1024) -> Sequence[Grid]:
    """Rollouts, errors by position, entries of matrices: none for most regimes; another adds its own by
    `@measures.register` on its class.

    Args:
        data: the regime.
        model: any step model.
        name: of the evaluation split.
        split: the examined examples of it.
        batch: most queries of one forward pass.

    Returns:
        Grids whose names have no slash and whose axes have other names than `step` and `position`. Where the labels of
        the last axis are numbers, pictures have it as their x axis, called by what follows `_by_` in the name of the
        grid (`error_by_examples`).
    """
    return ()


def has_measures(data: RegimeDataModule) -> bool:
    """Whether the regime has any."""
    return measures.dispatch(type(data)) is not measures.dispatch(object)
