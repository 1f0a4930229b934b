"""`grok trace RUN`: the circuit callbacks over a whole checkpoint series, as if they had run while it trained."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml

from grok.callbacks import CircuitCallback, load_series, load_weights, verify_series
from grok.callbacks.console import say
from grok.callbacks.figures import draw_figures
from grok.configuration import differences, of_run
from grok.data import RegimeDataModule
from grok.errors import BadInput
from grok.files import lock, write_atomically
from grok.lightning_cli import CALLBACKS, GrokCLI, dump_config, run_lightning
from grok.models import StepModel
from grok.records import Row, RunRecord
from grok.report.tensorboard import as_scalars, forget_scalars, show_scalars

__all__ = ["trace", "trace_series"]

KINDS = [name for name, callback in CALLBACKS.items() if issubclass(callback, CircuitCallback)]

USAGE = f"""usage: grok trace RUN [--KIND.enabled true] [--KIND.every N] [--KIND.examples N] …
KIND is one of {", ".join(KINDS)}; `grok fit --help` explains their keys.
Every saved checkpoint is analysed (with `every`: those that are due, the first and the last)."""

_FREE = (*KINDS, "figures", "experiment", "trainer.accelerator", "trainer.devices", "trainer.logger")
"""What may differ from the run's configuration: what is analysed and where, not what was trained."""


class TraceCLI(GrokCLI):
    """Everything `grok validate` makes, used on every checkpoint of the series instead of on `last.ckpt`."""

    def choose_checkpoint(self) -> None:
        """Every checkpoint of the series is examined, and only those of the run as it was trained."""
        if self.options.ckpt_path is not None:
            raise BadInput("ckpt_path: trace examines the run's own series; `grok test` examines one checkpoint")
        saved = yaml.safe_load((self.run_dir / "config.yaml").read_text())
        self.wanted = wanted = yaml.safe_load(dump_config(self._parser(self.subcommand), self.options))
        kept = [key for key in saved if key not in _FREE]  # not what `validate` has and `fit` has not
        old, new = ({key: one.get(key) for key in kept} for one in (saved, wanted))
        changes = [line for line in differences(old, new) if not line.strip().startswith(_FREE)]
        if changes:
            raise BadInput(
                f"{self.run_dir} was trained with another configuration; trace changes analyses only", *changes
            )
        verify_series(self.run_dir)

    def validate(self, **_: Any) -> None:
        """Run the enabled circuit callbacks over the series.

        Raises:
            BadInput: if none is enabled.
        """
        enabled = [one for one in cast(Any, self.trainer).callbacks if isinstance(one, CircuitCallback) and one.enabled]
        if not enabled:
            raise BadInput(
                f"{self.run_dir}: no analysis is enabled; add --KIND.enabled true, KIND one of {', '.join(KINDS)}"
            )
        self.trainer.precision_plugin.convert_module(self.model)  # the numbers that training computes with
        model: StepModel = self.model.evaluated.to(self.trainer.strategy.root_device)
        trace_series(self.run_dir, model, self.datamodule, enabled)
        used = {one.kind: self.wanted[one.kind] for one in enabled}
        write_atomically(self.run_dir / "analysis" / "traced.yaml", yaml.safe_dump(used, sort_keys=False))
        pictures = draw_figures(self.run_dir) if self.options.figures.enabled else []
        for line in ["Look:", *(f"  {path}" for path in pictures if path.suffix == ".png")] if pictures else []:
            say(line)


def trace_series(
    run: str | Path, model: StepModel, data: RegimeDataModule, callbacks: Sequence[CircuitCallback]
) -> None:
    """Analyse the checkpoints of the series in `run`; the record is then the same as if it had been done live.

    The record is complete after every checkpoint, so that an interrupted trace leaves nothing half-written.

    Raises:
        BadInput: if a checkpoint is damaged or of another model, or another process is training there.
    """
    record = RunRecord(run)
    with ExitStack() as at_end:
        if (held := lock(Path(run))) is not None:
            at_end.enter_context(held)
        record.truncate(sys.maxsize)  # a last line that a crash has torn goes
        at_end.callback(_show_in_tensorboard, record, as_scalars(record.rows()))
        series = load_series(run)
        for step, path in series.items():
            due = [callback for callback in callbacks if callback.due(step, max(series))]
            if not due:
                continue
            load_weights(model, path)
            began = time.perf_counter()
            rows = [row for callback in due for row in callback.record(str(run), step, model, data)]
            record.replace(rows, partial(_replaced, due, step))
            kinds = ", ".join(callback.kind for callback in due)
            say(f"step {step:>7}  {kinds}  {time.perf_counter() - began:.2f} s")


def _show_in_tensorboard(record: RunRecord, before: Mapping[tuple[str, int], float]) -> None:
    """Bring the event files to what the record says now, where it is not what it said before."""
    now = as_scalars(record.rows())
    forget_scalars(record.directory, {scalar for scalar, value in before.items() if now.get(scalar) != value})
    show_scalars(record.directory, {scalar: now[scalar] for scalar in now if before.get(scalar) != now[scalar]})


def _replaced(callbacks: Sequence[CircuitCallback], step: int, row: Row) -> bool:
    return any(callback.replaces(row, step) for callback in callbacks)


def trace(argv: Sequence[str]) -> None:
    """Run the command."""
    if "--help" in argv or "-h" in argv:
        say(USAGE)
        return
    if not argv or argv[0].startswith("-"):
        raise BadInput(USAGE)
    run_lightning(["validate", *of_run(argv[0]), *argv[1:]], TraceCLI)
