"""`PredictionWriter`: what the model answers, query by query."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from grok.callbacks.console import say
from grok.data import RegimeDataModule

__all__ = ["PredictionWriter"]


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.jsonl` in the run directory: one line per query of every split, in order.

    A line holds split, row, input, answer, target (tokens by name, or numbers), and correct where answers are right or
    wrong.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write all splits at once, and only when all are done; every process has all answers, and the first writes."""
        if not trainer.is_global_zero:
            return
        data = cast(RegimeDataModule, cast(Any, trainer).datamodule)
        path = Path(trainer.default_root_dir) / "predictions.jsonl"
        partial = path.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        by_split = [predictions] if len(data.splits) == 1 else predictions  # Lightning drops a list of one loader
        try:
            with partial.open("w") as file:
                for split, pieces in zip(data.splits, by_split, strict=True):
                    file.writelines(json.dumps(line) + "\n" for line in _lines(data, split, pieces))
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            error.filename = error.filename or str(path)  # a full disk does not say what it was full for
            raise
        say(f"predictions: {path}")


def _lines(data: RegimeDataModule, split: str, pieces: Sequence[dict[str, torch.Tensor]]) -> Iterator[dict[str, Any]]:
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    correct = whole.pop("correct", None)

    def write(row: torch.Tensor) -> list[Any]:
        return data.tokens(row) if not row.is_floating_point() else row.tolist()

    for row, (inputs, answer, targets, mask) in enumerate(
        zip(*(whole[name] for name in ("inputs", "answer", "targets", "mask")), strict=True)
    ):
        line = {"split": split, "row": row, "input": write(inputs)}
        line |= {"answer": write(answer[mask]), "target": write(targets[mask])}
        yield line | ({} if correct is None else {"correct": bool(correct[row])})
