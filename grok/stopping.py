"""Stopping on a signal: remember it, save at the end of the block, and tell by the exit status whether to come back.

A handler that saved by itself would save in the middle of an update. Here handlers set a flag; `LastCheckpoint` looks
at it before every block, saves, and raises `Stopped`, which the command line turns into an exit status.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["AGAIN", "DISK", "Stopped", "hold", "listening", "requested"]

DISK = 74
"""Exit status: a file could not be written (EX_IOERR of sysexits.h)."""

AGAIN = 75
"""Exit status: stopped by a signal with everything saved; the same command goes on (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals of a batch system: before the time limit (SLURM's `--signal=USR1@120`), at preemption, at `scancel`."""

_received: signal.Signals | None = None


class Stopped(BaseException):
    """Training was stopped by a signal, after everything had been saved; no `Exception`, so that nothing eats it.

    Args:
        received: the signal.
        step: where training stands.
        started: where it stood when this process took it up.
    """

    def __init__(self, received: signal.Signals, step: int, started: int) -> None:
        super().__init__(f"stopped by {received.name} at step {step}")
        self.received, self.progressed = received, step > started

    @property
    def status(self) -> int:
        """Exit status: `AGAIN`; after Ctrl-C, or without a single step, 128 + signal, as if nothing had caught it.

        A batch system that signals a process before its first step each time would otherwise requeue it for ever.
        """
        return AGAIN if self.progressed and self.received is not signal.SIGINT else 128 + self.received


def requested() -> signal.Signals | None:
    """The signal that asked this process to stop, if one has."""
    return _received


@contextmanager
def listening() -> Iterator[None]:
    """Within, a signal of the batch system is remembered for the end of the block instead of killing the process.

    Ctrl-C joins them once training has begun (`hold`). Outside the main thread, which alone receives signals, nothing
    changes.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
    _received = None
    for number in SIGNALS:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


def hold() -> None:
    """Take the signals back from Lightning, whose handlers act in the middle of an update, and take Ctrl-C as well."""
    if threading.current_thread() is threading.main_thread():
        for number in (*SIGNALS, signal.SIGINT):
            signal.signal(number, _note)


def _note(number: int, _: FrameType | None) -> None:
    global _received
    if _received is signal.SIGINT and number == signal.SIGINT:  # a second Ctrl-C means now
        raise KeyboardInterrupt
    _received = signal.Signals(number)
