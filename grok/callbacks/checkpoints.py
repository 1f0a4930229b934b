"""`CheckpointSeries`, light weights to look back at; and checking a series."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import lightning as L
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from grok.errors import BadInput, Problem
from grok.files import sha256, write_atomically, writer
from grok.models import StepModel
from grok.reading import parse_json, read_text
from grok.schedule import Schedule
from grok.training import GrokModule
from grok.training.sharding import is_sharded, load_whole, whole

__all__ = ["CheckpointSeries", "load_series", "load_weights", "verify_series"]


class CheckpointSeries(L.Callback):
    """Saves the weights that are evaluated (the moving average if there is one) for later analysis.

    Files are `series/step_000000400.safetensors`, listed with step and SHA-256 in `series/manifest.json`, written
    while training goes on.

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
        """Save step 0; forget what lies beyond the checkpoint, or was before there was one: it is saved again."""
        directory = _directory(trainer)
        if trainer.is_global_zero and (directory / "manifest.json").exists():
            done = -1 if trainer.ckpt_path is None else trainer.global_step
            kept = [entry for entry in _manifest(directory) if entry["step"] <= done]
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
        writer(trainer).wait()

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        net = cast(GrokModule, module).evaluated
        if not self.enabled or not (trainer.is_global_zero or is_sharded(net)):
            return
        directory, step = _directory(trainer), trainer.global_step
        weights = {
            name: whole(tensor).detach().to("cpu", copy=True).contiguous() for name, tensor in net.state_dict().items()
        }
        if not trainer.is_global_zero:
            return
        path = directory / f"step_{step:09d}.safetensors"

        def work() -> None:
            entries = _manifest(directory) if (directory / "manifest.json").exists() else []
            if any(entry["step"] == step for entry in entries):
                return
            write_atomically(path, save(weights, metadata={"step": str(step)}))
            known = [*entries, {"step": step, "file": path.name, "sha256": sha256(path)}]
            known.sort(key=lambda entry: entry["step"])
            write_atomically(directory / "manifest.json", json.dumps(known, indent=1) + "\n")

        writer(trainer)(work)


def _directory(trainer: L.Trainer) -> Path:
    # Absolute, as in `LastCheckpoint`: it is written to in the background.
    return Path(trainer.default_root_dir).absolute() / "series"


def _manifest(directory: Path) -> list[dict[str, Any]]:
    path = directory / "manifest.json"
    try:
        entries: list[dict[str, Any]] = parse_json(read_text(path))
        wrong = [entry for entry in entries if not _is_entry(entry)]
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{path}: not there; a run with a checkpoint series has one") from None
    except (ValueError, TypeError, KeyError):
        told = "not a manifest (a JSON list of step, file and sha256); restore it"
        raise BadInput(f"{path}: {told}") from None
    if wrong:
        told = "give a step, the name of a file beside it, and a SHA-256"
        raise BadInput(f"{path}: {Problem('entry', wrong[0], told)}")
    if twice := [step for step, count in Counter(entry["step"] for entry in entries).items() if count > 1]:
        raise BadInput(f"{path}: step {twice[0]} is listed twice; keep one")
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether it names a step and a file of the series itself, whatever a foreign manifest says."""
    step, file, checksum = entry["step"], entry["file"], entry["sha256"]
    if type(step) is not int or step < 0 or not isinstance(checksum, str):
        return False
    return isinstance(file, str) and re.fullmatch(r"[\w.+-]+\.safetensors", file) is not None


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
        if not path.is_file():
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
    load_whole(model, weights)
