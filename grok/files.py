"""Files that survive a crash: durable replacement in one step, checksums, and one process per directory."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from weakref import WeakKeyDictionary

from grok.errors import BadInput

__all__ = ["Background", "is_locked", "lock", "replace", "sha256", "write_atomically", "writer"]


def write_atomically(path: Path, content: str | bytes | memoryview, several: bool = False) -> None:
    """Replace `path` by `content` in one step: a reader, or a crash, sees the old file or the new one.

    Args:
        path: the file; its directory is made.
        content: all of it.
        several: whether several processes may write it at once, without a `lock`.

    Raises:
        OSError: if the disk is full or cannot be written to; the old file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One writer per directory (`lock`), so that a fixed name is safe: what a crash has left is written over.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial" if several else f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def replace(partial: Path, path: Path) -> None:
    """Rename a finished file to `path`; its content and its name outlive a power failure."""
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Background:
    """Does pieces of writing, one after the other, while their owner goes on; nothing is done after one has failed.

    Python waits for what is under way before the process ends.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def __call__(self, work: Callable[[], None], most: int = 2) -> None:
        """Add `work`, and wait while as many as `most` pieces before it are not done: each holds a copy of a model.

        Raises:
            Exception: what a piece before it has raised.
        """
        while self._pending and (len(self._pending) >= most or self._pending[0].done()):
            self._finish_first()
        before = self._pending[-1] if self._pending else None

        def in_turn() -> None:
            if before is not None:
                before.result()  # done by now, as one thread does all; raises what went wrong
            work()

        self._pool = self._pool or ThreadPoolExecutor(1, "grok-writes")
        self._pending.append(self._pool.submit(in_turn))

    def wait(self) -> None:
        """Wait until all is done.

        Raises:
            Exception: what a piece has raised, once.
        """
        while self._pending:
            self._finish_first()

    def _finish_first(self) -> None:
        try:
            self._pending[0].result()
        except BaseException:
            for piece in self._pending:
                piece.exception()  # those after it raise the same
            self._pending.clear()
            raise
        self._pending.pop(0)


_WRITERS: WeakKeyDictionary[object, Background] = WeakKeyDictionary()


def writer(owner: object) -> Background:
    """The one `Background` of a trainer: what its callbacks save is written in the order in which they saved it."""
    return _WRITERS.setdefault(owner, Background())


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(directory: Path, patience: float = 1.0) -> IO[str] | None:
    """Hold a directory against a second process that would write the same record; None without file locks.

    The system lets go when the returned file is closed, or when the process ends in whatever way.

    Args:
        directory: made if it is not there.
        patience: seconds to wait for another process that is about to end, or only looks (`is_locked`).

    Raises:
        BadInput: if another process holds it.
    """
    if find_spec("fcntl") is None:
        return None
    import fcntl

    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / ".lock").open("w")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            file.close()
            raise BadInput(f"{directory}: another process is training here; wait for it, or use --fresh") from None
        except OSError as error:  # some network file systems have no locks
            warnings.warn(f"{directory} cannot be locked ({error.strerror}): start nothing else there", stacklevel=2)
        return file


def is_locked(directory: Path) -> bool:
    """Whether a process is training in a run directory."""
    path = directory / ".lock"
    if find_spec("fcntl") is None or not path.exists():
        return False
    import fcntl

    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
