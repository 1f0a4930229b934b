"""Accuracy and circuit over the number of loops, from the finished runs of a sweep, in one figure and a table.

grok sweep plan configs/loops/loops.yaml
grok sweep run runs/loops
python scripts/loops_story.py runs/loops --figure docs/images/loops
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from grok.errors import BadInput
from grok.records import RunRecord
from grok.report.loop_counts import loop_story
from grok.sweep.plan import Sweep

SPLITS = ("test_inferred_iid", "test_inferred_ood")


def table(runs: Mapping[int, Sequence[RunRecord]]) -> Iterator[str]:
    """One Markdown line per run."""
    heads = ("loops", "run", "memorised", "ID 95 %", "final ID", "final OOD", "OOD with other numbers of loops")
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for loops, records in runs.items():
        for record in records:
            summary = record.summary() or {}
            last = summary["step"]
            others = [row for row in record.rows() if (row["step"], row["split"]) == (last, SPLITS[1])]
            tried = [
                f"{row['name'].rpartition('/')[2]}: {100 * row['value']:.0f} %"
                for row in others
                if row["name"].startswith("loops/accuracy/")
            ]
            finals = [f"{100 * summary['accuracy'][split]:.1f} %" for split in SPLITS]
            finals = [
                f"{told} of {summary['queries_in_split'][split]}" for told, split in zip(finals, SPLITS, strict=True)
            ]
            steps = [summary["memorised_step"], summary["grok_step"][SPLITS[0]]]
            told = ["–" if step is None else f"{step:,}" for step in steps]
            yield "| " + " | ".join([str(loops), record.directory.name, *told, *finals, ", ".join(tried)]) + " |"


def tell(directory: Path, figure: Path) -> None:
    """Draw and print what the finished runs of a sweep say.

    Raises:
        BadInput: if it is no sweep, or no run is finished.
    """
    sweep = Sweep.load(directory)
    runs: dict[int, list[RunRecord]] = {}
    for line in sweep.lines:
        if sweep.record(line).is_finished():
            runs.setdefault(int(sweep.value(line, "model.net.loops")), []).append(sweep.record(line))
    if not runs:
        raise BadInput(f"{directory}: no run is finished; `grok sweep run {directory}` first")
    layers = int(sweep.value(sweep.lines[0], "model.net.layers"))
    for text in table(runs):
        print(text)
    for file in loop_story(runs, layers, SPLITS, figure):
        print(file)


def main() -> int:
    """Draw and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("loops"), help="without suffix")
    arguments = parser.parse_args()
    try:
        tell(arguments.sweep, arguments.figure)
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
