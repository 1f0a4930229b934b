"""`grok sweep`: the command line of sweeps."""

from __future__ import annotations

import argparse
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from grok.callbacks.console import say
from grok.configuration import insist_on_mapping
from grok.errors import BadInput
from grok.sweep.asked import Asked, read_file, read_options
from grok.sweep.checks import check
from grok.sweep.figures import check_figures, draw_figures
from grok.sweep.groups import grouped, indices_of, spelled
from grok.sweep.line import BASE
from grok.sweep.plan import Sweep, plan, planned
from grok.sweep.pool import Pool, default_workers
from grok.sweep.status import STATES, report, reports, status_lines
from grok.sweep.table import collect
from grok.sweep.then import other_bases
from grok.sweep.worker import is_ready, task

__all__ = ["sweep"]

USAGE = """usage: grok sweep COMMAND …

  plan FILE.yaml             say what to run: a directory with one numbered line for each run
  plan --base CONFIG.yaml --grid KEY=A,B,… --grid seed_everything=0..4       the same without a file
  run SWEEP                  work off what is missing, with as many processes as there are cores
  task SWEEP INDEX           run one line in this process (what a task of a job array calls)
  status SWEEP               what is waiting, running, stopped, failed, done
  log SWEEP INDEX            the last lines that a run has printed
  collect SWEEP              one table over all runs, and one over settings

`grok sweep COMMAND --help` explains the options of each."""


MOST_RUNS = 40
"""A sweep of so many runs is told run by run."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; `{self.prog} --help` explains it")


def _parser(command: str, description: str) -> _Parser:
    return _Parser(prog=f"grok sweep {command}", description=description, allow_abbrev=False)


# ------------------------------------------------------------------ plan


def _plan(argv: Sequence[str]) -> None:
    parser = _parser("plan", "Check every run of a sweep and write the sweep directory; again: extend it.")
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE.yaml", help="base, set, grid, zip, list, figure, then"
    )
    parser.add_argument("--base", metavar="CONFIG.yaml", help="the configuration that all runs share")
    for name, told in (
        ("grid", "all combinations with the other keys: KEY=A,B,C or KEY=0..4"),
        ("zip", "together with the other zipped keys, first with first: KEY=A,B,C"),
        ("set", "the same for all runs: KEY=VALUE"),
    ):
        parser.add_argument(f"--{name}", action="append", default=[], help=told, metavar="KEY=…")
    parser.add_argument("--list", metavar="RUNS.csv", help="a row for each run (.csv, .jsonl or .yaml)")
    parser.add_argument("--sweep_dir", "--sweep-dir", type=Path, help="by default runs/NAME, the name of the file")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="check and tell; write nothing")
    options = parser.parse_args(argv)
    asked, bases = _asked(options)
    base, others = bases[BASE], {name: path for name, path in bases.items() if name != BASE}
    check_figures(asked)
    directory = options.sweep_dir or Path("runs") / (options.file.stem if options.file else f"{base.stem}_sweep")
    wanted = planned(asked, base, directory, others)
    before = len(Sweep.load(directory).lines) if (directory / "manifest.jsonl").exists() else 0
    new = wanted.lines[before:]
    check(wanted, bases, new)
    if not options.dry_run:
        plan(asked, base, directory, others)
    known = f", {len(new)} of them new" if before else ""
    say(f"{len(wanted.lines)} runs{known}, in {directory}{' (nothing written)' if options.dry_run else ''}")
    for line in new if options.dry_run else ():
        say(f"{line.index:>5}  {line.name}")
    say("Next:\n" + "\n".join(f"  grok sweep {name} {directory}" for name in ("run", "status", "collect")))


def _asked(options: Any) -> tuple[Asked, dict[str, Path]]:
    """What was asked, by a file or by options, and the base configurations by the names of their copies."""
    given = {name: getattr(options, name) for name in ("base", "set", "grid", "zip", "list")}
    given = {name: value for name, value in given.items() if value}
    if options.file:
        if given:
            raise BadInput(f"--{next(iter(given))}: write it into {options.file}, or leave the file out")
        asked, directory = read_file(options.file), options.file.parent
    else:
        if "base" not in given:
            raise BadInput("give a sweep file, or --base CONFIG.yaml with --grid, --zip or --list")
        asked, directory = read_options(given), Path()
    bases = {BASE: directory / asked["base"], **other_bases(asked, directory)}
    for base in bases.values():
        if not base.is_file():
            raise BadInput(f"base={str(base)!r}: not there; a sweep file names it relative to itself")
        insist_on_mapping(base)
    return asked, bases


# ------------------------------------------------------------------ run, task


def _task(argv: Sequence[str]) -> int:
    parser = _parser("task", "Train one run of a sweep in this process; finished, or being trained: left alone.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP")
    parser.add_argument("index", metavar="INDEX", help="number of the run, from 0, or its name")
    options = parser.parse_args(argv)
    sweep = Sweep.load(options.sweep)
    return task(sweep, sweep.find(options.index))


def _run(argv: Sequence[str]) -> int:
    parser = _parser("run", "Work off what is missing, each run in a process of its own; again: what is still missing.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP")
    parser.add_argument("--workers", type=int, help="processes at a time; by default cores / threads, or one per GPU")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (1)")
    parser.add_argument("--only", metavar="INDICES", help="these runs only, such as 0-3,7")
    parser.add_argument(
        "--ensemble", type=int, nargs="?", const=8, metavar="E",
        help="train up to E runs (8) that differ in seeds, optimizer, … as one in a process",
    )  # fmt: skip
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="tell what would be done")
    options = parser.parse_args(argv)
    for name in ("workers", "threads", "ensemble"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise BadInput(f"{name}={value}: use 1 or more")
    sweep = Sweep.load(options.sweep)
    chosen = indices_of(options.only, sweep.lines) if options.only else sweep.lines
    states = {line: report(sweep, line).state for line in chosen}
    missing = [line for line in chosen if states[line] not in ("done", "running")]
    groups = grouped(missing, options.ensemble) if options.ensemble else [[line] for line in missing]
    workers = min(options.workers or default_workers(sweep, options.threads), max(1, len(groups)))
    others = ", ".join(f"{n} {state}" for state, n in Counter(states.values()).items() if state in ("done", "running"))
    say(f"{len(missing)} of {len(chosen)} runs to do{f' ({others})' if others else ''}, {workers} at a time")
    if options.dry_run:
        for group in groups:
            say("  " + ", ".join(f"{line.index} {line.name}" for line in group))
        return 0
    pool = Pool(sweep, workers, options.threads, together=options.ensemble is not None)
    status = pool.run(groups) if groups else 0
    if pool.received is not None:
        left = sum(report(sweep, line).state != "done" for line in missing)
        say(f"stopped; {left} of {len(chosen)} runs left; the same command continues")
    if pool.left:
        why = "have failed" if len(pool.blocked) == len(pool.left) else "are not finished"
        indices = spelled(line.index for line in pool.left)
        say(f"{len(pool.left)} not started: {indices}; the runs that they start from {why}")
    if pool.failed:
        say(f"{len(pool.failed)} failed: " + spelled(line.index for line in pool.failed))
        say(f"  grok sweep log {sweep.directory} {pool.failed[0].index}   shows the last lines of the first")
    return status


# ------------------------------------------------------------------ status, log


def _status(argv: Sequence[str]) -> None:
    parser = _parser("status", "Where the runs are.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP")
    parser.add_argument("--runs", action="store_true", help=f"a line for each run, also of more than {MOST_RUNS}")
    parser.add_argument("--state", choices=STATES, help="a line for each run in this state")
    parser.add_argument("--missing", action="store_true", help="numbers of what is neither done nor running: 0-3,7")
    parser.add_argument("--ready", action="store_true", help="of these, only what can be trained now")
    parser.add_argument("--later", action="store_true", help="of these, only what starts from a run that is not done")
    options = parser.parse_args(argv)
    sweep = Sweep.load(options.sweep)
    found = reports(sweep)
    if options.missing or options.ready or options.later:
        missing = [one.line for one in found if one.state not in ("done", "running")]
        if options.ready != options.later:
            missing = [line for line in missing if is_ready(sweep, line) == options.ready]
        if missing:
            say(spelled(line.index for line in missing))
        return
    listed = options.runs or options.state or len(found) <= MOST_RUNS
    shown = [one for one in found if options.state in (None, one.state)] if listed else []
    for line in status_lines(found, shown):
        say(line)


def _log(argv: Sequence[str]) -> None:
    parser = _parser("log", "The last lines that a run has printed, over all attempts.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP")
    parser.add_argument("run", metavar="INDEX|NAME")
    parser.add_argument("--lines", type=int, default=20, metavar="N", help="how many (20)")
    options = parser.parse_args(argv)
    sweep = Sweep.load(options.sweep)
    line = sweep.find(options.run)
    path = sweep.log(line)
    if options.lines < 1:
        raise BadInput(f"lines={options.lines}: use 1 or more")
    if not path.exists():
        raise BadInput(f"{path}: not there; run {line.index} has not been started")
    with path.open(errors="replace") as file:
        for text in deque(file, options.lines):
            say(text.rstrip("\n"))


# ------------------------------------------------------------------


def _collect(argv: Sequence[str]) -> None:
    parser = _parser("collect", "One table over all runs, one over settings with the seeds summarised, and the figure.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP")
    sweep = Sweep.load(parser.parse_args(argv).sweep)
    found = reports(sweep)
    files = collect(sweep, found)
    for line in status_lines(found, ()):
        say(line)
    if sweep.asked.get("figure") and find_spec("matplotlib") is None:
        say("no figure without matplotlib: pip install 'grok-circuits[plots]'")
    else:
        files += draw_figures(sweep, found)
    if not any(path.suffix == ".parquet" for path in files):
        say("no .parquet without pyarrow: pip install 'grok-circuits[tables]'")
    say("Look:\n" + "\n".join(f"  {path}" for path in files if path.suffix != ".svg"))


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int | None]] = {
    "plan": _plan, "run": _run, "task": _task, "status": _status, "log": _log,
    "collect": _collect,
}  # fmt: skip


def sweep(argv: Sequence[str]) -> int | None:
    """Run `grok sweep COMMAND …`; returns the exit status, None for 0.

    Raises:
        BadInput: telling what is wrong and the fix.
    """
    if not argv or argv[0] in ("-h", "--help"):
        say(USAGE)
        return None
    if argv[0] not in _COMMANDS:
        raise BadInput(f"sweep {argv[0]}: no such command; use {', '.join(_COMMANDS)}")
    return _COMMANDS[argv[0]](argv[1:])
