"""Kills a run again and again and resumes it each time; in the end it must equal a run that was never stopped.

    python scripts/kill_and_resume.py --kills 50          # a table of all kills, and whether everything is identical

Each kill has a signal (SIGKILL, SIGTERM, SIGUSR1, SIGINT) and a moment: somewhere between two blocks, in a save of
`last.ckpt`, in an evaluation, or in a circuit analysis; `--seed` fixes the sequence. What is compared: everything in
`last.ckpt`, the checkpoint series and its manifest, `metrics.jsonl`, `analysis/`, all scalars of the event files, and
the summary, apart from seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from grok.files import sha256
from grok.records import RunRecord
from grok.report.tensorboard import read_scalars

CONFIG = {
    "seed_everything": 3,
    "trainer": {"accelerator": "cpu", "max_steps": 240, "enable_progress_bar": False},
    "data": {
        "class_path": "grok.data.TwoHopComposition",
        "init_args": {
            "entities": 12, "relations": 4, "out_degree": 4, "phi": 2, "ood": 0.2, "iid": 0.2, "batch": 16
        },
    },
    "model": {
        "net": {
            "class_path": "grok.models.LoopedTransformer",
            "init_args": {"width": 16, "heads": 2, "layers": 1, "loops": 2, "dropout": 0.1},
        },
        "schedule": {"class_path": "grok.training.Warmup", "init_args": {"warmup": 5, "decay_from": 140}},
        "ema_decay": 0.9,
        "block": 8,
    },
    "evaluation": {"every": 20},
    "series": {"every": 40},
    "last": {"every": 30},
    "lens": {"enabled": True},
    "tracing": {"enabled": True, "every": 60},
    "figures": {"enabled": False},
}  # fmt: skip
"""A run of a few seconds that has something of everything: dropout, a schedule, a moving average, analyses."""

MOMENTS = {
    "save": ("grok.callbacks.last", ["LastCheckpoint._save", "replace", "write_atomically"]),
    "evaluation": ("grok.training.module", ["GrokModule.validation_step", "GrokModule.on_validation_epoch_end"]),
    "circuit": ("grok.callbacks.circuit", ["CircuitCallback.record", "RunRecord.append"]),
    "between": ("grok.training.module", ["GrokModule.training_step"]),
}
"""Where a kill can be asked for: functions of a module, at whose beginning or end the signal comes."""

ATTEMPTS = 10
"""Runs in a row that may come to their end before one and the same signal does."""

PATIENCE = 300
"""Seconds that a run may take; it takes a few."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass
class Kill:
    """One kill: which signal, where, and what became of it."""

    signal: signal.Signals
    moment: str
    function: str
    run: int | None = None
    status: int | None = None
    step: int | None = None
    identical: bool = False


def train(argv: Sequence[str], log: str, function: str | None = None, call: int = 0, announce: Any = None) -> None:
    """The child: `grok` with `argv`; says so through `announce` when `function` is called for the `call`-th time."""
    with open(log, "ab", buffering=0) as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    # What a process blocks or ignores its children inherit: of a fork server that a sweep has started, or of a shell.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from grok.cli import main

    if function is not None:
        _announce(function, call, announce)
    sys.exit(main(argv))


def _announce(function: str, call: int, announce: Any) -> None:
    module, _, path = function.partition(":")
    *outer, name = path.split(".")
    owner = __import__(module, fromlist=["*"])
    for one in outer:
        owner = getattr(owner, one)
    original, calls = getattr(owner, name), [0]

    def announced(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            announce.send(os.getpid())
        return original(*args, **kwargs)

    setattr(owner, name, announced)


class Harness:
    """Runs, kills and compares, below one directory.

    Args:
        directory: where runs and their logs are kept.
        seed: fixes the sequence of signals and moments.
    """

    def __init__(self, directory: Path, seed: int = 0) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        # A server that has imported everything and trained nothing forks the children: each starts in milliseconds.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["grok.cli", "grok.report.figures", "torch.utils.tensorboard"])
        self.config = directory / "config.yaml"
        directory.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(CONFIG))
        self.twin = directory / "never_stopped"

    def start(self, run: Path, *watched: Any) -> Any:
        """Start the command on a run directory."""
        argv = ["fit", "--config", str(self.config), "--run_dir", str(run)]
        child = self.context.Process(target=train, args=(argv, f"{run}.log", *watched))
        child.start()
        return child

    def finish(self, run: Path) -> None:
        """Let the run come to its end.

        Raises:
            RuntimeError: if it does not.
        """
        child = self.start(run)
        self.join(child, run)
        if child.exitcode != 0 or not RunRecord(run).is_finished():
            raise RuntimeError(f"{run} ended with status {child.exitcode}; see {run}.log")

    @staticmethod
    def join(child: Any, run: Path) -> None:
        """Wait for a child.

        Raises:
            RuntimeError: if it does not come to an end.
        """
        child.join(PATIENCE)
        if child.is_alive():
            child.kill()
            raise RuntimeError(f"{run} did not end within {PATIENCE} s; see {run}.log")

    def kill(self, run: Path, kill: Kill) -> None:
        """Start or resume `run` and send the signal soon after the function has been entered (never: at its end)."""
        listen, announce = self.context.Pipe(duplex=False)
        child = self.start(run, kill.function, self.random.randint(1, 4 if kill.moment != "between" else 15), announce)
        while child.is_alive() and not listen.poll(0.01):
            pass
        if child.is_alive():
            time.sleep(self.random.uniform(0, 0.004))
            os.kill(child.pid, kill.signal)
        self.join(child, run)
        kill.status, kill.step = child.exitcode, (RunRecord(run).summary() or {}).get("step", 0)

    def plan(self, kills: int) -> Iterator[Kill]:
        """Kills in which signals and moments come in turn, so that a few are enough for all of them."""
        order = [(number, moment) for moment in MOMENTS for number in SIGNALS]
        for index in range(kills):
            if index % len(order) == 0:
                self.random.shuffle(order)
            number, moment = order[index % len(order)]
            module, functions = MOMENTS[moment]
            yield Kill(number, moment, f"{module}:{self.random.choice(functions)}")

    def work(self, kills: Sequence[Kill], per_run: int) -> None:
        """Make the twin, do all kills, at most `per_run` to a run, finish every run and compare it."""
        self.finish(self.twin)
        run = 0
        for kill in kills:
            for _ in range(ATTEMPTS):
                run += sum(other.run == run for other in kills) >= per_run
                self.kill(self.directory / f"run_{run}", kill)
                if kill.status != 0:
                    kill.run = run
                    break
                run += 1  # it came to its end before the signal did
            else:
                raise RuntimeError(f"{kill}: {ATTEMPTS} runs came to their end; see {self.directory}/run_{run - 1}.log")
        for number in range(run + 1):
            self.compare(number, [kill for kill in kills if kill.run == number])

    def compare(self, number: int, kills: Sequence[Kill]) -> None:
        """Let a run finish, and note whether it is the same as the twin."""
        run = self.directory / f"run_{number}"
        self.finish(run)
        differ = differences(self.twin, run)
        for kill in kills:
            kill.identical = not differ
        for part in differ:
            print(f"{run}: {part} differs", flush=True)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, apart from seconds and dates; nothing if they are the same run."""
    parts = {"last.ckpt": _checkpoint, "series and analysis": _files, "metrics.jsonl": _metrics}
    parts |= {"events": _events, "summary.json": _summary}
    return [name for name, part in parts.items() if not _same(part(one), part(other))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _checkpoint(run: Path) -> Any:
    state = torch.load(run / "last.ckpt", weights_only=True)
    for name in [name for name in state["callbacks"] if name.startswith("CostMeter")]:
        state["callbacks"][name] = _without_seconds(state["callbacks"][name])
    del state["loops"]  # Lightning's count of the blocks begun, a stopped one included; the step is beside it
    return state


def _files(run: Path) -> dict[str, str]:
    paths = [path for kind in ("series", "analysis") for path in sorted((run / kind).iterdir())]
    return {str(path.relative_to(run)): sha256(path) for path in paths}


def _metrics(run: Path) -> str:
    return (run / "metrics.jsonl").read_text()


def _events(run: Path) -> dict[str, list[tuple[int, float]]]:
    return {tag: values for tag, values in read_scalars(run).items() if "seconds" not in tag}


def _summary(run: Path) -> dict[str, Any]:
    return _without_seconds(RunRecord(run).summary() or {})


def _without_seconds(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if "second" not in name}


def table(kills: Sequence[Kill]) -> str:
    """Markdown: kills by signal and moment, with the exit statuses seen, and how many ended identical."""
    lines = ["| signal | moment | kills | exit status | identical |", "|---|---|---|---|---|"]
    for number in SIGNALS:
        for moment in MOMENTS:
            mine = [kill for kill in kills if (kill.signal, kill.moment) == (number, moment)]
            if mine:
                seen = Counter("killed" if kill.status == -signal.SIGKILL else kill.status for kill in mine)
                statuses = ", ".join(f"{status} ({count})" for status, count in sorted(seen.items(), key=str))
                lines.append(
                    f"| {number.name} | {moment} | {len(mine)} | {statuses} | {sum(kill.identical for kill in mine)} |"
                )
    identical = sum(kill.identical for kill in kills)
    return "\n".join([*lines, f"\n{identical} of {len(kills)} identical to the run that was never stopped"])


def main() -> int:
    """Parse the options, work, print the table; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--per_run", type=int, default=5, help="kills of one run before it is left to finish")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=None, help="keep everything here instead of a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        harness = Harness(options.directory or Path(temporary), options.seed)
        kills = list(harness.plan(options.kills))
        harness.work(kills, options.per_run)
        for kill in kills:
            print(json.dumps({**vars(kill), "signal": kill.signal.name}))
    print(table(kills))
    return 0 if all(kill.identical for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
