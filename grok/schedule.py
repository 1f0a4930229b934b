"""At which optimizer steps something happens."""

from __future__ import annotations

from grok.errors import Problem, insist

__all__ = ["Schedule"]


class Schedule:
    """Every `every` steps, more often at the start if asked, and rarely later.

    Training blocks end at every step of every schedule, so that what is due is done at exactly that step.

    Args:
        every: distance between two due steps; with `then`, only up to `until`.
        until: last step of the dense part.
        then: distance between two due steps after `until` (Wang et al. 2024 save every 2,000 steps up to 40,000, then
            every 50,000: `every=2000, until=40000, then=50000`).
        powers_of_two: steps 1, 2, 4, 8, … as well.
        start: step 0 as well, before the first update.
    """

    def __init__(
        self,
        every: int,
        until: int | None = None,
        then: int | None = None,
        powers_of_two: bool = False,
        start: bool = False,
    ) -> None:
        insist(self.check(every=every, until=until, then=then))
        self.every, self.until, self.then = every, until, then
        self.powers_of_two, self.start = powers_of_two, start

    @staticmethod
    def check(every: int, until: int | None = None, then: int | None = None) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = [
            Problem(key, value, "give a number of optimizer steps, 1 or more")
            for key, value in (("every", every), ("until", until), ("then", then))
            if value is not None and value < 1
        ]
        if (until is None) != (then is None):
            problems.append(Problem("until", until, "set `until` and `then` together, or neither"))
        elif until is not None and not problems and until % every:
            problems.append(Problem("until", until, f"use a multiple of every={every}"))
        return problems

    def due(self, step: int) -> bool:
        """Whether `step` is on the schedule."""
        if step == 0:
            return self.start
        if self.powers_of_two and step & (step - 1) == 0:
            return True
        if self.until is None or self.then is None or step <= self.until:
            return step % self.every == 0
        return (step - self.until) % self.then == 0

    def following(self, step: int) -> int:
        """The first due step after `step`."""
        if self.until is None or self.then is None or step < self.until:
            regular = (step // self.every + 1) * self.every
        else:
            regular = self.until + ((step - self.until) // self.then + 1) * self.then
        return min(regular, 1 << step.bit_length()) if self.powers_of_two else regular
