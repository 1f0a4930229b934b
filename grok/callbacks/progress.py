"""`Progress`: a bar with the accuracies of all splits, for a person who watches."""

from __future__ import annotations

import sys
from typing import Any, cast

import lightning as L

from grok.callbacks.console import BAR
from grok.training import GrokModule

__all__ = ["Progress"]


class Progress(L.Callback):
    """A progress bar on a terminal, in the place of a line per evaluation; it follows blocks and costs no step.

    Args:
        enabled: whether there is a bar; null means on a terminal only, so that logs of batch jobs have lines.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = enabled
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero or not (sys.stderr.isatty() if self.enabled is None else self.enabled):
            return
        from tqdm import tqdm

        done, total = trainer.global_step, trainer.max_steps
        self._bar = tqdm(initial=done, total=total, unit=" steps", dynamic_ncols=True, mininterval=0.3, file=sys.stderr)
        BAR.append(self._bar)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Follow."""
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show what was measured."""
        if self._bar is None:
            return
        scores = cast(GrokModule, pl_module).scores
        told = (
            f"{name} {score.loss:.3g}" if score.accuracy is None else f"{name} {score.accuracy:.0%}"
            for name, score in scores.items()
        )
        self._bar.set_postfix_str("  ".join(told), refresh=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take it away, and leave its last state on the screen."""
        if self._bar is not None:
            BAR.remove(self._bar)
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """See `on_train_end`."""
        self.on_train_end(trainer, pl_module)
