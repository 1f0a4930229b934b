"""The command line: one `main(argv) -> status`.

`fit`, `validate`, `test` and `predict` are LightningCLI's (`grok.lightning_cli`); `trace`, `verify`, `sweep`,
`verdict`, `report`, `export` and `import` stand beside.
"""

from __future__ import annotations

import errno
import logging
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grok.callbacks import verify_series
from grok.callbacks.console import say
from grok.callbacks.last import verify_checkpoints
from grok.errors import BadInput, NotFinite
from grok.help import HELP_TEXT, asks_for_help
from grok.lightning_cli import run_lightning
from grok.stopping import DISK, Stopped, listening
from grok.trace import trace
from grok.verdict.command import verdict

__all__ = ["main"]


def _verify(argv: Sequence[str]) -> None:
    usage = "usage: grok verify RUN; checks the run's checkpoints and their series against their SHA-256"
    if "--help" in argv or "-h" in argv:
        say(usage)
        return
    if len(argv) != 1 or argv[0].startswith("-"):
        raise BadInput(usage)
    series, checkpoints = verify_series(argv[0]), verify_checkpoints(Path(argv[0]))
    say(f"{argv[0]}: all {series} files of the series and {checkpoints} checkpoints are as they were saved")


LAUNCHER = "lightning.fabric.strategies.launchers.subprocess_script"

MOST_LINES = 10
"""Lines of an error message that are shown."""


def _quieten_lightning() -> None:
    """Keep Lightning's hints and advertisements off the screen; its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(LAUNCHER).setLevel(logging.INFO)  # tells of a process that has died
    for message in (
        "`isinstance.treespec",  # inside Lightning
        r"\s*skip_none parameter was deprecated",  # its successor does not exist in every version we allow
        "`weights_only` was not set",
        "Couldn't infer the batch indices",  # predictions are written whole, in order
        "The `srun` command is available",  # one process needs none
        ".*does not have many workers",  # nothing is loaded: batches are made on the device
        ".*lr_scheduler.step.*before.*optimizer.step",  # the first steps of fp16 may be skipped
    ):
        warnings.filterwarnings("ignore", message)


def _interrupted(status: int, command: str) -> int:
    again = "continues from last.ckpt" if command == "fit" else "does it again"
    print(f"interrupted; the same command {again}", file=sys.stderr)
    return status


def _disk_error(error: BaseException) -> str | None:
    """What to do about a disk that is full or cannot be written to; None if that is not the matter."""
    if not isinstance(error, OSError) or error.errno not in _DISK_ERRORS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; what was saved is whole; make room, or it writable: the same command continues"


def _memory_error(error: BaseException) -> str | None:
    """What to do about memory that is not enough; None if that is not the matter."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    fix = "use a smaller --data.batch, --data.evaluation_batch, model or graph, or a larger machine"
    return f"not enough memory ({str(error).rpartition('] ')[2][:200] or 'of this machine'}); {fix}" if known else None


def _path_error(error: BaseException) -> str | None:
    """What to do about a name that leads nowhere: a link to itself, a way through a file, a name that is too long."""
    if not isinstance(error, OSError) or error.errno not in _PATH_ERRORS or not error.filename:
        return None
    return f"{error.filename}: {error.strerror}; give another path, or restore what was there"


_PATH_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
}  # fmt: skip


def _lost_fellow(error: BaseException) -> str | None:
    """What one process of a run says when another has ended; None if that is not the matter."""
    if not isinstance(error, RuntimeError) or not _LOST.search(str(error)):
        return None
    rank = cast(Any, rank_zero_only).rank
    return f"process {rank}: another process of this run has ended (see what it said); the same command continues"


_LOST = re.compile(
    r"gloo.*(Connection closed|Connection reset|Read error|Broken pipe)"
    r"|NCCL.*(remote process exited|Connection closed)",
    re.DOTALL,
)
"""How gloo and NCCL put it."""


def _user_error(error: BaseException | None) -> BaseException | None:
    """The mistake of the user behind an exception; jsonargparse wraps what a class raises."""
    while error is not None and not isinstance(error, BadInput | MisconfigurationException):
        error = error.__cause__
    return error


def _printable(line: str) -> str:
    """A line with what would move the cursor, or hide a part of a name, spelled out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def _of(module: str, name: str) -> Callable[[Sequence[str]], int | None]:
    """A command whose module is imported when it runs: few sessions need it, or it runs `main` itself."""

    def run(argv: Sequence[str]) -> int | None:
        status: int | None = getattr(import_module(module), name)(argv)
        return status

    return run


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int | None]] = {
    "trace": trace, "verify": _verify, "verdict": verdict, "sweep": _of("grok.sweep.command", "sweep"),
    "report": _of("grok.report.page.command", "report"), "export": _of("grok.exchange", "export"),
    "import": _of("grok.exchange", "import_"),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0 done; 1 a loss or gradient that is not finite, or not enough memory; 2 bad input (told in a few lines,
    `--traceback` for more); 74 the disk refused; 75 stopped by a signal of a batch system, and 130 by Ctrl-C, with
    everything saved.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if asks_for_help(arguments):
        print(HELP_TEXT, end="")
        return 0
    _quieten_lightning()
    try:
        command = _COMMANDS.get(arguments[0]) if arguments else None
        if command is not None:
            return command(arguments[1:]) or 0
        with listening() if arguments[:1] == ["fit"] else nullcontext():
            run_lightning(arguments)
    except Stopped as stopped:
        if cast(Any, rank_zero_only).rank == 0:
            print(f"{stopped}, everything is saved; the same command continues", file=sys.stderr)
            return stopped.status
        return 0  # a batch system kills the fellows of a process that ends badly, and the first may still be writing
    except NotFinite as error:
        if traceback:
            raise
        if cast(Any, rank_zero_only).rank != 0:
            return 0  # as above: the first process is about to say it
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if (full := _disk_error(error)) and not traceback:
            print(f"error: {full}", file=sys.stderr)
            return DISK
        if (lost := _lost_fellow(error)) and not traceback:
            print(f"error: {lost}", file=sys.stderr)
            return 1
        if (memory := _memory_error(error)) and not traceback:
            print(f"error: {_printable(' '.join(memory.split()))}", file=sys.stderr)
            return 1
        told = _path_error(error) or _user_error(error)
        if traceback or told is None:
            raise
        lines = [_printable(line) for line in str(told).splitlines()]
        shown = (
            lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], f"… {len(lines) - MOST_LINES + 1} more"]
        )
        print("error: " + "\n".join(shown), file=sys.stderr)
        return 2
    except SIGTERMException:
        return _interrupted(128 + signal.SIGTERM, arguments[0])
    except KeyboardInterrupt:
        return _interrupted(128 + signal.SIGINT, arguments[0])
    except SystemExit as stop:
        if stop.code == 1:  # how Lightning ends after Ctrl-C
            return _interrupted(128 + signal.SIGINT, arguments[0])
        return stop.code if isinstance(stop.code, int) else 2
    return 0
