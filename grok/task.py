"""What a model must know of the data to be built."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Field", "Task"]


@dataclass(frozen=True)
class Field:
    """A part of a continuous column, for models whose attention acts on columns as they are (`projections=key_query`).

    Args:
        name: what it holds (`parent`, `label`), for records and plots.
        size: number of features.
        matched: whether queries and keys compare it.
        head: the attention head that writes it.
    """

    name: str
    size: int
    matched: bool = True
    head: int = 0


@dataclass(frozen=True)
class Task:
    """Sizes that the data fixes and the model obeys, so that a user never writes a number twice.

    Args:
        positions: length of the longest input, in positions.
        outputs: width of the read-out: vocabulary rows of a classifier, or predicted values.
        tokens: rows of the token embedding; None if the inputs are continuous columns.
        features: width of a continuous input column; None if the inputs are tokens.
        fields: the consecutive parts of a column; none means one part, which nobody has named.
        answer: first feature of the part of a column that is answered, which a fixed read-out gives.
        answers_shown: whether answers stand in the input behind the positions at which they are asked for, where a
            model that is not causal would just read them.
    """

    positions: int
    outputs: int
    tokens: int | None = None
    features: int | None = None
    fields: tuple[Field, ...] = ()
    answer: int = 0
    answers_shown: bool = False

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.features is None):
            raise ValueError("a task has either tokens or features")
        if self.fields and sum(field.size for field in self.fields) != self.features:
            raise ValueError(f"fields {self.fields} for columns of {self.features} features")

    def slices(self) -> dict[str, slice]:
        """Which features each field takes."""
        found, first = {}, 0
        for field in self.fields:
            found[field.name] = slice(first, first + field.size)
            first += field.size
        return found
