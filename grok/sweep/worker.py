"""Working off one run, or one group of runs, in this process."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any, cast

from lightning.pytorch.utilities import rank_zero_only

from grok.callbacks.console import say
from grok.errors import BadInput
from grok.files import is_locked, write_atomically
from grok.reading import parse_json
from grok.stopping import AGAIN
from grok.sweep.plan import Line, Sweep

__all__ = [
    "STOPPED_BY", "has_failed", "is_finished", "is_ready", "is_running", "last_status", "record_status", "task", "work",
]  # fmt: skip

STOPPED_BY = (AGAIN, 130, 137, 138, 143)
"""Exit statuses that are no failure: told to stop, or killed (128 + SIGINT, SIGKILL, SIGUSR1, SIGTERM)."""


def is_finished(sweep: Sweep, line: Line) -> bool:
    """Whether a run has reached its end; one with a damaged summary has not, and `grok fit` will say so."""
    try:
        return sweep.record(line).is_finished()
    except BadInput:
        return False


def is_running(sweep: Sweep, line: Line) -> bool:
    """Whether a process is training a run."""
    return is_locked(sweep.directory / line.run_dir)


def last_status(sweep: Sweep, line: Line) -> int | None:
    """Exit status of the last attempt at a run; None if there was none, it goes on, or it was killed."""
    try:
        status = parse_json(sweep.log(line, ".json").read_bytes())["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return status if isinstance(status, int) else None


def has_failed(sweep: Sweep, line: Line) -> bool:
    """Whether a run has ended without being finished and will not go on by itself, or its summary is damaged."""
    try:
        finished = sweep.record(line).is_finished()
    except BadInput:
        return True
    return not finished and not is_running(sweep, line) and last_status(sweep, line) not in (None, 0, *STOPPED_BY)


def is_ready(sweep: Sweep, line: Line) -> bool:
    """Whether a run can begin or go on: the one that it starts from is finished, or it has begun already."""
    source = sweep.source(line)
    return source is None or is_finished(sweep, source) or sweep.record(line).has_begun()


def record_status(sweep: Sweep, line: Line, status: int | None) -> None:
    """Note how an attempt has ended, or by None that one begins."""
    content = {"status": status, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_atomically(sweep.log(line, ".json"), json.dumps(content) + "\n")


Train = Callable[[Sequence[Line]], list[int]]
"""Trains runs; returns the exit status that `grok fit` has for each."""


def work(sweep: Sweep, lines: Sequence[Line], train: Train) -> int:
    """Train the runs among `lines` that nobody has finished or trains; note how each ended; returns the worst status.

    Args:
        sweep: to which they belong.
        lines: the runs that `train` trains together.
        train: `fit(sweep)` or `ensemble(sweep)`.
    """
    left = []
    for line in lines:
        if is_finished(sweep, line):
            say(f"{line.name} is finished; nothing to do")
        elif is_running(sweep, line):
            say(f"{line.name} is being trained by another process")
        else:
            left.append(line)
    if not left:
        return 0
    for line in left:
        record_status(sweep, line, None)
    try:
        statuses = train(left)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        statuses = [2] * len(left)
    except Exception:
        traceback.print_exc()
        statuses = [1] * len(left)
    noted = [0]
    for line, status in zip(left, statuses, strict=True):
        # Another process may have been faster than the look above: then the mistake is not this run's.
        if status != 2 or not (is_running(sweep, line) or is_finished(sweep, line)):
            record_status(sweep, line, status)
            noted.append(status)
    return max(noted, key=lambda status: (status not in (0, *STOPPED_BY), status))


def fit(sweep: Sweep) -> Train:
    """How a single run is trained: `grok fit` in this process."""
    from grok.cli import main

    def train(lines: Sequence[Line]) -> list[int]:
        arguments, before = sweep.fit(lines[0]), sys.argv
        sys.argv = [before[0], *arguments]  # Lightning starts the other processes of a run by it
        try:
            return [main(arguments)]
        finally:
            sys.argv = before

    return train


def ensemble(sweep: Sweep) -> Train:
    """How a group of runs is trained: as one ensemble in this process, each run with a log of its own."""
    from grok.sweep.ensemble import run_group

    return lambda lines: run_group([sweep.fit(line) for line in lines], [sweep.log(line) for line in lines])


def task(sweep: Sweep, line: Line) -> int:
    """Train one run in this process, its output also in its log; returns the exit status of `grok fit`.

    If the run that it starts from is not finished: 75, once more later; or 2 if that one has failed.
    """
    if cast(Any, rank_zero_only).rank:  # one of several processes of the run; the first looks and notes
        return fit(sweep)([line])[0]
    with _also_to(sweep, line):
        if is_finished(sweep, line) or is_ready(sweep, line):
            return work(sweep, [line], fit(sweep))
        source = cast(Line, sweep.source(line))
        failed, told = has_failed(sweep, source), f"run {source.index} ({source.name}), from which it starts"
        say(f"{line.name} is blocked: {told}, has failed" if failed else f"{line.name} waits for {told}")
        return 2 if failed else AGAIN


@contextmanager
def _also_to(sweep: Sweep, line: Line) -> Iterator[None]:
    path = sweep.log(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", buffering=1) as log,
        redirect_stdout(_Both(sys.stdout, log)),
        redirect_stderr(_Both(sys.stderr, log)),
    ):
        yield


class _Both:
    """A console whose every word goes to a log as well."""

    def __init__(self, console: Any, log: IO[str]) -> None:
        self.console, self.log = console, log

    def write(self, text: str) -> int:
        self.log.write(text)
        return int(self.console.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)
