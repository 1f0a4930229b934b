"""TensorBoard's event files: scalars and pictures of a finished run, and files that outlive stops and resumes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grok.files import replace
from grok.records import Row, RunRecord

__all__ = ["flush_events", "read_scalars", "to_tensorboard", "truncate_events"]


def to_tensorboard(run: str | Path, rows: Sequence[Row] = (), pictures: Sequence[Path] = ()) -> None:
    """Add analysis rows and PNG pictures to the run's event files.

    Args:
        run: the run directory; nothing is written if it has no event files (a run without a logger).
        rows: lines of the record, tagged `NAME/SPLIT` as live analyses tag them.
        pictures: files; only the PNG among them are shown, in the place of those shown before.
    """
    directory = Path(run) / "tensorboard"
    if not directory.exists() or not (rows or pictures):
        return
    from torch.utils.tensorboard import SummaryWriter

    if pictures:
        for before in directory.glob("events*.figures"):
            before.unlink()
    suffix = ".figures" if pictures else ".analysis"
    last = (RunRecord(run).summary() or {}).get("step", 0)
    with SummaryWriter(str(directory), filename_suffix=suffix) as writer:
        for row in rows:
            writer.add_scalar(f"{row['name']}/{row['split']}", row["value"], row["step"])
        for picture in (path for path in pictures if path.suffix == ".png"):
            from matplotlib.image import imread

            image = imread(picture)
            writer.add_image(picture.stem, image, last, dataformats="HWC")


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
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for path in sorted((Path(run) / "tensorboard").glob("events*")):
        records, torn = _records(path)
        kept = [record for record in records if not _beyond(Event.FromString(record), step)]
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


def _beyond(event: Any, step: int) -> bool:
    return bool(event.HasField("summary")) and event.step > step
