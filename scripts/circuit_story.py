"""The circuit over training, five seeds of a shared model beside an unshared one of the same depth, in one figure.

Trains `configs/circuit_story.yaml` as it is (2 blocks x 2 loops) and with 4 blocks x 1 loop; runs that are finished are
not trained again, interrupted ones continue. Then draws docs/images/circuit_story.png and prints a table of all runs.

    python scripts/circuit_story.py               # one process per core, one thread each
    python scripts/circuit_story.py --seeds 0 1   # fewer seeds
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grok.records import RunRecord
from grok.report.cells import Cells, cells_of, nearest
from grok.report.figures import story

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"2 blocks x 2 loops (shared)": (2, 2), "4 blocks x 1 loop (unshared)": (4, 1)}
SPLIT = "test_inferred_iid"


def train(run: Path, seed: int, layers: int, loops: int, extra: list[str]) -> None:
    """Train, continue, or leave a finished run as it is; its output goes to a file beside the run."""
    config = [
        "--config",
        str(ROOT / "configs/circuit_story.yaml"),
        "--run_dir",
        str(run),
        "--seed_everything",
        str(seed),
    ]
    command = [sys.executable, "-m", "grok", "fit", *config]
    command += ["--model.net.layers", str(layers), "--model.net.loops", str(loops), *extra]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
    print(f"{run} done", flush=True)


def table(groups: dict[str, list[RunRecord]]) -> Iterator[str]:
    """One Markdown line per run."""
    heads = ("model", "seed", "memorised", "ID 95 %", "final ID", "final OOD", "bridge MRR in S[2, r1]")
    heads += ("strength of S[2, r1] (floor)", "seconds: training + analysis")
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for name, records in groups.items():
        for record in records:
            summary = record.summary() or {}
            accuracy, sizes = summary["accuracy"], summary["queries_in_split"]
            grids = {cells.grid: cells for cells in cells_of(record) if cells.split == SPLIT}
            yield "| " + " | ".join([
                name, record.directory.name.removeprefix("seed_"), _step(summary["memorised_step"]),
                _step(summary["grok_step"][SPLIT]), f"{100 * accuracy[SPLIT]:.1f} % of {sizes[SPLIT]:,}",
                f"{100 * accuracy['test_inferred_ood']:.1f} % of {sizes['test_inferred_ood']}",
                _change(grids["lens/mrr/bridge"], summary["memorised_step"], floor=False),
                _change(grids["tracing/changed"], summary["memorised_step"], floor=True),
                f"{summary['train_seconds']:.0f} + {summary['analysis_seconds']:.0f}",
            ]) + " |"  # fmt: skip


def _step(step: int | None) -> str:
    return "–" if step is None else f"{step:,}"


def _change(cells: Cells, memorised: int | None, floor: bool) -> str:
    """The value in S[2, r1] when memorised (nearest analysis) and at the end."""
    told = [cells.values[step, "S[2]", "r1"] for step in (nearest(cells.steps, memorised), cells.steps[-1])]
    return " → ".join(f"{cell['value']:.2f}" + (f" ({cell['floor']:.2f})" if floor else "") for cell in told)


def main() -> None:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--runs", type=Path, default=Path("runs/circuit_story"))
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/images/circuit_story", help="without suffix")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments, extra = parser.parse_known_args()  # what is left goes to `grok fit`
    places = {
        (name, seed): arguments.runs / f"{layers}x{loops}" / f"seed_{seed}"
        for seed in arguments.seeds
        for name, (layers, loops) in MODELS.items()
    }
    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [pool.submit(train, run, seed, *MODELS[name], extra) for (name, seed), run in places.items()]
        for job in jobs:
            job.result()
    groups = {name: [RunRecord(places[name, seed]) for seed in arguments.seeds] for name in MODELS}
    for line in table(groups):
        print(line)
    for file in story(groups, SPLIT, arguments.figure):
        print(file)


if __name__ == "__main__":
    main()
