"""`Figures`: draws the run's pictures from its record when it ends, never in the training loop."""

from __future__ import annotations

from importlib.util import find_spec

import lightning as L

from grok.callbacks.console import say
from grok.records import RunRecord

__all__ = ["Figures"]


class Figures(L.Callback):
    """Writes `figures/*.png` and `*.svg` in the run directory.

    Args:
        enabled: False draws nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, if matplotlib is installed."""
        if not self.enabled or not trainer.is_global_zero:
            return
        if find_spec("matplotlib") is None:
            say("no figures without matplotlib: pip install 'grok-circuits[plots]'")
            return
        from grok.report.figures import draw
        from grok.report.tensorboard import to_tensorboard

        if RunRecord(trainer.default_root_dir).rows():
            to_tensorboard(trainer.default_root_dir, pictures=draw(trainer.default_root_dir))
