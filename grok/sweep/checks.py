"""Checking the configurations of a sweep before anything is written: with the parser and the checks of `grok fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from grok.callbacks.start import insist_on_same_task
from grok.errors import BadInput
from grok.lightning_cli import GrokCLI, dump_config, run_lightning
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


def check(sweep: Sweep, bases: Mapping[str, Path], lines: Sequence[Line]) -> None:
    """Parse and check the configurations of `lines` as `grok fit` would; the data of every new value are made, too.

    Runs that differ in seeds only are parsed once, and once for every value of a seed: a parse takes some tenths of a
    second. Of a run that starts from another one, which need not be there yet, it is checked that their graphs and
    models are the same.

    Args:
        sweep: to which they belong.
        bases: its base configurations, by the names of their copies in its directory.
        lines: the runs to check.

    Raises:
        BadInput: naming the first run that is wrong, the key, the value and the fix.
    """

    class Checker(GrokCLI):
        """All of LightningCLI's way up to training, for each run, with one parser; nothing is written."""

        def parse_arguments(self, parser: Any, args: Any) -> None:
            self.subcommand = "fit"
            sources: dict[int, Any] = {}
            for line, new in _to_check(sweep, lines):
                try:
                    if (source := sweep.source(line)) is not None:
                        if source.index not in sources:
                            sources[source.index] = self._parsed(parser, source)
                        there, own = sources[source.index], self._parsed(parser, line)
                        insist_on_same_task(there, own, f"run {source.index} ({source.name})", "this one")
                    else:
                        super().parse_arguments(parser, sweep.fit(line, bases[line.base]))
                    super().before_instantiate_classes()
                    if new:
                        super().instantiate_classes()
                        super().after_instantiate_classes()
                except Exception as error:
                    raise _of_run(line, error) from error

        def _parsed(self, parser: Any, line: Line) -> Any:
            super().parse_arguments(parser, sweep.fit(line, bases[line.base]))
            return yaml.safe_load(dump_config(self._parser(self.subcommand), self.options))

        def instantiate_trainer(self, **_: Any) -> Any:
            return SimpleNamespace(callbacks=[])  # the machine that plans may lack the accelerator

        def _set_seed(self) -> None: ...

        def before_instantiate_classes(self) -> None: ...

        def instantiate_classes(self) -> None: ...

        def after_instantiate_classes(self) -> None: ...

        def _run_subcommand(self, subcommand: str) -> None: ...

    if lines:
        run_lightning(["fit"], Checker)


def _to_check(sweep: Sweep, lines: Sequence[Line]) -> Iterator[tuple[Line, bool]]:
    """Runs to parse, and whether one has a value (not of a seed) that no run before has, with the same base."""
    settings: set[str] = set()
    values: set[str] = set()
    for line in lines:
        source = sweep.source(line)
        all_keys = {"base": line.base, **line.set, **_of_source({} if source is None else source.set)}
        own = {"base": line.base, **without_seeds(line), **_of_source({} if source is None else without_seeds(source))}
        mine = {canonical({"base": line.base, key: value}) for key, value in all_keys.items()}
        new = bool({canonical({"base": line.base, key: value}) for key, value in own.items()} - values)
        if canonical(own) not in settings or mine - values:
            yield line, new
        settings.add(canonical(own))
        values |= mine


def _of_source(setting: Mapping[str, Any]) -> dict[str, Any]:
    return {f"source {key}": value for key, value in setting.items()}


def _of_run(line: Line, error: BaseException) -> BaseException:
    """The mistake of the user behind an exception, with the run's name; jsonargparse wraps what a class raises."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, BadInput | MisconfigurationException):
        cause = cause.__cause__
    if cause is None:
        return error
    first, *more = str(cause).splitlines()
    return BadInput(f"run {line.index} ({line.name}): {first}", *more)
