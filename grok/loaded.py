"""`load_run`: a run as Python objects, for notebooks: the model at any step, the data, the record."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from grok.analyses import AnalysisRecord
from grok.callbacks import load_series, load_weights
from grok.configuration import of_run
from grok.data import RegimeDataModule
from grok.errors import BadInput
from grok.lightning_cli import GrokCLI, run_lightning
from grok.models import StepModel
from grok.records import RunRecord

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

__all__ = ["LoadedRun", "instantiated", "load_run"]


class LoadedRun:
    """What `load_run` gives.

    Args:
        directory: the run directory.
        data: the data regime, as in training.
        net: a model with the architecture of the run, whose weights are not its own yet.
    """

    def __init__(self, directory: Path, data: RegimeDataModule, net: StepModel) -> None:
        self.directory, self.data, self._net = directory, data, net
        self.record = RunRecord(directory)

    @property
    def steps(self) -> list[int]:
        """Steps whose weights are kept, ascending."""
        return sorted(load_series(self.directory))

    @property
    def summary(self) -> Mapping[str, Any]:
        """`summary.json`."""
        return self.record.summary() or {}

    def model(self, step: int | None = None) -> StepModel:
        """The evaluated model at a step of the series, in evaluation mode; None means the last one.

        Raises:
            BadInput: if that step was not kept, naming those that were.
        """
        series = load_series(self.directory)
        wanted = max(series, default=None) if step is None else step
        if wanted is None or wanted not in series:
            raise BadInput(
                f"{self.directory}: step {step} was not kept; kept are {', '.join(map(str, sorted(series)))}"
            )
        model = copy.deepcopy(self._net)
        load_weights(model, series[wanted])
        return model.eval()

    def frame(self) -> pd.DataFrame:
        """The record as a data frame, one line per step, split and measure; needs pandas."""
        try:
            import pandas as pd
        except ModuleNotFoundError:
            raise BadInput("pandas is missing; pip install 'grok-circuits[notebooks]'") from None
        return pd.DataFrame(self.record.rows())

    def analysis(self, step: int | None = None) -> dict[str, Tensor]:
        """Per-query results of the circuit analyses at a step, by `KIND/SPLIT/WHAT`; None means the last one."""
        kept = AnalysisRecord(self.directory)
        return kept.read(max(kept.steps(), default=0) if step is None else step)

    def __repr__(self) -> str:
        return f"LoadedRun({str(self.directory)!r}, {type(self.data).__name__}, {type(self._net).__name__})"


def load_run(run: str | Path) -> LoadedRun:
    """A run directory as Python objects, on the CPU; nothing is trained or written.

    Args:
        run: the run directory.

    Raises:
        BadInput: if it is no run, or its configuration does not fit the code any more.
    """
    cli = instantiated([*of_run(run), "--trainer.accelerator", "cpu", "--trainer.devices", "1"])
    return LoadedRun(Path(run), cli.datamodule, cli.model.evaluated)


def instantiated(arguments: list[str]) -> Any:
    """The command line with everything made from `arguments` of `grok validate`, and nothing done."""
    made: list[GrokCLI] = []

    class Only(GrokCLI):
        def choose_checkpoint(self) -> None:
            """None is needed."""

        def validate(self, **_: Any) -> None:
            made.append(self)

    with _undisturbed():
        run_lightning(["validate", *arguments], Only)
    return made[0]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A notebook's random numbers, environment, switches of torch and screen are its own."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    seeds = {key: os.environ.get(key) for key in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with isolate_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for key, seed in seeds.items():
            os.environ.pop(key, None) if seed is None else os.environ.update({key: seed})
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
