"""TensorBoard's event files: scalars and pictures of a finished run, and files that outlive stops and resumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grok.configuration import leaves
from grok.files import replace
from grok.reading import read_yaml
from grok.records import Row, RunRecord

__all__ = [
    "as_scalars",
    "conclude",
    "describe",
    "flush_events",
    "forget_scalars",
    "read_scalars",
    "show_pictures",
    "show_scalars",
    "truncate_events",
]


def as_scalars(rows: Iterable[Row]) -> dict[tuple[str, int], float]:
    """The values of lines of the record by tag (`NAME/SPLIT`, as live analyses tag them) and step."""
    return {(f"{row['name']}/{row['split']}", row["step"]): row["value"] for row in rows}


def show_scalars(run: str | Path, scalars: Mapping[tuple[str, int], float]) -> None:
    """Add scalars by tag and step, see `as_scalars`, to the event files of a run that has any (that has a logger)."""
    directory = Path(run) / "tensorboard"
    if not directory.exists() or not scalars:
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory), filename_suffix=".analysis") as writer:
        for (tag, step), value in scalars.items():
            writer.add_scalar(tag, value, step)


def show_pictures(run: str | Path, pictures: Sequence[Path]) -> None:
    """Add the PNG files among pictures, in the place of those shown before, to a run's event files if it has any."""
    if not pictures:
        return
    last = (RunRecord(run).summary() or {}).get("step", 0)
    with _anew(run, ".figures") as writer:
        if writer is None:
            return
        from matplotlib.image import imread

        for picture in (path for path in pictures if path.suffix == ".png"):
            writer.add_image(picture.stem, imread(picture), last, dataformats="HWC")


LAYOUT = {
    "Splits": {"accuracy": ["Multiline", ["^accuracy/"]], "loss": ["Multiline", ["^loss/", "^training_loss"]]},
    "Circuit": {"lens": ["Multiline", ["^lens/mrr/"]], "strength": ["Multiline", ["^tracing/"]],
                "faithfulness": ["Multiline", ["^faithfulness/", "^completeness/"]],
                "attention groups": ["Multiline", ["^groups/"]], "measures": ["Multiline", ["^measures/"]]},
    "Weights": {"norms": ["Multiline", ["^weight_norm/"]], "updates": ["Multiline", ["^update_norm/"]]},
}  # fmt: skip
"""Charts of the tab Custom Scalars: all splits together first."""


def describe(run: str | Path, resumed: bool = False) -> None:
    """Write how TensorBoard lays the run out, and its configuration as text; what was written before goes.

    Args:
        run: the run directory; nothing is written if it has no event files.
        resumed: whether the run goes on, so that what is there stays.
    """
    if resumed and any((Path(run) / "tensorboard").glob("events*.layout")):
        return
    with _anew(run, ".layout") as writer:
        if writer is not None:
            writer.add_custom_scalars(LAYOUT)
            writer.add_text("configuration", f"```yaml\n{(Path(run) / 'config.yaml').read_text()}\n```", 0)


def conclude(run: str | Path, summary: Mapping[str, Any]) -> None:
    """Write the run's hyper-parameters with its milestones and final accuracies, for the tab HParams; see `describe`.

    Args:
        run: the run directory.
        summary: what `summary.json` will hold.
    """
    from torch.utils.tensorboard.summary import hparams

    metrics = {f"final/accuracy/{split}": value for split, value in (summary.get("accuracy") or {}).items()}
    metrics |= {f"final/loss/{split}": value for split, value in (summary.get("loss") or {}).items()}
    metrics |= {f"final/grok_step/{split}": step for split, step in (summary.get("grok_step") or {}).items()}
    metrics |= {f"final/{key}": summary.get(key) for key in ("memorised_step", "delay", "flops")}
    known = {key: float(value) for key, value in metrics.items() if value is not None}
    with _anew(run, ".hparams") as writer:
        if writer is None:
            return
        for one in hparams(_parameters(read_yaml(Path(run) / "config.yaml")), known):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(one)
        for key, value in known.items():
            writer.add_scalar(key, value, summary.get("step", 0))


_SHOWN = ("seed_everything", "data", "model")


def _parameters(config: Any) -> dict[str, Any]:
    """What data and model were made with, by key; lists and what is not set are left out."""
    known = ((key.replace("init_args.", ""), value) for key, value in leaves(config) if key.split(".")[0] in _SHOWN)
    return {key: value for key, value in known if isinstance(value, bool | int | float | str)}


@contextmanager
def _anew(run: str | Path, suffix: str) -> Iterator[Any]:
    """A writer of an event file that takes the place of the one with this suffix; None for a run without events."""
    directory = Path(run) / "tensorboard"
    if not directory.exists():
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    for before in directory.glob(f"events*{suffix}"):
        before.unlink()
    with SummaryWriter(str(directory), filename_suffix=suffix) as writer:
        yield writer


def flush_events(loggers: Iterable[Any]) -> None:
    """Bring everything that was logged to TensorBoard so far onto the disk."""
    from lightning.pytorch.loggers import TensorBoardLogger

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and hasattr(logger.experiment, "flush"):  # a dummy on other ranks
            logger.experiment.flush()
            for path in Path(logger.log_dir).glob("events*"):
                with path.open("rb") as file:
                    os.fsync(file.fileno())


def read_scalars(run: str | Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run's event files by tag: `(step, value)`, ascending; one logged twice stands there twice."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    scalars: dict[str, list[tuple[int, float]]] = {}
    for path in (Path(run) / "tensorboard").glob("events*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tensor.float_val:  # not a picture
                    scalars.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return {tag: sorted(values) for tag, values in scalars.items()}


def truncate_events(run: str | Path, step: int) -> None:
    """Forget the events after `step`: a resumed run writes them again. An event torn by a crash goes too.

    A file without such events, like the one that has just been opened for this process, is not touched.
    """
    _forget(run, lambda event: event.HasField("summary") and event.step > step)


def forget_scalars(run: str | Path, gone: Collection[tuple[str, int]]) -> None:
    """Forget the scalars of these tags and steps: an analysis done again with other options has other ones."""
    if gone:
        _forget(run, lambda event: any((value.tag, event.step) in gone for value in event.summary.value))


def _forget(run: str | Path, gone: Callable[[Any], bool]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for path in sorted((Path(run) / "tensorboard").glob("events*")):
        records, torn = _records(path)
        kept = [record for record in records if not gone(Event.FromString(record))]
        if len(kept) == len(records) and not torn:
            continue
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            writer = RecordWriter(file)
            for record in kept:
                writer.write(record)
            writer.flush()
        replace(partial, path)


def _records(path: Path) -> tuple[list[bytes], bool]:
    """The whole records of an event file, and whether something torn follows them."""
    from tensorboard.compat.tensorflow_stub.errors import DataLossError, OutOfRangeError
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    reader = PyRecordReader_New(str(path))
    records: list[bytes] = []
    while True:
        try:
            reader.GetNext()
        except OutOfRangeError:
            return records, False
        except DataLossError:
            return records, True
        records.append(reader.record())
