"""Checkpoints that somebody gives: whole, of plain data, and of this model, or refused by name."""

from __future__ import annotations

import errno
import pickle
import re
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch

from grok.errors import BadInput

__all__ = ["insist_on_resumable", "insist_on_whole", "reading"]

OTHER = "of another model than the configuration describes, or of other data (has a file of facts changed?)"


@contextmanager
def reading(checkpoint: str | Path | None) -> Iterator[None]:
    """Name the checkpoint that is damaged, would execute code, or is of another model."""
    try:
        yield
    except BadInput:  # of data or of a callback, and told already
        raise
    except (pickle.UnpicklingError, EOFError) as error:
        if code := re.search(r"GLOBAL ([\w.]+) (?:was not an allowed|whose module)", str(error)):
            told = f"would run {code[1]} when it is loaded, and is not; `torch.save` only tensors and plain data"
            raise BadInput(f"{checkpoint}: {told}") from error
        raise BadInput(f"{checkpoint}: not a checkpoint of plain data, or damaged; use another one") from error
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        if isinstance(error, OSError) and not (error.errno == errno.EINVAL and _is_of_the_checkpoint(error)):
            raise  # else a place before the beginning of a file that was cut
        if "PytorchStreamReader" in str(error) or isinstance(error, OSError):
            raise BadInput(f"{checkpoint}: damaged; use another one") from error
        if "in loading state_dict" in str(error):
            raise BadInput(f"{checkpoint}: {OTHER}") from error
        if _is_of_the_checkpoint(error):
            told = f"not a checkpoint of this version ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
            raise BadInput(f"{checkpoint}: {told}; use another one") from error
        raise


_HELD: Mapping[str, type] = {
    "state_dict": dict, "loops": dict, "optimizer_states": list, "lr_schedulers": list, "callbacks": dict,
    "global_step": int, "epoch": int, "pytorch-lightning_version": str,
}  # fmt: skip


def insist_on_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint whose bytes are not what was saved, by the checksums of its parts: loading looks at none."""
    if not zipfile.is_zipfile(checkpoint):
        return  # loading says what it is
    try:
        with zipfile.ZipFile(checkpoint) as parts:
            damaged = parts.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        damaged = str(error)
    if damaged is not None:
        raise BadInput(f"{checkpoint}: damaged ({damaged}); use another one")


def insist_on_resumable(checkpoint: Path, model: L.LightningModule) -> None:
    """Try what a new run would go on from, before anything is written: what it holds, and whether its weights fit."""
    with reading(checkpoint):
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    content = content if isinstance(content, dict) else {}
    wrong = [key for key, kind in _HELD.items() if not isinstance(content.get(key), kind)]
    if not wrong:
        optimizers, generators = content["optimizer_states"], content.get("rng") or []
        fits = {
            "loops": "fit_loop" in content["loops"],
            "optimizer_states": all(isinstance(one, dict) and one.get("param_groups") for one in optimizers),
            "rng": isinstance(generators, list) and all(isinstance(one, dict) for one in generators),
        }
        wrong = [key for key, good in fits.items() if not good]
    if wrong:
        told = f"not a checkpoint of `grok fit` (without {', '.join(wrong)}, or of another kind)"
        raise BadInput(f"{checkpoint}: {told}; use another one, such as RUN/last.ckpt")
    shapes = [
        {name: getattr(weight, "shape", None) for name, weight in weights.items()}
        for weights in (content["state_dict"], model.state_dict())
    ]
    if shapes[0] != shapes[1]:
        raise BadInput(f"{checkpoint}: {OTHER}")


def _is_of_the_checkpoint(error: Exception) -> bool:
    """Whether it was raised while Lightning read a checkpoint: by what is in the file, then, not by what trains."""
    restoring = {"resume_start", "_restore_modules_and_callbacks", "restore_training_state", "insist_on_resumable"}
    return any(frame.name in restoring for frame in traceback.extract_tb(error.__traceback__))
