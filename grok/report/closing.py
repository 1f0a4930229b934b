"""The last lines of a run: what happened, and where to look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from grok.records import RunRecord, wilson
from grok.report.cells import cells_of, nearest, story_grids
from grok.training import Score

__all__ = ["circuit_lines", "closing_lines", "score_table"]


def closing_lines(directory: Path) -> Iterator[str]:
    """Milestones, final accuracies, cost and files of the run in `directory`, from its record."""
    summary = RunRecord(directory).summary()
    if summary is None:
        return
    accuracies = {split: value for split, value in summary.get("accuracy", {}).items() if value is not None}
    yield ""
    yield f"After {summary['step']:,} steps and {summary.get('wall_seconds', 0):,.0f} s:"
    if (memorised := summary.get("memorised_step")) is not None:
        yield f"  training facts memorised    step {memorised:,}"
    for split in summary.get("grok_step", {}):
        crossings = summary.get("crossings", {}).get(split, {})
        passed = [
            f"{100 * float(level):g} % at step {crossings[level]['first']:,}"
            for level in ("0.5", "0.95")
            if crossings.get(level, {}).get("first") is not None
        ]
        yield f"  {split:<27} {'passed ' + ', '.join(passed) if passed else 'never passed 50 %'}"
    if summary.get("delay") is not None:
        yield f"  delay (grokked/memorised)   {summary['delay']:.1f} x"
    sizes = summary.get("queries_in_split", {})
    for split, value in accuracies.items():
        yield f"  final {split:<21} {100 * value:5.1f} %  of {sizes.get(split, 0):,} queries"
    for split, value in summary.get("loss", {}).items():
        if split not in accuracies:
            yield f"  final loss {split:<16} {value:.4g}"
    yield from circuit_lines(RunRecord(directory))
    yield "Look:"
    yield f"  grok report {directory}"
    yield f"  tensorboard --logdir {directory}"
    for pattern in ("accuracy", "circuit", "groups_*", "measures_*"):
        for figure in sorted((directory / "figures").glob(f"{pattern}.png")):
            yield f"  {figure}"
    yield f"  {directory / 'summary.json'}"


def circuit_lines(record: RunRecord) -> Iterator[str]:
    """For every analysed split, the state in which the lens reads most, and the one that decides most above its floor.

    Of equally good states the lens names the first and tracing the last: where the circuit has resolved the bridge, and
    up to where it is needed.
    """
    memorised = (record.summary() or {}).get("memorised_step")
    for cells in story_grids(cells_of(record)):
        column = cells.story_column
        steps = cells.told(column)
        before = nearest(steps, memorised)
        lens = cells.grid.startswith("lens")
        rows = cells.rows if lens else cells.rows[::-1]
        best = max(rows, key=lambda row: round(cells.excess(steps[-1], row, column, floor=not lens), 2))
        shown = [
            cells.values[step, best, column]
            for step in sorted({before, steps[-1]})
            if (step, best, column) in cells.values
        ]
        floors = ["" if cell["floor"] is None else f" (floor {cell['floor']:.2f})" for cell in shown]
        told = [
            f"{cell['value']:.2f} at step {cell['step']:,}{floor}" for cell, floor in zip(shown, floors, strict=True)
        ]
        what = f"{cells.grid.rpartition('/')[2]} in" if lens else "strength of"
        yield f"  {f'{what} {best[:-1]}, {column}]':<27} {', '.join(told)}, {cells.split}"


def score_table(scores: Mapping[str, Score]) -> Iterator[str]:
    """Accuracy with its 95 % interval, loss and number of queries of every split."""
    yield f"{'split':<22} {'accuracy':>9}  {'95 % interval':>17} {'loss':>10} {'queries':>9}"
    for split, score in scores.items():
        if score.accuracy is None:
            accuracy = interval = "–"
        else:
            accuracy = f"{100 * score.accuracy:.1f} %"
            interval = " – ".join(f"{100 * bound:.1f} %" for bound in wilson(score.accuracy, score.n))
        yield f"{split:<22} {accuracy:>9}  {interval:>17} {score.loss:>10.4g} {score.n:>9,}"
