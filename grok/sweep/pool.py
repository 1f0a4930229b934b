"""Working off a sweep with several processes, one for each run, which a server that has imported everything forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

import grok
from grok.callbacks.console import say
from grok.stopping import AGAIN, SIGNALS
from grok.sweep.plan import Line, Sweep
from grok.sweep.status import duration, report
from grok.sweep.worker import (
    ensemble,
    fit,
    has_failed,
    is_finished,
    is_ready,
    is_running,
    last_status,
    record_status,
    work,
)

__all__ = ["Pool", "cores", "default_workers", "graphics"]

POLL = 0.2
"""Seconds between two looks at whether this process has been told to stop."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def graphics() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [one for one in chosen.split(",") if one.strip() not in ("", "-1")]
    return [str(index) for index in range(torch.cuda.device_count())]


def default_workers(sweep: Sweep, threads: int) -> int:
    """A process for each GPU if the runs use them, else as many as the cores bear."""
    devices = graphics()
    if devices and sweep.value(sweep.lines[0], "trainer.accelerator", "auto") != "cpu":
        return len(devices)
    return max(1, cores() // threads)


@dataclass
class _Job:
    """A process at work."""

    process: ForkServerProcess
    lines: Sequence[Line]
    slot: int
    began: float


class Pool:
    """Runs groups of runs, each in a process of its own, at most `workers` at a time.

    Args:
        sweep: to which the runs belong.
        workers: number of processes at a time.
        threads: CPU threads of each.
        together: train the runs of a group as one ensemble.
    """

    def __init__(self, sweep: Sweep, workers: int, threads: int = 1, together: bool = False) -> None:
        self.sweep, self.workers, self.threads, self.together = sweep, workers, threads, together
        self.devices = graphics()
        self.jobs: list[_Job] = []
        self.failed: list[Line] = []
        self.left: list[Line] = []
        self.unfinished = 0
        self.seconds: list[float] = []
        self.received: signal.Signals | None = None

    def run(self, groups: Sequence[Sequence[Line]]) -> int:
        """Work them off in order; a group whose runs start from others is passed over until those are finished.

        Those that cannot be started, because a run that they start from does not get there, are `left`.

        Returns:
            0 if all are finished (or trained by others), 1 if some failed or start from one that has failed, 75 if some
            were stopped or are left, 130 after Ctrl-C.
        """
        waiting = list(groups)
        with self._listening(), _server(self.threads):
            try:
                while self.jobs or (waiting and self.received is None):
                    while len(self.jobs) < self.workers and self.received is None:
                        group = next((group for group in waiting if self._is_ready(group)), None)
                        if group is None:
                            break
                        waiting.remove(group)
                        self._start(group)
                    if not self.jobs:
                        break  # what is waiting now waits for runs that nobody here trains
                    ready = connection.wait([job.process.sentinel for job in self.jobs], timeout=POLL)
                    for job in [job for job in self.jobs if job.process.sentinel in ready]:
                        self._end(job, len(waiting))
            finally:
                self._stop(signal.SIGTERM)
                for job in self.jobs:
                    job.process.join()
        self.left = [line for group in waiting for line in group] if self.received is None else []
        return self._status()

    def _is_ready(self, lines: Sequence[Line]) -> bool:
        return all(is_ready(self.sweep, line) for line in lines)

    @property
    def blocked(self) -> list[Line]:
        """Runs left because the one that they start from has failed."""
        sources = [(line, self.sweep.source(line)) for line in self.left]
        return [line for line, source in sources if source is not None and has_failed(self.sweep, source)]

    def _status(self) -> int:
        if self.received is signal.SIGINT:
            return 128 + signal.SIGINT
        if self.received is not None:
            return AGAIN
        return 1 if self.failed or self.blocked else AGAIN if self.unfinished or self.left else 0

    def _start(self, lines: Sequence[Line]) -> None:
        lines = [line for line in lines if not is_finished(self.sweep, line) and not is_running(self.sweep, line)]
        if not lines:
            return
        slot = min(set(range(self.workers)) - {job.slot for job in self.jobs})
        device = self.devices[slot % len(self.devices)] if self.devices else None
        process = multiprocessing.get_context("forkserver").Process(
            target=_child, args=(self.sweep, lines, self.together, self.threads, device), name=lines[0].name
        )
        process.start()
        self.jobs.append(_Job(process, lines, slot, time.monotonic()))
        if self.received is not None:  # meanwhile, when this job was not yet known
            self._stop(signal.SIGTERM)
        say(f"{_clock()}  started  {_named(lines)}")

    def _end(self, job: _Job, waiting: int) -> None:
        job.process.join()
        self.jobs.remove(job)
        code = job.process.exitcode or 0
        status = code if code >= 0 else 128 - code
        seconds = time.monotonic() - job.began
        self.seconds.append(seconds)
        for line in job.lines:
            if status and last_status(self.sweep, line) is None and not is_running(self.sweep, line):
                record_status(self.sweep, line, status)  # killed before it could do so itself
            found = report(self.sweep, line)
            if found.state == "failed":
                self.failed.append(line)
            elif found.state in ("stopped", "waiting"):
                self.unfinished += 1
            left = self._time_left(waiting) if line is job.lines[-1] else ""
            how = f"failed with status {found.status}" if found.state == "failed" else f"{found.state:<8}"
            say(f"{_clock()}  {how} {_named([line])}, {found.told}, {seconds:,.0f} s{left}")

    def _time_left(self, waiting: int) -> str:
        if self.received is not None or not (waiting or self.jobs):
            return ""
        each = sum(self.seconds) / len(self.seconds)
        now = time.monotonic()
        begun = sum(max(0.0, each - (now - job.began)) for job in self.jobs)
        left = (begun + each * waiting) / min(self.workers, len(self.jobs) + waiting)
        return f"; {waiting + len(self.jobs)} left, about {duration(left)}"

    def _stop(self, number: signal.Signals) -> None:
        for job in self.jobs:
            if job.process.pid is not None and job.process.exitcode is None:
                os.kill(job.process.pid, number)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Pass every signal to stop on to the processes; Ctrl-C a second time ends them at once."""

        def note(number: int, _: Any) -> None:
            again = self.received is signal.SIGINT and number == signal.SIGINT
            if self.received is None:
                print(f"\n{signal.Signals(number).name}: the runs save and stop", file=sys.stderr, flush=True)
                self.received = signal.Signals(number)
            self._stop(signal.SIGKILL if again else signal.SIGTERM)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in (*SIGNALS, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _named(lines: Sequence[Line]) -> str:
    more = f" and {len(lines) - 1} more, together" if len(lines) > 1 else ""
    return f"{lines[0].index:>4}  {lines[0].name}{more}"


@contextmanager
def _server(threads: int) -> Iterator[None]:
    """The server that has imported everything once (5 s); a fork of it is ready at once.

    It neither touches a GPU nor starts threads: both would not survive the fork. What a library reads from the
    environment when it is loaded must be set before.
    """
    paths = [str(Path(grok.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    wanted = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        multiprocessing.get_context("forkserver").set_forkserver_preload(["grok.cli", "grok.sweep.pool"])
        resource_tracker.ensure_running()  # or it would unblock the signals
        # A batch system signals every process. The server must outlive its children, which unblock in `_child`.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _child(sweep: Sweep, lines: Sequence[Line], together: bool, threads: int, device: str | None) -> None:
    """What a process does: everything it prints, on whatever level, goes to the log of its (first) run."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; one tells the others
    threading.Thread(target=_stop_when_alone, daemon=True).start()
    log = sweep.log(lines[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(threads)
    sys.exit(work(sweep, lines, ensemble(sweep) if together else fit(sweep)))


def _stop_when_alone() -> None:
    """Save and stop when the process that started this one is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
