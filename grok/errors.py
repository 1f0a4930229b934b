"""Bad input, told in one line each: the key, the value and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["BadInput", "NotFinite", "Problem", "insist"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what the user wrote."""

    key: str
    value: Any
    fix: str

    def __str__(self) -> str:
        value = repr(self.value)
        return f"{self.key}={value if len(value) <= 80 else value[:37] + '...' + value[-40:]}: {self.fix}"

    def under(self, prefix: str) -> Problem:
        """The same problem, its key seen from the top of the configuration."""
        return Problem(f"{prefix}.{self.key}" if prefix else self.key, self.value, self.fix)


class BadInput(ValueError):
    """Something the user wrote cannot be used; the command line prints it and exits with status 2.

    Args:
        problems: every problem found, so that a configuration is mended in one go.
    """

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


class NotFinite(ArithmeticError):
    """Training met a loss or a gradient that is infinite or not a number; the command line exits with status 1.

    Args:
        step: number of the optimizer step, counted from 1; its batch is number `step - 1` of the stream.
        what: the loss, or the norm of the gradient.
        value: of it.
        more: what else is to be said.
    """

    def __init__(self, step: int, what: str, value: float, more: str = "") -> None:
        self.step, self.what, self.value, self.more = step, what, value, more
        super().__init__(f"the {what} is {value} at optimizer step {step}{more}")


def insist(problems: Iterable[Problem]) -> None:
    """Raise `BadInput` with all `problems` if there are any."""
    found = list(problems)
    if found:
        raise BadInput(*found)
