"""What a run says to the person who started it: plain lines on standard output, from one process."""

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["say"]


@rank_zero_only
def say(line: str) -> None:
    """Print one line, at once, from rank 0 only."""
    print(line, flush=True)
