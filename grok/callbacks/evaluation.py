"""When to evaluate."""

from __future__ import annotations

from typing import Any

import lightning as L

from grok.schedule import Schedule

__all__ = ["Evaluation"]


class Evaluation(L.Callback):
    """Runs Lightning's validation loop at the optimizer steps of a schedule, and at the end.

    The Trainer's own intervals count blocks; this one counts optimizer steps, and may be dense early and sparse later.

    Args:
        every: optimizer steps between two evaluations.
        until: end of the dense part, see `Schedule`.
        then: distance after `until`.
        powers_of_two: evaluate at steps 1, 2, 4, 8, … too, for curves over log steps.
    """

    check = staticmethod(Schedule.check)

    def __init__(
        self, every: int = 1000, until: int | None = None, then: int | None = None, powers_of_two: bool = False
    ) -> None:
        self.schedule = Schedule(every, until, then, powers_of_two)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Tell the training loop, which asks right after this hook, whether to validate now."""
        trainer.val_check_batch = 1 if self.schedule.due(trainer.global_step) else float("inf")
