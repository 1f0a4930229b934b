"""`Figures`: draws the run's pictures from its record when it ends, never in the training loop."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import lightning as L

from grok.callbacks.console import say
from grok.records import RunRecord

__all__ = ["Figures", "draw_figures"]


class Figures(L.Callback):
    """Writes `figures/*.png` and `*.svg` in the run directory.

    Args:
        enabled: False draws nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw what the record holds."""
        if not self.enabled or not trainer.is_global_zero:
            return
        if RunRecord(trainer.default_root_dir).rows():
            draw_figures(trainer.default_root_dir)


def draw_figures(run: str | Path) -> list[Path]:
    """Draw a run's pictures from its record, for `figures/` and TensorBoard; none, and a hint, without matplotlib."""
    if find_spec("matplotlib") is None:
        say("no figures without matplotlib: pip install 'grok-circuits[plots]'")
        return []
    from grok.report.figures import draw
    from grok.report.tensorboard import show_pictures

    pictures = draw(run)
    show_pictures(run, pictures)
    return pictures
