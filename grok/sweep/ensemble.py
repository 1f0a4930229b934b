"""Several `grok fit` in one process, their optimizer steps computed together as one `SeedEnsemble`.

Each run is an ordinary `grok fit` in a thread of its own: configuration, directory, resume, callbacks, records are what
they are for a run alone. Only one thread moves at a time. When a run comes to a block of optimizer steps it stands
still; when all stand still, the main thread does as many steps of all of them as every block has left, and lets those
whose block is done go on, one after the other. So nothing but the writing of
files is concurrent, and the outcome does not depend on timing.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from grok import stopping
from grok.callbacks.console import say
from grok.callbacks.last import rng_state, set_rng_state
from grok.data import Batch, Block
from grok.errors import BadInput
from grok.training import GrokModule, SeedEnsemble
from grok.training.module import TOGETHER

__all__ = ["run_group"]

_CPU = torch.device("cpu")


def run_group(argvs: Sequence[Sequence[str]], logs: Sequence[Path]) -> list[int]:
    """Train runs together; a run that fails, ends or stops early leaves the others alone.

    Runs that cannot be one ensemble are trained one after the other; each says why in its log. The seconds in a
    member's record are those of the whole group while it was at work.

    Args:
        argvs: arguments of `grok` for each run: `["fit", …]`.
        logs: where each run's output is appended.

    Returns:
        The exit status of each.
    """
    members = [_Member(argv, log) for argv, log in zip(argvs, logs, strict=True)]
    with stopping.listening():
        stopping.hold()
        for member in members:
            member.go_on()
        ensemble: SeedEnsemble | None = None
        while waiting := [member for member in members if member.module is not None]:
            if len(waiting) == 1 and waiting[0].before_its_block:  # the last one is faster by itself
                waiting[0].part()
                waiting[0].go_on()
                continue
            try:
                modules = [cast(GrokModule, member.module) for member in waiting]
                if ensemble is None or ensemble.members != modules:
                    ensemble = SeedEnsemble(modules)
            except BadInput as reason:
                for member in waiting:
                    member.part(reason)
                    member.go_on()
                continue
            try:
                _advance(ensemble, waiting)
            except Exception as error:  # nobody can go on: each run says so itself, in its log
                for member in waiting:
                    member.fail(error)
            for member in waiting:
                if not member.left:
                    member.go_on()
    return [member.status for member in members]


def _advance(ensemble: SeedEnsemble, members: Sequence[_Member]) -> None:
    """Do the optimizer steps that all members have before them."""
    steps = min(member.left for member in members)
    with ensemble.members[0].trainer.precision_plugin.train_step_context():
        for _ in range(steps):
            losses = ensemble.backward([member.next_batch() for member in members])
            for member, loss in zip(members, losses, strict=True):
                try:
                    cast(GrokModule, member.module).update(loss, keep_memory=True)
                except Exception as error:
                    member.fail(error)
            if any(member.failed for member in members):
                return  # the others go on without it


class _Member(threading.Thread):
    """One `grok fit`, which moves only within `go_on`."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        super().__init__(daemon=True)  # a second Ctrl-C must end the process
        self.argv, self.log = list(argv), log
        self.status = 1
        self.module: GrokModule | None = None
        self.left = self._length = 0
        self._batches: Iterator[Batch] = iter(())
        self._error: Exception | None = None
        self._alone = False
        self._reason: BadInput | None = None
        self._turn, self._stands = threading.Event(), threading.Event()
        self._world: _World | None = None

    def go_on(self) -> None:
        """Let the run move until it stands before its next block, or has ended (`module` is None then)."""
        mine = _World.current()
        self.module = None
        if self._world is None:
            self.start()
        else:
            self._world.restore()
            self._turn.set()
        try:
            self._stands.wait()
        finally:  # also after a second Ctrl-C
            mine.restore()
        self._stands.clear()

    def run(self) -> None:
        """The thread."""
        from grok.cli import main  # which imports this

        TOGETHER.set(self._stand)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", buffering=1) as file:
            sys.stdout = sys.stderr = file
            try:
                self.status = main(self.argv)
            except BaseException:
                traceback.print_exc()
                self.status = 1
        self._stands.set()

    def _stand(self, module: GrokModule, block: Block) -> bool:
        """Called before the optimizer steps of a block: hand over, and return when they have been done.

        False if the run must do them itself.
        """
        if self._alone:
            return False
        self.module, self._batches = module, iter(block)
        self.left = self._length = len(block)
        self._world = _World.current(module.device)
        self._stands.set()
        self._turn.wait()
        self._turn.clear()
        if self._error is not None:
            raise self._error
        if self._reason:
            say(f"no ensemble, trained alone: {self._reason}")
        return not self._alone

    @property
    def before_its_block(self) -> bool:
        """Whether no step of its block has been done."""
        return self.left == self._length

    def next_batch(self) -> Batch:
        """The next batch of the block."""
        self.left -= 1
        return next(self._batches)

    def part(self, reason: BadInput | None = None) -> None:
        """The run is not trained with others any more: it goes on alone, to its end."""
        self._alone, self._reason = True, reason

    @property
    def failed(self) -> bool:
        """Whether its steps could not be done."""
        return self._error is not None

    def fail(self, error: Exception) -> None:
        """The steps cannot be done: the run will end with this error."""
        self._error, self.left = error, 0


class _World:
    """What belongs to the process and not to a thread, and must be a run's own while it moves."""

    def __init__(self, output: tuple[Any, Any], generators: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.output, self.generators, self.dtype, self.device = output, generators, dtype, device

    @classmethod
    def current(cls, device: torch.device = _CPU) -> _World:
        return cls((sys.stdout, sys.stderr), rng_state(device), torch.get_default_dtype(), device)

    def restore(self) -> None:
        sys.stdout, sys.stderr = self.output
        set_rng_state(self.generators, self.device)
        torch.set_default_dtype(self.dtype)
