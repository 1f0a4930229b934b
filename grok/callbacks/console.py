"""What a run says to the person who started it: plain lines on standard output, from one process."""

import os
import sys

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["say"]


@rank_zero_only
def say(line: str) -> None:
    """Print one line, at once, from rank 0 only; a reader that has gone (`| head`) stops nothing."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for all further lines
