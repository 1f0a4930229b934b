"""What a run leaves behind: `RunRecord` (files) and `Milestones` (when it memorised, when it grokked)."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from grok.errors import BadInput
from grok.files import write_atomically
from grok.phases import Phase, Span, spans
from grok.reading import parse_json, read_text

__all__ = ["Milestones", "RunRecord", "crossing", "wilson"]

Row = Mapping[str, Any]


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share observed on `n` queries (Wilson 1927): honest for small n and near 0 or 1."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


class RunRecord:
    """The record in a run directory: `metrics.jsonl`, append-only, and `summary.json`, rewritten atomically.

    A line of `metrics.jsonl` is `{step, split, name, value, low, high, floor, n}`: `low` and `high` bound a 95 %
    interval, `floor` is what chance gives, `n` the number of queries; null where there is none.

    Args:
        directory: the run directory; it need not exist yet.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.metrics_path = self.directory / "metrics.jsonl"
        self.summary_path = self.directory / "summary.json"

    def append(self, rows: Iterable[Row]) -> None:
        """Add lines at the end; they are on the disk when this returns, before a checkpoint counts them as written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.metrics_path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def append_start(self, start: Mapping[str, Any]) -> None:
        """Add a line to `starts.jsonl`: where the run was started, or went on, see `grok.provenance`."""
        path = self.directory / "starts.jsonl"
        torn = path.exists() and not path.read_bytes().endswith(b"\n")  # by a crash; the next line is whole
        with path.open("a") as file:
            file.write("\n" * torn + json.dumps(start) + "\n")

    def forget_starts(self) -> None:
        """Remove `starts.jsonl`: those before were of a run that never began, perhaps of another configuration."""
        (self.directory / "starts.jsonl").unlink(missing_ok=True)

    def starts(self) -> list[dict[str, Any]]:
        """All starts in order; none of a run of an earlier version."""
        path = self.directory / "starts.jsonl"
        found = []
        for line in read_text(path).splitlines() if path.exists() else []:
            with suppress(ValueError):  # a crash has torn it
                start = parse_json(line)
                if _is_of(_START, start):
                    found.append(start)
        return found

    def has_begun(self) -> bool:
        """Whether there is more in the directory than a start that was cut short before its first checkpoint."""
        if any((self.directory / name).exists() for name in ("last.ckpt", "previous.ckpt")):
            return True
        if any((self.directory / "series").glob("step_*[1-9]*.safetensors")):
            return True
        return self.metrics_path.exists() and any(row["step"] > 0 for row in self._whole_lines())

    def rows(self, name: str | None = None) -> list[dict[str, Any]]:
        """All lines, or those called `name`; one that is just being written is not there yet.

        Raises:
            BadInput: if a line is not readable, with its number.
        """
        if not self.metrics_path.exists():
            return []
        text, rows = read_text(self.metrics_path), []
        lines = text.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line)
            except ValueError:
                if number == len(lines) and not text.endswith("\n"):
                    break
                raise BadInput(f"{self.metrics_path}, line {number}: not JSON; remove the line") from None
            if not _is_row(row):
                told = f"not step, split, name and value, but {line[:80]!r}"
                raise BadInput(f"{self.metrics_path}, line {number}: {told}; remove the line")
            rows.append(row)
        return [row for row in rows if name is None or row["name"] == name]

    def replace(self, rows: Sequence[Row], gone: Callable[[Row], bool] = lambda _: False) -> None:
        """Put lines in the place of those with the same step, split and name, and of those that are `gone`; the others
        stay, in order of steps.
        """
        new = {(row["step"], row["split"], row["name"]) for row in rows}
        before = [row for row in self.rows() if not gone(row)]
        kept: list[Row] = [row for row in before if (row["step"], row["split"], row["name"]) not in new]
        whole = sorted([*kept, *rows], key=lambda row: row["step"])
        write_atomically(self.metrics_path, "".join(json.dumps(row) + "\n" for row in whole))

    def truncate(self, step: int) -> None:
        """Forget everything after `step`: a resumed run writes it again. A half-written last line goes too."""
        if not self.metrics_path.exists():
            return
        kept = [json.dumps(row) + "\n" for row in self._whole_lines() if row["step"] <= step]
        write_atomically(self.metrics_path, "".join(kept))

    def _whole_lines(self) -> Iterator[Row]:
        for line in read_text(self.metrics_path).splitlines():
            with suppress(ValueError):
                if _is_row(row := parse_json(line)):
                    yield row

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace `summary.json`."""
        write_atomically(self.summary_path, json.dumps(summary, indent=2) + "\n")

    def is_finished(self) -> bool:
        """Whether the run has reached its end.

        Raises:
            BadInput: if the summary is damaged.
        """
        return bool((self.summary() or {}).get("finished"))

    def summary(self) -> dict[str, Any] | None:
        """`summary.json`, or None if there is none yet."""
        if not self.summary_path.exists():
            return None
        try:
            summary: dict[str, Any] = parse_json(read_text(self.summary_path))
        except ValueError:
            summary = {}
        if not _is_summary(summary):
            raise BadInput(f"{self.summary_path}: not a summary of a run; restore it, or start beside it with --fresh")
        return summary


_START = {
    "time": str, "command": str, "presets": list, "overrides": list, "directory": str, "grok": str,
    "commit": str | None, "python": str, "packages": dict, "device": str,
}  # fmt: skip
_NUMBER = int | float | None
_ROW = {"step": int, "split": str | None, "name": str, "value": _NUMBER}
_OF_A_MEASUREMENT = {"low": _NUMBER, "high": _NUMBER, "floor": _NUMBER, "n": int | None}
_SUMMARY: dict[str, Any] = {
    "step": int, "finished": bool, "accuracy": [_NUMBER], "loss": [_NUMBER], "queries_in_split": [int],
    "memorised_step": int | None, "grok_step": [int | None], "delay": _NUMBER, "crossings": [[[int | None]]],
    "wall_seconds": _NUMBER, "train_seconds": _NUMBER, "flops": _NUMBER, "queries": _NUMBER, "start": dict,
    "steps_per_epoch": _NUMBER, "sizes": [_NUMBER],
    "phases": [{"split": str, "level": _NUMBER, "begin": int | None, "end": int | None}],
}  # fmt: skip
"""What others rely on; `[kind]` is a mapping whose values are of this kind, `{key: kind}` one that has these keys."""


def _is_of(kind: Any, value: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, dict) and all(_is_of(kind[0], item) for item in value.values())
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(key in value and _is_of(one, value[key]) for key, one in kind.items())
    return isinstance(value, kind)


def _is_row(row: Any) -> bool:
    """Whether it is a line of a record: what a flipped bit or another program has left need not be."""
    return (
        isinstance(row, dict)
        and all(key in row and _is_of(kind, row[key]) for key, kind in _ROW.items())
        and all(_is_of(kind, row.get(key)) for key, kind in _OF_A_MEASUREMENT.items())
    )


def _is_summary(summary: Any) -> bool:
    if not isinstance(summary, dict) or "step" not in summary:
        return False
    return all(_is_of(kind, summary[key]) for key, kind in _SUMMARY.items() if key in summary)


def crossing(values: Sequence[float], level: float, window: int = 1) -> int | None:
    """Index of the first value at or above `level` from which the median of `window` values is too; else None.

    With `window=1` the first crossing, with `window=5` the sustained one: an isolated spike does not count.
    """
    for index, value in enumerate(values[: len(values) - window + 1]):
        if value >= level and statistics.median(values[index : index + window]) >= level:
            return index
    return None


class Milestones:
    """When each split crossed each level of accuracy, and what follows from it.

    Args:
        memorised_split: the split that says when the training data are memorised; None if nothing can be.
        held_out_splits: the splits that say when the model has grokked, most important first.
        threshold: accuracy that counts as memorised and as grokked.
        levels: further accuracies whose crossing is recorded.
        window: evaluations whose median must hold for a *sustained* crossing.
        phases: of training, in order.
    """

    def __init__(
        self,
        memorised_split: str | None,
        held_out_splits: Sequence[str],
        threshold: float = 0.95,
        levels: Sequence[float] = (0.5, 0.95, 0.99),
        window: int = 5,
        phases: Sequence[Phase] = (),
    ) -> None:
        self.phases = tuple(phases)
        self.memorised_split, self.held_out_splits = memorised_split, tuple(held_out_splits)
        self.threshold, self.window = threshold, window
        self.levels = sorted({*levels, threshold})
        self.steps: list[int] = []
        self.accuracy: dict[str, list[float]] = {}
        self.queries: dict[str, int] = {}

    def update(
        self, step: int, accuracy: Mapping[str, float], queries: Mapping[str, int] | None = None
    ) -> list[tuple[str, float]]:
        """Add an evaluation, on so many `queries` of each split; returns the (split, level) pairs crossed for the
        first time.
        """
        self.queries |= queries or {}
        before = {split: max(values, default=-1.0) for split, values in self.accuracy.items()}
        self.steps.append(step)
        for split, value in accuracy.items():
            self.accuracy.setdefault(split, []).append(value)
        return [
            (split, level)
            for split, value in accuracy.items()
            for level in self.levels
            if before.get(split, -1.0) < level <= value
        ]

    def step_of(self, split: str | None, level: float, sustained: bool = False) -> int | None:
        """Step at which `split` first (or lastingly) reached `level`."""
        index = crossing(self.accuracy.get(split or "", []), level, self.window if sustained else 1)
        return None if index is None else self.steps[index]

    @property
    def memorised_step(self) -> int | None:
        """First step at which the memorised split reached the threshold."""
        return self.step_of(self.memorised_split, self.threshold)

    @property
    def grok_step(self) -> dict[str, int | None]:
        """For every held-out split, the first step at which it reached the threshold."""
        return {split: self.step_of(split, self.threshold) for split in self.held_out_splits if split in self.accuracy}

    @property
    def phase_spans(self) -> dict[str, Span]:
        """When each phase began and ended, see `grok.phases.spans`."""
        levels = [self.threshold if phase.level is None else phase.level for phase in self.phases]
        crossed = [self.step_of(phase.split, level) for phase, level in zip(self.phases, levels, strict=True)]
        return spans(self.phases, crossed, levels)

    @property
    def delay(self) -> float | None:
        """Grok step of the first held-out split divided by the memorised step."""
        memorised, grokked = self.memorised_step, next(iter(self.grok_step.values()), None)
        return None if memorised is None or grokked is None else grokked / memorised

    @property
    def spikes(self) -> list[dict[str, Any]]:
        """Evaluations at which a split had at most half the accuracy of the evaluation before, beyond what chance does:
        the 95 % intervals do not meet. In order of steps: `{step, split, before, after}`.
        """
        found = []
        for split, values in self.accuracy.items():
            n = self.queries.get(split, 0)
            for step, before, after in zip(self.steps[1:], values, values[1:], strict=False):
                if after <= before / 2 and wilson(after, n)[1] < wilson(before, n)[0]:
                    found.append({"step": step, "split": split, "before": before, "after": after})
        return sorted(found, key=lambda spike: spike["step"])

    def at_memorised(self) -> dict[str, float]:
        """Accuracy of every split at the memorised step."""
        memorised = self.memorised_step
        if memorised is None:
            return {}
        index = self.steps.index(memorised)
        return {split: values[index] for split, values in self.accuracy.items()}

    def summary(self) -> dict[str, Any]:
        """Milestones as plain data for `summary.json`."""
        return {
            "memorised_step": self.memorised_step,
            "grok_step": self.grok_step,
            "delay": self.delay,
            "accuracy_when_memorised": self.at_memorised(),
            "spikes": self.spikes,
            "phases": {name: span.written() for name, span in self.phase_spans.items()},
            "crossings": {
                split: {
                    f"{level:g}": {
                        "first": self.step_of(split, level),
                        "sustained": self.step_of(split, level, sustained=True),
                    }
                    for level in self.levels
                }
                for split in self.accuracy
            },
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        accuracy = {split: list(values) for split, values in self.accuracy.items()}
        return {"steps": list(self.steps), "accuracy": accuracy, "queries": dict(self.queries)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.steps = list(state["steps"])
        self.accuracy = {split: list(values) for split, values in state["accuracy"].items()}
        self.queries = dict(state.get("queries", {}))
