"""What a run says to the person who started it: plain lines on standard output, from one process."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["BAR", "patient", "say"]

BAR: list[Any] = []
"""The progress bar on the screen, if there is one: lines go above it."""


@rank_zero_only
def say(line: str) -> None:
    """Print one line, at once, from rank 0 only; a reader that has gone (`| head`) stops nothing."""
    try:
        if BAR:
            BAR[-1].write(line, file=sys.stdout)
        else:
            print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for all further lines


@contextmanager
def patient(what: str, after: float = 10.0) -> Iterator[None]:
    """Say every `after` seconds that something other than training is still being done."""
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(after):
            say(f"still {what}: {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
