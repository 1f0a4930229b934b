"""Collecting a sweep: one table over all runs, and one over settings, with the seeds summarised."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grok.files import write_atomically
from grok.sweep.asked import Asked
from grok.sweep.checks import is_seed, without_seeds
from grok.sweep.expansion import argument
from grok.sweep.line import Line
from grok.sweep.plan import Sweep
from grok.sweep.status import Report
from grok.sweep.then import varied_in_all

__all__ = ["collect", "keys_of", "part_of", "run_rows", "setting_rows", "shown", "splits_of"]

Table = list[dict[str, Any]]


def keys_of(asked: Asked) -> list[str]:
    """Keys in which settings differ: those that vary, without the seeds."""
    return [key for key in varied_in_all(asked) if not is_seed(key)]


def part_of(sweep: Sweep, line: Line) -> dict[str, Any]:
    """Which part of the sweep a run is of, where there are several."""
    return {"block": line.block or "first"} if sweep.asked.get("then") else {}


def _start(sweep: Sweep, one: Report) -> dict[str, Any]:
    """From which run, and from where in it, a run has started, where there are such; FLOPs up to there."""
    if not sweep.asked.get("then"):
        return {}
    source, start = sweep.source(one.line), one.summary.get("start") or {}
    return {"source": source and source.name, "source_step": start.get("step"), "source_flops": start.get("flops")}


def shown(sweep: Sweep, line: Line, key: str) -> Any:
    """Value of a key: of the run, or else of the run that it starts from."""
    source = sweep.source(line)
    return _cell(line.set.get(key, None if source is None else source.set.get(key)))


def run_rows(sweep: Sweep, found: Sequence[Report]) -> Table:
    """A row for each run, whatever its state: what was set, and what came out as of its last evaluation."""
    keys = list(dict.fromkeys(key for line in sweep.lines for key in line.set))
    splits = splits_of(found)
    return [
        {
            "index": one.line.index, "name": one.line.name, **part_of(sweep, one.line), "state": one.state,
            "exit_status": one.status,
            **{key: _cell(one.line.set.get(key)) for key in keys},
            "step": one.step, "max_steps": one.max_steps, "memorised_step": one.memorised_step,
            "grok_step": one.grok_step, "grok_epoch": one.grok_epoch, "delay": one.summary.get("delay"),
            **{f"accuracy/{split}": one.accuracy.get(split) for split in splits},
            **{name: one.summary.get(name) for name in ("train_seconds", "wall_seconds", "flops")},
            **_start(sweep, one),
        }
        for one in found
    ]  # fmt: skip


def setting_rows(sweep: Sweep, found: Sequence[Report]) -> Table:
    """A row for each setting (of each part), its seeds together.

    Statistics are over finished runs; the others are counted only. `memorised` and `grokked` say how many of the
    finished runs did; their steps and the delay are the median, minimum and maximum among those.
    """
    keys, splits = keys_of(sweep.asked), splits_of(found)
    settings: dict[str, list[Report]] = {}
    for one in found:
        source = sweep.source(one.line)
        setting = [part_of(sweep, one.line), without_seeds(one.line), None if source is None else without_seeds(source)]
        settings.setdefault(json.dumps(setting, sort_keys=True), []).append(one)
    rows = []
    for runs in settings.values():
        done = [one for one in runs if one.state == "done"]
        row = part_of(sweep, runs[0].line) | {key: shown(sweep, runs[0].line, key) for key in keys}
        row |= {"seeds": len(runs), "finished": len(done), "failed": sum(one.state == "failed" for one in runs)}
        row["memorised"] = sum(one.memorised_step is not None for one in done)
        row["grokked"] = sum(one.grok_step is not None for one in done)
        row |= _three("memorised_step", statistics.median, [one.memorised_step for one in done])
        row |= _three("grok_step", statistics.median, [one.grok_step for one in done])
        row |= _three("grok_epoch", statistics.median, [one.grok_epoch for one in done])
        row |= _three("delay", statistics.median, [one.summary.get("delay") for one in done])
        for split in splits:
            row |= _three(f"accuracy/{split}", statistics.fmean, [one.accuracy.get(split) for one in done])
        row |= _three("train_seconds", statistics.fmean, [one.summary.get("train_seconds") for one in done])
        rows.append(row)
    return rows


def _three(name: str, middle: Callable[[list[float]], float], values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    kind = middle.__name__.removeprefix("f")
    return {
        f"{name}_{kind}": middle(known) if known else None,
        f"{name}_min": min(known, default=None), f"{name}_max": max(known, default=None),
    }  # fmt: skip


def splits_of(found: Sequence[Report]) -> list[str]:
    """Splits with an accuracy, in the order of the evaluations."""
    return list(dict.fromkeys(s for one in found for s, accuracy in one.accuracy.items() if accuracy is not None))


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def collect(sweep: Sweep, found: Sequence[Report]) -> list[Path]:
    """Write `results/runs.csv` and `results/results.csv`, `.md` and, with pyarrow, `.parquet`; returns the files."""
    runs, settings = run_rows(sweep, found), setting_rows(sweep, found)
    results = sweep.directory / "results"
    texts = {"runs.csv": _csv(runs), "results.csv": _csv(settings), "results.md": _markdown(sweep, found, settings)}
    for name, text in texts.items():
        write_atomically(results / name, text)
    files = [results / name for name in texts]
    if find_spec("pyarrow") is not None:
        files.append(_parquet(settings, results / "results.parquet"))
    return files


def _csv(rows: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parquet(rows: Table, path: Path) -> Path:
    import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import pyarrow.parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) > 1:  # a column has one type
            number = kinds <= {int, float}
            columns[name] = [None if v is None else float(v) if number else argument(v) for v in values]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    write_atomically(path, sink.getvalue().to_pybytes())
    return path


def _markdown(sweep: Sweep, found: Sequence[Report], rows: Table) -> str:
    unfinished = sum(one.state != "done" for one in found)
    left = f"**{unfinished} of {len(found)} runs are not finished and in no median or mean.**"
    keys = [*part_of(sweep, sweep.lines[0]), *keys_of(sweep.asked)]
    head = [*keys, "seeds", "finished", "memorised", "grokked", "memorised step", "grok step", "delay"]
    splits = [name.removesuffix("_mean") for name in rows[0] if name.startswith("accuracy/") and name.endswith("_mean")]
    head += [f"final {split.removeprefix('accuracy/')}" for split in splits] + ["training s"]
    lines = [
        f"# {sweep.name}", "",
        "Steps and delay: median (minimum–maximum) among the finished runs that got there. Accuracies and seconds: mean"
        " (minimum–maximum) over finished runs.", *([left] if unfinished else []), "",
        f"| {' | '.join(head)} |", f"|{'---|' * len(head)}",
        *(f"| {' | '.join(_told(row, keys, splits))} |" for row in rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _told(row: dict[str, Any], keys: Sequence[str], splits: Sequence[str]) -> Iterator[str]:
    yield from ("–" if row[key] is None else argument(row[key]).replace("|", "\\|") for key in keys)
    yield from (str(row[name]) for name in ("seeds", "finished"))
    yield from (f"{row[name]} of {row['finished']}" for name in ("memorised", "grokked"))
    yield from (_span(row, f"{name}_step", "median", "{:,.0f}") for name in ("memorised", "grok"))
    yield _span(row, "delay", "median", "{:.1f}")
    yield from (_span(row, split, "mean", "{:.1%}") for split in splits)
    yield _span(row, "train_seconds", "mean", "{:,.0f}")


def _span(row: dict[str, Any], name: str, middle: str, spelling: str) -> str:
    if row[f"{name}_{middle}"] is None:
        return "–"
    value, low, high = (
        spelling.format(row[f"{name}_{kind}"]).replace("%", " %") for kind in (middle, "min", "max")
    )  # fmt: skip
    return value if low == high else f"{value} ({low}–{high})"
