"""A run as its record tells it, for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from grok.configuration import insist_on_mapping, leaves, value_at
from grok.errors import BadInput
from grok.provenance import SECRET
from grok.records import RunRecord, crossing
from grok.report.cells import Cells, cells_in, story_grids
from grok.report.faithfulness import CircuitRows, circuits_of
from grok.sweep.line import value_of
from grok.sweep.plan import Sweep

__all__ = ["Curve", "Run", "load", "varied"]

_NOT_VARIED = ("experiment", "trainer.default_root_dir", "trainer.logger")


@dataclass(frozen=True)
class Curve:
    """One number over optimizer steps; `low`, `high` and `floor` are None where they are not known."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    floor: tuple[float | None, ...]
    n: int | None

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Curve:
        """From lines of the record."""
        kept = [row for row in rows if row["value"] is not None]
        low, high, floor = (tuple(row.get(key) for row in kept) for key in ("low", "high", "floor"))
        n = kept[-1]["n"] if kept else None
        return cls(tuple(r["step"] for r in kept), tuple(r["value"] for r in kept), low, high, floor, n)

    def first(self, level: float) -> int | None:
        """The first step at which the level is reached."""
        index = crossing(self.values, level)
        return None if index is None else self.steps[index]


@dataclass(frozen=True)
class Run:
    """A run directory, read once.

    Args:
        directory: of the run.
        name: by which the page calls it.
        asked: of a run of the one sweep that the page is about, what it sets of the keys that vary, as asked for.
    """

    directory: Path
    name: str
    asked: dict[str, Any] | None = None

    @cached_property
    def record(self) -> RunRecord:
        """Its record."""
        return RunRecord(self.directory)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All lines of the record."""
        return self.record.rows()

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """`summary.json`, empty before the first evaluation."""
        return self.record.summary() or {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """`config.yaml`."""
        path = self.directory / "config.yaml"
        return insist_on_mapping(path) if path.exists() else {}

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Where it comes from, a line for every start."""
        return self.record.starts()

    @cached_property
    def by_name(self) -> Mapping[tuple[str, str | None], list[dict[str, Any]]]:
        """Lines by name and split."""
        found: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault((row["name"], row["split"]), []).append(row)
        return found

    def curves(self, name: str) -> dict[str, Curve]:
        """`accuracy` or `loss` of every split."""
        return {
            split: Curve.of(rows)
            for (kind, split), rows in self.by_name.items()
            if kind == name and split is not None and any(row["value"] is not None for row in rows)
        }

    def scalars(self, prefix: str) -> dict[str, Curve]:
        """Numbers of the run itself whose names begin with `prefix`, by the rest of the name."""
        return {
            name.removeprefix(prefix): Curve.of(rows)
            for (name, split), rows in self.by_name.items()
            if split is None and name.startswith(prefix)
        }

    @cached_property
    def cells(self) -> list[Cells]:
        """Grids of circuit analyses."""
        return cells_in(self.rows)

    @cached_property
    def story(self) -> list[Cells]:
        """Those that tell how the circuit formed."""
        return story_grids(self.cells)

    @cached_property
    def circuits(self) -> dict[str, CircuitRows]:
        """What was found of a small circuit that keeps the accuracy, by split."""
        return circuits_of(self.rows)

    @property
    def regime(self) -> str:
        """Name of the data regime."""
        return self.regime_class.rpartition(".")[2]

    @property
    def regime_class(self) -> str:
        """Path of the class of the data regime."""
        return str(value_at(self.config, "data.class_path") or "?")

    @property
    def seed(self) -> Any:
        """`seed_everything`."""
        return self.config.get("seed_everything")

    @property
    def grok_step(self) -> int | None:
        """Step at which the first held-out split grokked."""
        steps: Mapping[str, int | None] = self.summary.get("grok_step") or {}
        return next(iter(steps.values()), None)

    @property
    def first_held_out(self) -> str | None:
        """The split of `grok_step`."""
        return next(iter(self.summary.get("grok_step") or {}), None)

    @cached_property
    def leaves(self) -> Mapping[str, Any]:
        """Every key of the configuration with its value; lists count as values."""
        return dict(leaves(self.config))

    def yaml(self) -> str:
        """The configuration as text."""
        return yaml.safe_dump(_without_secrets(self.config), sort_keys=False)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: "***" if v is not None and SECRET.search(str(k)) else _without_secrets(v) for k, v in value.items()}
    return [_without_secrets(one) for one in value] if isinstance(value, list) else value


def load(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in `paths`: run directories, and sweeps, whose runs are taken that have a record.

    Raises:
        BadInput: for a path that is neither, or a sweep none of whose runs has been evaluated.
    """
    runs = []
    for path in map(Path, paths):
        if (path / "sweep.yaml").exists():
            sweep = Sweep.load(path)
            alike = len(paths) == len({line.block for line in sweep.lines}) == 1
            found = [(sweep.record(line), line) for line in sweep.lines]
            begun = [
                Run(record.directory, line.name, line.set if alike else None)
                for record, line in found
                if record.metrics_path.exists()
            ]
            if not begun:
                raise BadInput(
                    f"{path}: no run of this sweep has been evaluated yet; `grok sweep run {path}` trains them"
                )
            runs += begun
        elif (path / "metrics.jsonl").exists():
            runs.append(Run(path, str(path)))
        else:
            raise BadInput(f"{path}: neither a run that has been evaluated nor a sweep; give their directories")
    runs = list({run.directory.resolve(): run for run in runs}.values())
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else Run(run.directory, str(run.directory)) for run in runs]


def varied(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Keys of the configuration in which runs differ, with the value of every run; seeds last. Of the runs of one sweep
    the keys that were asked for: a class that varies is one key, whatever its arguments are.
    """
    keys = dict.fromkeys(key for run in runs for key in (run.leaves if run.asked is None else run.asked))
    found = {
        key: [run.leaves.get(key) if run.asked is None else value_of(run.asked, run.config, key) for run in runs]
        for key in keys
        if not key.startswith(_NOT_VARIED)
    }
    differing = {key: values for key, values in found.items() if any(value != values[0] for value in values)}
    return dict(sorted(differing.items(), key=lambda item: "seed" in item[0]))
