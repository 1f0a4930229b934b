"""What a model must know of the data to be built."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """Sizes that the data fixes and the model obeys, so that a user never writes a number twice.

    Args:
        positions: length of the longest input, in positions.
        outputs: width of the read-out: vocabulary rows of a classifier, or predicted values.
        tokens: rows of the token embedding; None if the inputs are continuous columns.
        features: width of a continuous input column; None if the inputs are tokens.
    """

    positions: int
    outputs: int
    tokens: int | None = None
    features: int | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.features is None):
            raise ValueError("a task has either tokens or features")
