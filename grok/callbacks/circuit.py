"""`CircuitCallback`: when a circuit analysis runs (in training, on a checkpoint, over a series), and what it keeps."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from grok.analyses import AnalysisRecord
from grok.callbacks.checkpoints import CheckpointSeries
from grok.callbacks.console import say
from grok.callbacks.cost import CostMeter
from grok.circuits.examples import choose_examples
from grok.circuits.grid import Grid
from grok.data import RegimeDataModule, Split
from grok.errors import BadInput, Problem, insist
from grok.models import StepModel
from grok.records import Row, RunRecord
from grok.schedule import Schedule
from grok.training import FullySharded, GrokModule

__all__ = ["Analysis", "CircuitCallback", "grid_rows"]


@dataclass(frozen=True)
class Analysis:
    """What one analysis of one split gives: statistics, and per-query tensors by name."""

    grids: Sequence[Grid]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def grid_rows(step: int, split: str, grid: Grid) -> list[Row]:
    """The lines of `metrics.jsonl` of a grid, one per cell that has a value: `lens/mrr/bridge/S[2,r1]`, or
    `lens/mrr/bridge/S[2,r1].z_L` of one stream of several, or `found/bridge` on a single axis.
    """
    rows: list[Row] = []
    for labels, cell in grid.cells():
        if cell["value"] is not None:
            place = "/".join(labels)
            if tuple(grid.axes) == ("step", "position"):
                state, _, stream = labels[0].partition("]")
                place = f"{state},{labels[1]}]{stream}"
            rows.append({"step": step, "split": split, "name": f"{grid.name}/{place}", **cell})
    return rows


class CircuitCallback(L.Callback):
    """Analyses the evaluated weights at scheduled steps, and the first and last ones.

    Scalars go to the loggers and to `metrics.jsonl`, per-query tensors to `analysis/`. The random state of training is
    not touched, so that a run with analyses has the same weights as one without.

    Args:
        enabled: whether this analysis runs at all.
        every: optimizer steps between two analyses; null means whenever the checkpoint series saves.
        examples: queries examined per split; null means 300, or all if there are fewer.
        splits: evaluation splits examined; null means the first held-out split.
        batch: most rows of a forward pass; bounds memory.
    """

    kind: str = ""
    """Name of the analysis, as in the configuration and in the record."""

    of_values: bool = False
    """Whether it makes sense of queries whose answers are values, not tokens."""

    names: re.Pattern[str] | None = None
    """Of an analysis that records other names each time: its lines, which go when a trace makes it again."""

    def __init__(
        self,
        enabled: bool = False,
        every: int | None = None,
        examples: int | None = None,
        splits: Sequence[str] | None = None,
        batch: int = 2048,
    ) -> None:
        insist(self.check(every=every, examples=examples, batch=batch))
        self.enabled, self.every, self.examples, self.splits, self.batch = enabled, every, examples, splits, batch
        self.schedule = None if every is None or not enabled else Schedule(every, start=True)
        self._analysed: int | None = None
        self._chosen: dict[str, Split] = {}

    @staticmethod
    def check(*, every: int | None = None, examples: int | None = None, batch: int = 2048, **_: Any) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = [] if every is None else Schedule.check(every)
        sizes = {"examples": examples, "batch": batch}
        return problems + [Problem(k, v, "use 1 or more") for k, v in sizes.items() if v is not None and v < 1]

    @abstractmethod
    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """Analyse the chosen examples `split` of the evaluation split `name`."""

    # ------------------------------------------------------------------ what is examined

    def usual_splits(self, data: RegimeDataModule) -> Sequence[str]:
        """Splits examined where none is named."""
        return data.held_out_splits[:1]

    def usual_examples(self, split: Split) -> int | None:
        """Examples of a split where no number is given, see `choose_examples`."""
        return None

    def prepare(self, data: RegimeDataModule, model: StepModel) -> None:
        """Choose the examples, and find what is wrong with the request before anything is trained or written.

        Raises:
            BadInput: naming the split, ground truth or state that does not exist, and those that do.
        """
        if not self.enabled:
            return
        names = self.splits or self.usual_splits(data)
        if not names:
            fix = f"{type(data).__name__} has no held-out split: name some of {', '.join(data.splits)}"
            insist([Problem(f"{self.kind}.splits", self.splits, fix)])
        for name in names:
            if name not in data.splits:
                fix = f"no such split, or an empty one; this regime has {', '.join(data.splits)}"
                insist([Problem(f"{self.kind}.splits", name, fix)])
            split = data.splits[name]
            if split.targets.is_floating_point() and not self.of_values:
                fix = f"the answers of {name} are values, not tokens: use {self.kind}.enabled=false"
                insist([Problem(f"{self.kind}.enabled", True, fix)])
            try:
                self._chosen[name] = choose_examples(split, self.examples or self.usual_examples(split), name=name)
                self.validate(model, data, name, self._chosen[name])
            except BadInput as error:
                raise BadInput(*(self._told(one) for one in error.problems)) from error

    def _told(self, problem: Problem | str) -> Problem | str:
        """A problem by the key that the user can write, or else under the name of the analysis."""
        if isinstance(problem, Problem) and problem.key in vars(self):
            return problem.under(self.kind)
        return f"{self.kind}: {problem}"

    def due(self, step: int, last: int) -> bool:
        """Whether a saved checkpoint is one that a trace looks at: all, or the first, the last, and every so many."""
        return self.schedule is None or step == last or self.schedule.due(step)

    def validate(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> None:
        """Raise `BadInput` if the analysis cannot be made on `split`; by default it is tried."""
        self.analyse(model, data, name, split)

    def measure(self, model: StepModel, data: RegimeDataModule) -> dict[str, Analysis]:
        """Analyse every split asked for."""
        if not self._chosen:
            self.prepare(data, model)
        return {name: self.analyse(model, data, name, split) for name, split in self._chosen.items()}

    # ------------------------------------------------------------------ when

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the schedule of the checkpoint series unless there is one of our own."""
        if self.enabled and isinstance(trainer.strategy, FullySharded):
            fix = "needs whole weights on one device: use false, and `grok trace` the finished run"
            insist([Problem(f"{self.kind}.enabled", True, fix)])
        if not self.enabled or stage != "fit" or self.schedule is not None:
            return
        series = [one for one in cast(Any, trainer).callbacks if isinstance(one, CheckpointSeries)]
        if not series:
            insist([Problem(f"{self.kind}.every", None, "no checkpoint series to follow: give a number of steps")])
        self.schedule = series[0].schedule

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Analyse step 0."""
        if trainer.global_step == 0:
            self._analyse(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Analyse when due."""
        if self.schedule is not None and self.schedule.due(trainer.global_step):
            self._analyse(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Analyse the end."""
        self._analyse(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """`grok validate` and `grok test` print what the checkpoint shows."""
        if not self.enabled or trainer.state.fn == "fit" or not trainer.is_global_zero:
            return
        for name, analysis in self.measure(*_model_and_data(trainer, pl_module)).items():
            for grid in analysis.grids:
                say(f"\n{name}: {grid}")

    on_test_end = on_validation_end

    def _analyse(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if not self.enabled or self._analysed == step:
            return
        self._analysed = step
        if not trainer.is_global_zero:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # what training has queued is not ours
        began = time.perf_counter()
        rows = self.record(trainer.default_root_dir, step, *_model_and_data(trainer, pl_module))
        RunRecord(trainer.default_root_dir).append(rows)
        for logger in trainer.loggers:
            logger.log_metrics({f"{row['name']}/{row['split']}": row["value"] for row in rows}, step)
        self._account(trainer, time.perf_counter() - began)

    def record(self, run: str, step: int, model: StepModel, data: RegimeDataModule) -> list[Row]:
        """Analyse, keep the per-query tensors in `analysis/`, and return the lines for `metrics.jsonl`."""
        rows: list[Row] = []
        tensors: dict[str, Tensor] = {}
        for name, analysis in self.measure(model, data).items():
            rows += [row for grid in analysis.grids for row in grid_rows(step, name, grid)]
            if analysis.tensors:
                kept = {**analysis.tensors, "inputs": self._chosen[name].inputs}
                tensors |= {f"{self.kind}/{name}/{key}": tensor for key, tensor in kept.items()}
        if tensors:
            AnalysisRecord(run).write(step, tensors)
            AnalysisRecord(run).name_tokens(data.task.tokens or 0, data.token_name)
        return rows

    def replaces(self, row: Row, step: int) -> bool:
        """Whether a line of the record is what an earlier analysis found where this one has looked at `step`."""
        mine = self.names is not None and self.names.fullmatch(row["name"]) is not None
        return mine and row["step"] == step and row["split"] in self._chosen

    # ------------------------------------------------------------------ what it costs

    def _account(self, trainer: L.Trainer, seconds: float) -> None:
        for callback in cast(Any, trainer).callbacks:
            if isinstance(callback, CostMeter):
                callback.add_analysis(seconds)
        for logger in trainer.loggers:
            logger.log_metrics({f"analysis_seconds/{self.kind}": seconds}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the last step analysed."""
        return {"analysed": self._analysed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._analysed = state_dict["analysed"]


def _model_and_data(trainer: L.Trainer, module: L.LightningModule) -> tuple[StepModel, RegimeDataModule]:
    return cast(GrokModule, module).evaluated, cast(RegimeDataModule, cast(Any, trainer).datamodule)
