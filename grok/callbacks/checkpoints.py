"""`LastCheckpoint`, to go on from; `CheckpointSeries`, light weights to look back at; and checking a series."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grok.errors import BadInput
from grok.models import StepModel
from grok.records import sha256, write_atomically
from grok.schedule import Schedule
from grok.training import GrokModule

__all__ = ["CheckpointSeries", "LastCheckpoint", "load_series", "load_weights", "verify_series"]


class LastCheckpoint(L.Callback):
    """Keeps `last.ckpt` in the run directory: everything needed to continue, random number generators included.

    Args:
        every: optimizer steps between two saves; the start and the end are saved as well.
    """

    def __init__(self, every: int = 1000) -> None:
        self.schedule = Schedule(every, start=True)
        self._resumed: int | None = None
        self._rng: Mapping[str, Any] | None = None

    check = staticmethod(lambda every=1000: Schedule.check(every))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where a resumed run starts: that step is in `last.ckpt` already."""
        self._resumed = None if self._rng is None else trainer.global_step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Save when due, step 0 included: right before the next block, when this step has been evaluated and recorded.

        After a resume the generators are restored here, and whatever set-up drew from them is undone.
        """
        self._restore_rng()
        if self.schedule.due(trainer.global_step) and trainer.global_step != self._resumed:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        path = Path(trainer.default_root_dir) / "last.ckpt"
        partial = path.with_suffix(".ckpt.partial")
        trainer.save_checkpoint(partial)  # every rank takes part, rank 0 writes
        if trainer.is_global_zero:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of every random number generator, as plain data."""
        kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the global generator is what is saved)
        checkpoint["rng"] = {
            "python": random.getstate(),
            "numpy": (kind, cast(Any, keys).tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the generators' states until training starts."""
        self._rng = checkpoint.get("rng")

    def _restore_rng(self) -> None:
        if self._rng is None:
            return
        version, internal, gauss = self._rng["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = self._rng["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(self._rng["torch"].cpu())
        if self._rng["cuda"] and len(self._rng["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self._rng["cuda"]])
        self._rng = None


class CheckpointSeries(L.Callback):
    """Saves the weights that are evaluated (the moving average if there is one) for later analysis.

    Files are `series/step_000000400.safetensors`, listed with step and SHA-256 in `series/manifest.json`.

    Args:
        every: optimizer steps between two saves; step 0 and the last step are always saved.
        until: end of the dense part (Wang et al. 2024: `every=2000, until=40000, then=50000`).
        then: distance after `until`.
        powers_of_two: save steps 1, 2, 4, 8, … too.
        enabled: False saves nothing.
    """

    check = staticmethod(lambda every=10_000, until=None, then=None: Schedule.check(every, until, then))

    def __init__(
        self,
        every: int = 10_000,
        until: int | None = None,
        then: int | None = None,
        powers_of_two: bool = True,
        enabled: bool = True,
    ) -> None:
        self.schedule = Schedule(every, until, then, powers_of_two, start=True)
        self.enabled = enabled

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save step 0; after a resume forget what lies ahead, it is saved again."""
        directory = _directory(trainer)
        if trainer.is_global_zero and (directory / "manifest.json").exists():
            kept = [entry for entry in _manifest(directory) if entry["step"] <= trainer.global_step]
            write_atomically(directory / "manifest.json", json.dumps(kept, indent=1) + "\n")
        if trainer.global_step == 0:
            self._save(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save when due."""
        if self.schedule.due(trainer.global_step):
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end."""
        self._save(trainer, pl_module)

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.enabled or not trainer.is_global_zero:
            return
        directory, step = _directory(trainer), trainer.global_step
        directory.mkdir(parents=True, exist_ok=True)
        entries = _manifest(directory) if (directory / "manifest.json").exists() else []
        if any(entry["step"] == step for entry in entries):
            return
        weights = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in cast(GrokModule, module).evaluated.state_dict().items()
        }
        path = directory / f"step_{step:09d}.safetensors"
        partial = path.with_suffix(".partial")
        save_file(weights, partial, metadata={"step": str(step)})
        partial.replace(path)
        entries = sorted([*entries, {"step": step, "file": path.name, "sha256": sha256(path)}], key=lambda e: e["step"])
        write_atomically(directory / "manifest.json", json.dumps(entries, indent=1) + "\n")


def _directory(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "series"


def _manifest(directory: Path) -> list[dict[str, Any]]:
    path = directory / "manifest.json"
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())
        for entry in entries:
            entry["step"], entry["file"], entry["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{path}: not there; a run with a checkpoint series has one") from None
    except (json.JSONDecodeError, TypeError, KeyError):
        raise BadInput(f"{path}: not a manifest (a JSON list of step, file and sha256)") from None
    return entries


def verify_series(run: str | Path) -> int:
    """Check every file of the series in a run directory against its manifest; returns their number.

    Raises:
        BadInput: naming every file that is missing or has another content than when it was saved.
    """
    directory = Path(run) / "series"
    problems = []
    entries = _manifest(directory)
    for entry in entries:
        path = directory / entry["file"]
        if not path.exists():
            problems.append(f"{path}: missing (step {entry['step']} of the manifest)")
        elif sha256(path) != entry["sha256"]:
            problems.append(f"{path}: content differs from what was saved (SHA-256 is not that of the manifest)")
    if problems:
        raise BadInput(*problems)
    return len(entries)


def load_series(run: str | Path) -> dict[int, Path]:
    """Steps and files of the series in a run directory, in order of steps; `safetensors` reads them."""
    directory = Path(run) / "series"
    return {entry["step"]: directory / entry["file"] for entry in _manifest(directory)}


def load_weights(model: StepModel, path: Path) -> None:
    """Put the weights of a file of the series into `model`, on its device.

    Raises:
        BadInput: if the file is damaged, or its weights are of another model: naming what differs.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, FileNotFoundError):
        raise BadInput(f"{path}: not there, or damaged; `grok verify` checks the whole series") from None
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        differ = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        name, missing = differ[0], "missing"
        told = f"{name} is {found.get(name, missing)} in the file and {wanted.get(name, missing)} in the model"
        raise BadInput(f"{path}: weights of another model: {told}; {len(differ)} such differences")
    model.load_state_dict(weights)
