"""Trains for as long as it is told, and insists that memory and open files do not grow and that records can be read.

    python scripts/soak.py --minutes 30

In one process, round after round: a run with circuit analyses, checkpoints and a moving average that is stopped by a
signal and resumed, an ensemble of three members, a trace and a test of what they left; then, for the last third of the
time, one long run. Meanwhile a thread reads metrics, summary and event files of the run that is being written, as
TensorBoard and reports do. Memory and files are looked at after each round (in the long run, every twentieth of it).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from grok.callbacks import Evaluation
from grok.cli import main as grok
from grok.records import RunRecord
from grok.report.tensorboard import read_scalars
from grok.sweep.ensemble import run_group

CONFIG: dict[str, Any] = {
    "trainer": {"accelerator": "cpu", "max_steps": 200},
    "data": {
        "class_path": "grok.data.TwoHopComposition",
        "init_args": {"entities": 20, "relations": 5, "out_degree": 5, "phi": 3, "ood": 0.1, "iid": 0.2, "batch": 64},
    },
    "model": {
        "net": {
            "class_path": "grok.models.LoopedTransformer",
            "init_args": {"width": 16, "heads": 2, "layers": 1, "loops": 2},
        },
        "ema_decay": 0.9,
        "block": 10,
        "fast": True,
    },
    "evaluation": {"every": 20},
    "series": {"every": 50},
    "last": {"every": 50},
    "lens": {"enabled": True, "every": 50},
    "tracing": {"enabled": True, "every": 100},
    "figures": {"enabled": False},  # drawn once a round, by the trace
}  # fmt: skip

WARM_UP = 2
"""Rounds after which memory counts: until then caches are filled."""

GROWTH = {"memory": 0.05, "files": 0.0, "threads": 1.0}
"""Largest growth that counts as flat, as a share, from the first to the last third of the rounds. Idle threads of a run
that has ended go when Python collects its garbage."""


@dataclass(frozen=True)
class Look:
    """What the process holds: memory in MB, open files, threads."""

    memory: float
    files: int
    threads: int

    @classmethod
    def now(cls) -> Look:
        """At this moment, without what Python only has to collect."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGESIZE") / 1e6
        return cls(memory, len(os.listdir("/proc/self/fd")), threading.active_count())  # noqa: PTH208


class Reader(threading.Thread):
    """Reads the record of the run that is being written, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.run_dir: Path | None = None
        self.reads, self.errors = 0, list[str]()
        self._end = threading.Event()

    def run(self) -> None:
        """The thread."""
        while not self._end.wait(0.2):
            if self.run_dir is None or not self.run_dir.exists():
                continue
            try:
                RunRecord(self.run_dir).rows()
                RunRecord(self.run_dir).summary()
                read_scalars(self.run_dir)
                self.reads += 1
            except Exception as error:  # any: that nothing goes wrong is what is tried
                self.errors.append(f"{self.run_dir.name}: {type(error).__name__}: {error}")

    def end(self) -> None:
        """Stop reading."""
        self._end.set()
        self.join()


class Soak:
    """Rounds below one directory, and what was seen after each.

    Args:
        directory: where runs are kept.
        reader: told which run is being written.
    """

    def __init__(self, directory: Path, reader: Reader) -> None:
        self.directory, self.reader = directory, reader
        self.config = directory / "soak.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG))
        self.looks: dict[str, list[Look]] = {"rounds": [], "one long run": []}

    def round(self, number: int) -> None:
        """Stop and resume a run, train an ensemble, look at what they left."""
        runs = [self.directory / f"round_{number}_{name}" for name in ("alone", "a", "b", "c")]
        alone = self._argv(runs[0], seed=number)
        with self._stopping_at(80):
            self._insist(alone, 75)
        self._insist(alone)
        argvs = [self._argv(run, seed=number + index) for index, run in enumerate(runs[1:])]
        self.reader.run_dir = runs[1]
        statuses = run_group(argvs, [run.with_suffix(".txt") for run in runs[1:]])
        if statuses != [0, 0, 0]:
            raise SystemExit(f"the ensemble of round {number} ended with {statuses}")
        self._insist(["trace", str(runs[1])])
        self._insist(["test", str(runs[1])])
        self.looks["rounds"].append(Look.now())

    def long_run(self, seconds: float) -> None:
        """One run until the time is over."""
        looks, began, parts = self.looks["one long run"], time.monotonic(), 20

        def look(callback: Evaluation, trainer: L.Trainer, *rest: Any) -> None:
            original(callback, trainer, *rest)  # after every block
            passed = time.monotonic() - began
            if passed > seconds * (len(looks) + 1) / parts:
                looks.append(Look.now())
            if passed > seconds:
                trainer.should_stop = True

        original = Evaluation.on_train_batch_end
        with _replaced(Evaluation, "on_train_batch_end", look):
            seldom = [f"--{key}.every=2000" for key in ("evaluation", "series", "last", "lens", "tracing")]
            endless = ["--trainer.max_steps=100000000", "--series.powers_of_two=false"]
            self._insist([*self._argv(self.directory / "long", seed=0), *endless, *seldom])

    def _argv(self, run: Path, seed: int) -> list[str]:
        return ["fit", "--config", str(self.config), "--run_dir", str(run), "--seed_everything", str(seed)]

    def _insist(self, argv: Sequence[str], wanted: int = 0) -> None:
        if argv[0] == "fit":
            self.reader.run_dir = Path(argv[argv.index("--run_dir") + 1])
        log = self.directory / "log.txt"
        with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            status = grok(argv)
        if status != wanted:
            raise SystemExit(f"grok {' '.join(argv)} ended with {status}, not {wanted}:\n{log.read_text()[-2000:]}")

    def _stopping_at(self, step: int) -> contextlib.AbstractContextManager[None]:
        def stop(callback: Evaluation, trainer: L.Trainer, *rest: Any) -> None:
            original(callback, trainer, *rest)
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        original = Evaluation.on_train_batch_end
        return _replaced(Evaluation, "on_train_batch_end", stop)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def growth(looks: Sequence[Look]) -> dict[str, tuple[float, float]]:
    """Medians over the first and the last third, of memory in MB, open files and threads."""
    third = max(1, len(looks) // 3)
    parts = looks[:third], looks[-third:]
    return {
        name: (statistics.median(getattr(one, name) for one in parts[0]),
               statistics.median(getattr(one, name) for one in parts[1]))
        for name in ("memory", "files", "threads")
    }  # fmt: skip


def main() -> int:
    """Soak, print the table, and say by the exit status whether everything was flat and readable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path, help="write the table there, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reader = Reader()
    reader.start()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        soak, number = Soak(Path(directory), reader), 0
        while time.monotonic() - began < 40 * options.minutes or number < WARM_UP + 3:
            soak.round(number)
            number += 1
        soak.long_run(20 * options.minutes)
        steps = (RunRecord(Path(directory) / "long").summary() or {}).get("step")
    reader.end()
    flat = True
    print(f"{number} rounds, a run of {steps:,} steps, {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"{'':14}{'':9}{'first third':>14}{'last third':>14}")
    table = {name: growth(looks[WARM_UP:]) for name, looks in soak.looks.items()}
    for name, found in table.items():
        for what, (first, last) in found.items():
            print(f"{name:14}{what:9}{first:14.0f}{last:14.0f}")
            flat = flat and last <= first * (1 + GROWTH[what])
    print(f"records and event files were read {reader.reads} times while being written, {len(reader.errors)} errors")
    print(*reader.errors[:5], sep="\n", end="\n" * bool(reader.errors))
    print("flat" if flat else "NOT FLAT")
    if options.json:
        options.json.write_text(json.dumps({"table": table, "reads": reader.reads, "errors": reader.errors}, indent=1))
    return 0 if flat and not reader.errors else 1


if __name__ == "__main__":
    sys.exit(main())
