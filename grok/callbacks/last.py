"""`LastCheckpoint`: everything needed to go on after a stop of any kind, to the same bits."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.distributed
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning_utilities.core.apply_func import apply_to_collection

from grok import stopping
from grok.callbacks.console import say
from grok.errors import BadInput
from grok.files import replace, sha256, write_atomically, writer
from grok.reading import parse_json
from grok.report.tensorboard import flush_events
from grok.schedule import Schedule
from grok.training import GrokModule

__all__ = [
    "DurableCheckpoints", "LastCheckpoint", "good_checkpoint", "rng_state", "saved_checkpoints", "set_rng_state",
    "verify_checkpoints",
]  # fmt: skip

NAMES = ("last.ckpt", "previous.ckpt")


class LastCheckpoint(L.Callback):
    """Keeps `last.ckpt` in the run directory, the one before it as `previous.ckpt`, and their SHA-256 in `saved.json`.

    A checkpoint holds what Lightning saves (weights, optimizer, schedule, moving average, precision scaler, callbacks,
    step) and the random number generators of every process. When a signal has asked the process to stop
    (`grok.stopping`), the next block is not begun: the checkpoint is saved and `Stopped` raised.

    A copy of the state is taken at once, and written while training goes on; a full disk is told at the next save.

    Args:
        every: optimizer steps between two saves; the start and the end are saved as well.
    """

    def __init__(self, every: int = 1000) -> None:
        self.schedule = Schedule(every, start=True)
        self._saved: int | None = None
        self._started = 0
        self._rng: Sequence[Mapping[str, Any]] | None = None

    check = staticmethod(lambda every=1000: Schedule.check(every))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where a resumed run starts: that step is in `last.ckpt` already."""
        self._saved = None if self._rng is None else trainer.global_step
        self._started = trainer.global_step
        last, previous = (Path(trainer.default_root_dir) / name for name in NAMES)
        if trainer.is_global_zero and last.exists() and Path(trainer.ckpt_path or "") == previous:
            replace(last, last.with_name("damaged.ckpt"))  # or the next save would put it in the place of the good one
        stopping.hold()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save when due, step 0 included: right before the next block, when this step has been evaluated and recorded.

        After a resume the generators are restored here, and whatever set-up drew from them is undone.

        Raises:
            Stopped: if a signal has asked this process, or any of its fellows, to stop.
        """
        self._restore_rng(trainer)
        signal = stopping.requested()
        stop = signal is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        due = stop or (self.schedule.due(trainer.global_step) and not _in_trouble(pl_module))
        if due and trainer.global_step != self._saved:
            self._save(trainer)
        if stop:
            self._in_place(trainer)
            raise stopping.Stopped(signal or stopping.SIGNALS[0], trainer.global_step, self._started)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end."""
        if trainer.global_step != self._saved:
            self._save(trainer)
        self._in_place(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        flush_events(trainer.loggers)  # what the checkpoint counts as logged must not be lost with this process
        # Absolute: what is written in the background must not follow the process to another directory (in an ensemble
        # another run may read its configuration, for which jsonargparse goes to where the file is).
        directory, step = Path(trainer.default_root_dir).absolute(), trainer.global_step
        partial = directory / ".last.ckpt.partial"

        def put_in_place() -> None:
            # The new checksum goes first: between any two of these lines, each file is good and known.
            known = [{"step": step, "sha256": sha256(partial)}, *saved_checkpoints(directory)]
            write_atomically(directory / "saved.json", json.dumps(known[:3], indent=1) + "\n")
            last, previous = (directory / name for name in NAMES)
            if last.exists():
                replace(last, previous)
            replace(partial, last)

        # Every rank takes part, rank 0 writes: after the series, so that no file of it is missing before this step.
        ours = isinstance(trainer.strategy.checkpoint_io, DurableCheckpoints)
        if ours and type(trainer.strategy).save_checkpoint is Strategy.save_checkpoint:  # sharded ones take no options
            later = {"background": writer(trainer), "then": put_in_place}
            trainer.save_checkpoint(partial, storage_options=later)
        else:
            writer(trainer).wait()
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                put_in_place()
        self._saved = step

    def _in_place(self, trainer: L.Trainer) -> None:
        """No rank may leave, and have the others killed, before the file is in its place."""
        writer(trainer).wait()
        trainer.strategy.barrier()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of every random number generator of every process, as plain data."""
        mine = rng_state(trainer.strategy.root_device)
        states: list[Any] = [mine] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, mine)
        checkpoint["rng"] = states

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the generators' states until training starts.

        The time that an earlier attempt was given (`--trainer.max_time`) is no concern of this one.
        """
        self._rng = checkpoint.get("rng")
        checkpoint.get("callbacks", {}).pop("Timer", None)

    def _restore_rng(self, trainer: L.Trainer) -> None:
        if self._rng is not None and len(self._rng) == trainer.world_size:
            set_rng_state(self._rng[trainer.global_rank], trainer.strategy.root_device)
        elif self._rng is not None:
            before = len(self._rng)
            say(f"{trainer.world_size} processes instead of {before}: random numbers such as dropout's begin anew")
        self._rng = None


class DurableCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; Lightning's own goes through a temporary directory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Serialise in memory, so that a full disk is an `OSError`, and write.

        Args:
            checkpoint: what is saved.
            path: where.
            storage_options: a `Background` as `background`, to write a copy of the state later, and what to do `then`.
        """
        later = storage_options or {}
        if "background" not in later:
            self._write(checkpoint, Path(path))
            return
        copied = apply_to_collection(checkpoint, torch.Tensor, lambda one: one.detach().to("cpu", copy=True))

        def work() -> None:
            self._write(copied, Path(path))
            later["then"]()

        later["background"](work)

    @staticmethod
    def _write(checkpoint: dict[str, Any], path: Path) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, content.getbuffer())


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of the generators of Python, numpy, torch and a device, as plain data."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the global generator is what is saved)
    return {
        "python": random.getstate(),
        "numpy": (kind, cast(Any, keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device),
    }


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put generators into a state that `rng_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"].cpu(), device)


def _in_trouble(module: L.LightningModule) -> bool:
    """Whether the last updates were left out (`model.nonfinite`): the checkpoints of before may be the good ones."""
    return module.finite.in_a_row > 0 if isinstance(module, GrokModule) else False


def saved_checkpoints(directory: Path) -> list[dict[str, Any]]:
    """Step and SHA-256 of the last checkpoints saved in a run directory, the newest first."""
    try:
        entries = parse_json((directory / "saved.json").read_bytes())
        return [{"step": entry["step"], "sha256": entry["sha256"]} for entry in entries]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []


def good_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run whose content is what was saved, and a line about each newer one that is damaged.

    Raises:
        BadInput: if there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for path in (run / name for name in NAMES if (run / name).exists()):
        if problem := _damage(path):
            damaged.append(problem)
        else:
            return path, damaged
    if damaged:
        raise BadInput(*damaged, "no good checkpoint is left: put one back, or start beside it with --fresh")
    return None, []


def verify_checkpoints(run: Path) -> int:
    """Check `last.ckpt` and `previous.ckpt` against their SHA-256; returns their number.

    Raises:
        BadInput: naming each that has another content than when it was saved.
    """
    paths = [run / name for name in NAMES if (run / name).exists()]
    if problems := [problem for path in paths if (problem := _damage(path))]:
        raise BadInput(*problems)
    return len(paths)


def _damage(path: Path) -> str | None:
    known = {entry["sha256"] for entry in saved_checkpoints(path.parent)}
    if not known or sha256(path) in known:  # without `saved.json` the file must speak for itself
        return None
    return f"{path}: damaged or replaced, its content is not what was saved"
