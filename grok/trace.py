"""`grok trace RUN`: the circuit callbacks over a whole checkpoint series, as if they had run while it trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from grok.callbacks import CircuitCallback, load_series, load_weights, lock, verify_series
from grok.callbacks.console import say
from grok.configuration import of_run
from grok.data import RegimeDataModule
from grok.errors import BadInput
from grok.lightning_cli import GrokCLI, run_lightning
from grok.models import StepModel
from grok.records import Row, RunRecord
from grok.report.tensorboard import to_tensorboard

__all__ = ["trace", "trace_series"]

USAGE = "usage: grok trace RUN [--lens.enabled true] [--tracing.every …]; any key of the run's configuration may follow"


class TraceCLI(GrokCLI):
    """Everything `grok validate` makes, used on every checkpoint of the series instead of on `last.ckpt`."""

    def choose_checkpoint(self) -> None:
        """Every checkpoint of the series is examined."""
        verify_series(self.run_dir)

    def validate(self, **_: Any) -> None:
        """Run the enabled circuit callbacks over the series.

        Raises:
            BadInput: if none is enabled.
        """
        watching = [one for one in cast(Any, self.trainer).callbacks if isinstance(one, CircuitCallback)]
        enabled = [one for one in watching if one.enabled]
        if not enabled:
            kinds = ", ".join(one.kind for one in watching)
            raise BadInput(f"{self.run_dir}: no analysis is enabled; add --KIND.enabled true, KIND one of {kinds}")
        model: StepModel = self.model.evaluated.to(self.trainer.strategy.root_device)
        trace_series(self.run_dir, model, self.datamodule, enabled)
        if not self.options.figures.enabled:
            return
        if find_spec("matplotlib") is None:
            say("no figures without matplotlib: pip install 'grok-circuits[plots]'")
            return
        from grok.report.figures import draw

        pictures = draw(self.run_dir)
        to_tensorboard(self.run_dir, pictures=pictures)
        say("Look:")
        for picture in pictures:
            if picture.suffix == ".png":
                say(f"  {picture}")


def trace_series(
    run: str | Path, model: StepModel, data: RegimeDataModule, callbacks: Sequence[CircuitCallback]
) -> list[Row]:
    """Analyse every checkpoint of the series in `run`; the record is then the same as if it had been done live.

    Returns:
        The lines that are now in `metrics.jsonl`.

    Raises:
        BadInput: if a checkpoint is damaged or of another model, or another process is training there.
    """
    record, held = RunRecord(run), lock(Path(run))
    rows: list[Row] = []
    try:
        for step, path in load_series(run).items():
            load_weights(model, path)
            began = time.perf_counter()
            for callback in callbacks:
                rows += callback.record(str(run), step, model, data)
            kinds = ", ".join(callback.kind for callback in callbacks)
            say(f"step {step:>7}  {kinds}  {time.perf_counter() - began:.2f} s")
        known = {(row["step"], row["split"], row["name"]) for row in record.rows()}
        record.replace(rows)
        to_tensorboard(run, [row for row in rows if (row["step"], row["split"], row["name"]) not in known])
    finally:
        if held is not None:
            held.close()
    return rows


def trace(argv: Sequence[str]) -> None:
    """Run the command."""
    if not argv or argv[0].startswith("-"):
        raise BadInput(USAGE)
    run_lightning(["validate", *of_run(argv[0]), *argv[1:]], TraceCLI)
