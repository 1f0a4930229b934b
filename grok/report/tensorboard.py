"""Scalars and pictures of a finished run for TensorBoard, beside the event files that training wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grok.records import Row, RunRecord

__all__ = ["to_tensorboard"]


def to_tensorboard(run: str | Path, rows: Sequence[Row] = (), pictures: Sequence[Path] = ()) -> None:
    """Add analysis rows and PNG pictures to the run's event files.

    Args:
        run: the run directory; nothing is written if it has no event files (a run without a logger).
        rows: lines of the record, tagged `NAME/SPLIT` as live analyses tag them.
        pictures: files; only the PNG among them are shown.
    """
    directory = Path(run) / "tensorboard"
    if not directory.exists() or not (rows or pictures):
        return
    from torch.utils.tensorboard import SummaryWriter

    last = (RunRecord(run).summary() or {}).get("step", 0)
    with SummaryWriter(str(directory), filename_suffix=".analysis") as writer:
        for row in rows:
            writer.add_scalar(f"{row['name']}/{row['split']}", row["value"], row["step"])
        for picture in (path for path in pictures if path.suffix == ".png"):
            from matplotlib.image import imread

            image = imread(picture)
            writer.add_image(picture.stem, image, last, dataformats="HWC")
