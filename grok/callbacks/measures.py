"""What the data regime brings for the analysis: groups of positions to attend to, and measures of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from grok.callbacks.circuit import Analysis, CircuitCallback
from grok.circuits import group_mass, has_measures, measures
from grok.data import RegimeDataModule, Split
from grok.errors import Problem, insist
from grok.models import StepModel

__all__ = ["AttentionGroups", "RegimeMeasures"]


class _Brought(CircuitCallback):
    """Looks at what the regime brings, which may be about values; by default at its main split."""

    of_values = True

    def usual_splits(self, data: RegimeDataModule) -> Sequence[str]:
        """See `CircuitCallback.usual_splits`."""
        return [data.main_split]


class AttentionGroups(_Brought):
    """Attention mass of every head on the groups of positions that the regime names, see `grok.circuits.group_mass`.

    Arguments are those of `CircuitCallback`; `splits` null means the first held-out split, or else the first of all.
    """

    kind = "groups"

    def validate(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> None:
        """See `CircuitCallback.validate`."""
        if not data.groups(split):
            insist([Problem("enabled", True, f"{type(data).__name__} names no groups of positions: use false")])
        super().validate(model, data, name, split.take(slice(0, 2)))

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        return Analysis([group_mass(model, split, data.groups(split), self.batch)])


class RegimeMeasures(_Brought):
    """What the regime itself measures of a model, such as rollouts, see `grok.circuits.measures`.

    Arguments are those of `CircuitCallback`; `splits` null means the first held-out split, or else the first of all.
    """

    kind = "measures"

    def validate(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> None:
        """See `CircuitCallback.validate`."""
        if not has_measures(data):
            insist([Problem("enabled", True, f"{type(data).__name__} has no measures of its own: use false")])
        measures(data, model, name, split.take(slice(0, 2)), self.batch)

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        found = measures(data, model, name, split, self.batch)
        return Analysis([replace(grid, name=f"measures/{grid.name}") for grid in found])
