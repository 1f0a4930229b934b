"""`RunRecorder`: writes the run's record at every evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from grok.analyses import AnalysisRecord
from grok.data import RegimeDataModule
from grok.errors import BadInput
from grok.files import lock, writer
from grok.records import Row, RunRecord, wilson
from grok.report.tensorboard import conclude, describe, flush_events, truncate_events
from grok.training import FullySharded, GrokModule, Score

__all__ = ["RunRecorder"]


class RunRecorder(L.Callback):
    """Appends every evaluation to `metrics.jsonl` and rewrites `summary.json` in the trainer's `default_root_dir`.

    The summary joins what all callbacks with a method `summary() -> dict` contribute. Place it after them.

    Args:
        norms: record the norm of each weight matrix, and of its change since the previous evaluation; not where weights
            are spread over processes.
    """

    def __init__(self, norms: bool = True) -> None:
        self.norms = norms
        self._lock: IO[str] | None = None
        self._previous: dict[str, Tensor] = {}
        self._has_baselines = False
        self.start: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep other processes out before anything is written."""
        if stage == "fit":
            self.hold(trainer)

    def hold(self, trainer: L.Trainer) -> None:
        """Hold the run directory against other processes until `release`.

        Raises:
            BadInput: if another process holds it.
        """
        if trainer.is_global_zero and self._lock is None:
            self._lock = lock(Path(trainer.default_root_dir))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to mix two runs in one directory; by now it is known whether a checkpoint is resumed."""
        if trainer.ckpt_path is not None:
            return
        if RunRecord(trainer.default_root_dir).has_begun():
            where = trainer.default_root_dir
            raise BadInput(f"{where}: already holds a run; choose another directory, or resume last.ckpt")
        self._forget(trainer, -1)  # of a start that was cut short

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what was recorded beyond the checkpoint: it happens again."""
        if trainer.ckpt_path is not None:
            self._forget(trainer, trainer.global_step)
        recorded = RunRecord(trainer.default_root_dir).rows() if trainer.is_global_zero else []
        self._has_baselines = any(row["name"].startswith("baseline/") for row in recorded)
        if isinstance(trainer.strategy, FullySharded):
            self.norms = False  # would keep the whole model on every device
        if trainer.is_global_zero and self.start is not None:  # not before: a checkpoint may be refused
            record = RunRecord(trainer.default_root_dir)
            if trainer.ckpt_path is None:
                record.forget_starts()  # of one that never began
            record.append_start(self.start)
        if trainer.is_global_zero and _has_tensorboard(trainer):
            describe(trainer.default_root_dir, resumed=trainer.ckpt_path is not None)
        matrices = _matrices(cast(GrokModule, pl_module)) if self.norms else {}
        self._previous = {name: self._previous.get(name, weight).to(weight.device) for name, weight in matrices.items()}

    @staticmethod
    def _forget(trainer: L.Trainer, done: int) -> None:
        if trainer.is_global_zero:
            RunRecord(trainer.default_root_dir).truncate(done)
            AnalysisRecord(trainer.default_root_dir).truncate(done)
            flush_events(trainer.loggers)
            truncate_events(trainer.default_root_dir, done)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record this evaluation."""
        module = cast(GrokModule, pl_module)
        loss = module.pop_training_loss()
        if trainer.state.fn != "fit":
            return
        rows = [row for name, score in module.scores.items() for row in self._score_rows(name, score, trainer)]
        scalars = {} if loss is None else {"training_loss": loss}
        scalars["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])  # a tensor in a CUDA graph
        if module.finite.skip:
            scalars["skipped_steps"] = module.finite.skipped
        if self.norms:
            scalars |= self._norms(module)
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(scalars, trainer.global_step)
        rows += [_row(trainer.global_step, None, name, value) for name, value in scalars.items()]
        if not self._has_baselines:  # they do not change, so the first evaluation records them
            rows += _baseline_rows(module.scores, trainer)
            self._has_baselines = True
        record = RunRecord(trainer.default_root_dir)
        record.append(rows)
        record.write_summary(self._summary(trainer, module))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the run finished, last of all; one that ran out of time is not, and the same command continues it."""
        module = cast(GrokModule, pl_module)
        if trainer.is_global_zero and not (trainer.global_step < trainer.max_steps and _out_of_time(trainer)):
            record = RunRecord(trainer.default_root_dir)
            # A process stopped between its last checkpoint and here has left a summary that lacks this mark only.
            summary = None if module.scores else record.summary()
            summary = summary or self._summary(trainer, module)
            if _has_tensorboard(trainer):
                conclude(trainer.default_root_dir, summary)
            record.write_summary({**summary, "finished": True})
        self.release()

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        """Let another process continue, once nothing more is written."""
        try:
            with suppress(Exception):  # the exception that ends the run is the one to be told
                writer(trainer).wait()
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the run directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the weights at the last evaluation, from which the next change is measured."""
        return {"previous": dict(self._previous)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._previous = dict(state_dict["previous"])

    def _summary(self, trainer: L.Trainer, module: GrokModule) -> dict[str, Any]:
        scores = module.scores or _recorded_scores(trainer)
        data = cast(RegimeDataModule, cast(Any, trainer).datamodule)
        summary: dict[str, Any] = {
            "step": trainer.global_step,
            "accuracy": {name: score.accuracy for name, score in scores.items()},
            "loss": {name: score.loss for name, score in scores.items()},
            "queries_in_split": {name: score.n for name, score in scores.items()},
            "sizes": data.sizes(),
        }
        stream = data.generated.train
        if stream.rows is not None:
            summary["steps_per_epoch"] = stream.rows / stream.size
        for callback in cast(Any, trainer).callbacks:
            if hasattr(callback, "summary"):
                summary |= callback.summary()
        if module.finite.skip:
            summary["skipped_steps"] = module.finite.skipped
        return summary | {"finished": False}

    @staticmethod
    def _score_rows(split: str, score: Score, trainer: L.Trainer) -> list[Row]:
        rows = [_row(trainer.global_step, split, "loss", score.loss, n=score.n)]
        if score.accuracy is not None:
            low, high = wilson(score.accuracy, score.n)
            data = cast(RegimeDataModule, cast(Any, trainer).datamodule)
            rows.append(
                _row(trainer.global_step, split, "accuracy", score.accuracy, low, high, data.floor(split), score.n)
            )
        return rows

    def _norms(self, module: GrokModule) -> dict[str, float]:
        matrices = _matrices(module)
        norms = {f"weight_norm/{name}": float(weight.norm()) for name, weight in matrices.items()}
        for name, weight in matrices.items():
            if name in self._previous:
                norms[f"update_norm/{name}"] = float((weight - self._previous[name]).norm())
        self._previous = matrices
        return norms


def _has_tensorboard(trainer: L.Trainer) -> bool:
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)


def _recorded_scores(trainer: L.Trainer) -> dict[str, Score]:
    """The last evaluation as it was recorded, for a run whose summary somebody has removed."""
    rows = [row for row in RunRecord(trainer.default_root_dir).rows() if row["split"] is not None]
    last = max((row["step"] for row in rows if row["name"] == "loss"), default=None)
    found = {(row["split"], row["name"]): row for row in rows if row["step"] == last}
    return {
        split: Score(found.get((split, "accuracy"), {}).get("value"), row["value"], row["n"])
        for (split, name), row in found.items()
        if name == "loss"
    }


def _baseline_rows(scores: Mapping[str, Score], trainer: L.Trainer) -> list[Row]:
    data = cast(RegimeDataModule, cast(Any, trainer).datamodule)
    return [
        _row(trainer.global_step, split, f"baseline/{name}", value, n=score.n)
        for split, score in scores.items()
        for name, value in data.baselines(split).items()
    ]


def _out_of_time(trainer: L.Trainer) -> bool:
    timers = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, Timer)]
    return any((timer.time_remaining() or 0) <= 0 for timer in timers)


def _matrices(module: GrokModule) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: weight.detach().clone() for name, weight in module.net.named_parameters() if weight.ndim >= 2}


def _row(
    step: int,
    split: str | None,
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    floor: float | None = None,
    n: int | None = None,
) -> Row:
    return {
        "step": step, "split": split, "name": name, "value": value, "low": low, "high": high, "floor": floor, "n": n
    }  # fmt: skip
