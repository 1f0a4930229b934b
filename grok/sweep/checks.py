"""Checking the configurations of a sweep before anything is written: with the parser and the checks of `grok fit`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from grok.errors import BadInput
from grok.lightning_cli import GrokCLI, run_lightning
from grok.sweep.asked import same_key
from grok.sweep.expansion import canonical
from grok.sweep.plan import Line, Sweep

__all__ = ["SEED_KEYS", "check", "is_seed", "without_seeds"]

SEED_KEYS = (
    "seed_everything", "data.graph_seed", "data.order_seed", "data.split_seed", "model.init_seed",
)  # fmt: skip
"""Keys that change chance only, not what is measured; `init_args` may stand in between."""


def is_seed(key: str) -> bool:
    """Whether a key changes chance only."""
    return same_key(key) in SEED_KEYS


def without_seeds(line: Line) -> dict[str, Any]:
    """What a run measures: its keys and values without the seeds."""
    return {key: value for key, value in line.set.items() if not is_seed(key)}


def check(sweep: Sweep, base: Path, lines: Sequence[Line]) -> None:
    """Parse and check the configurations of `lines` as `grok fit` would; the data of every new value are made, too.

    Runs that differ in seeds only are parsed once, and once for every value of a seed. A parse takes 0.1 s.

    Args:
        sweep: to which they belong.
        base: its base configuration.
        lines: the runs to check.

    Raises:
        BadInput: naming the first run that is wrong, the key, the value and the fix.
    """

    class Checker(GrokCLI):
        """All of LightningCLI's way up to training, for each run, with one parser; nothing is written."""

        def parse_arguments(self, parser: Any, args: Any) -> None:
            self.subcommand = "fit"
            for line, new in _to_check(lines):
                try:
                    super().parse_arguments(parser, sweep.fit(line, base))
                    super().before_instantiate_classes()
                    if new:
                        super().instantiate_classes()
                        super().after_instantiate_classes()
                except Exception as error:
                    raise _of_run(line, error) from error

        def instantiate_trainer(self, **_: Any) -> Any:
            return SimpleNamespace(callbacks=[])  # the machine that plans may lack the accelerator

        def _set_seed(self) -> None: ...

        def before_instantiate_classes(self) -> None: ...

        def instantiate_classes(self) -> None: ...

        def after_instantiate_classes(self) -> None: ...

        def _run_subcommand(self, subcommand: str) -> None: ...

    if lines:
        run_lightning(["fit"], Checker)


def _to_check(lines: Sequence[Line]) -> Iterator[tuple[Line, bool]]:
    """Runs to parse, and whether one has a value (not of a seed) that no run before has."""
    settings: set[str] = set()
    values: set[str] = set()
    for line in lines:
        setting = without_seeds(line)
        mine = {canonical({key: value}) for key, value in line.set.items()}
        new = bool({canonical({key: value}) for key, value in setting.items()} - values)
        if canonical(setting) not in settings or mine - values:
            yield line, new or not settings
        settings.add(canonical(setting))
        values |= mine


def _of_run(line: Line, error: BaseException) -> BaseException:
    """The mistake of the user behind an exception, with the run's name; jsonargparse wraps what a class raises."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, BadInput | MisconfigurationException):
        cause = cause.__cause__
    if cause is None:
        return error
    first, *more = str(cause).splitlines()
    return BadInput(f"run {line.index} ({line.name}): {first}", *more)
