"""`Phase`: a named part of training that ends when a split is answered, and when each of a run began and ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Phase", "Span", "numeral", "spans"]


@dataclass(frozen=True)
class Phase:
    """A part of training, as a regime declares it.

    Args:
        name: what is learnt in it (`memorisation`).
        split: the split whose accuracy marks its end.
        level: the accuracy at which it ends; None means the monitor's threshold.
    """

    name: str
    split: str
    level: float | None = None


@dataclass(frozen=True)
class Span:
    """When a run was in a phase.

    Args:
        split: the split that marks its end.
        level: the accuracy at which it ends.
        begin: optimizer step at which it began; None if it has not.
        end: optimizer step at which it ended; None if it has not.
    """

    split: str
    level: float
    begin: int | None
    end: int | None

    def written(self) -> dict[str, str | float | int | None]:
        """As plain data."""
        return asdict(self)


def spans(phases: Sequence[Phase], crossed: Sequence[int | None], levels: Sequence[float]) -> dict[str, Span]:
    """When each phase began and ended, by name, in order.

    The first phase begins at step 0, each other one where the phase before has ended. A phase ends at the first
    evaluation at which its split has reached its level and all earlier phases have ended: a split that was early ends
    its phase at once, so that a phase may have no length, but none overtakes another. What has ended stays ended.

    Args:
        phases: as declared.
        crossed: step at which the split of each phase first reached its level; None if it has not.
        levels: accuracy at which each phase ends.
    """
    found: dict[str, Span] = {}
    begin: int | None = 0
    for phase, step, level in zip(phases, crossed, levels, strict=True):
        end = None if begin is None or step is None else max(begin, step)
        found[phase.name] = Span(phase.split, level, begin, end)
        begin = end
    return found


def numeral(names: Mapping[str, object] | Sequence[str], name: str) -> str:
    """The number of a phase among all of a regime, as in the papers: I, II, III, …"""
    return ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")[list(names).index(name)]
