"""The sweep directory: a manifest with one line for each run, written once and only ever extended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from grok.configuration import differences
from grok.errors import BadInput
from grok.files import lock, write_atomically
from grok.records import RunRecord
from grok.sweep.asked import Asked
from grok.sweep.expansion import Setting, argument, canonical, expand, names, varied

__all__ = ["Line", "Sweep", "plan", "planned"]


@dataclass(frozen=True)
class Line:
    """A run of a sweep, as its manifest has it: number, name, directory relative to the sweep's, keys and values."""

    index: int
    name: str
    run_dir: str
    set: Setting = field(hash=False)


@dataclass(frozen=True)
class Sweep:
    """A sweep directory: `sweep.yaml`, `base.yaml`, `manifest.jsonl`, `runs/`, `logs/`, `results/`, `figures/`."""

    directory: Path
    lines: tuple[Line, ...]
    asked: Asked = field(hash=False)

    @classmethod
    def load(cls, directory: str | Path) -> Sweep:
        """Read a sweep directory.

        Raises:
            BadInput: if it is none, or its manifest is damaged.
        """
        path = Path(directory) / "manifest.jsonl"
        if not path.is_file():
            raise BadInput(f"{directory}: not a sweep (no manifest.jsonl in it); `grok sweep plan` makes one")
        try:
            lines = tuple(Line(**json.loads(line)) for line in path.read_text().splitlines())
            asked = yaml.safe_load((path.parent / "sweep.yaml").read_text())
        except (json.JSONDecodeError, TypeError, OSError, yaml.YAMLError):
            lines, asked = (), None
        if not isinstance(asked, dict) or [line.index for line in lines] != list(range(len(lines))) or not lines:
            raise BadInput(f"{path}: it or sweep.yaml is damaged; `grok sweep plan` into a new directory")
        return cls(path.parent, lines, asked)

    @property
    def name(self) -> str:
        """Name of the sweep, which is the experiment of its runs."""
        return self.directory.resolve().name

    @property
    def base(self) -> Path:
        """Its copy of the base configuration."""
        return self.directory / "base.yaml"

    @cached_property
    def base_options(self) -> dict[str, Any]:
        """The base configuration as nested dictionaries."""
        return yaml.safe_load(self.base.read_text()) or {}

    def value(self, line: Line, key: str, default: Any = None) -> Any:
        """Value of a key, such as `trainer.max_steps`, in a run: its own or that of the base configuration."""
        if key in line.set:
            return line.set[key]
        found: Any = self.base_options
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return default if found is None else found

    def record(self, line: Line) -> RunRecord:
        """The record of a run."""
        return RunRecord(self.directory / line.run_dir)

    def log(self, line: Line, suffix: str = ".log") -> Path:
        """What a run has printed, in all attempts (`.log`), or how the last one ended (`.json`)."""
        return self.directory / "logs" / f"{line.name}{suffix}"

    def fit(self, line: Line, base: Path | None = None) -> list[str]:
        """Arguments of `grok fit` for a run; `base` is the base configuration if not the sweep's copy."""
        # A class before its arguments: `--data CLASS` would forget them.
        chosen = sorted(line.set.items(), key=lambda item: item[0].count("."))
        return [
            "fit", f"--config={base or self.base}", *(f"--{key}={argument(value)}" for key, value in chosen),
            f"--run_dir={self.directory / line.run_dir}", f"--experiment={self.name}",
        ]  # fmt: skip

    def find(self, wanted: str) -> Line:
        """The run of this number or name.

        Raises:
            BadInput: if there is none.
        """
        for line in self.lines:
            if wanted in (str(line.index), line.name):
                return line
        last = len(self.lines) - 1
        raise BadInput(f"{self.directory}: no run {wanted!r}; use 0 to {last}, or a name of `grok sweep status --runs`")


def planned(asked: Asked, base: Path, directory: Path) -> Sweep:
    """The sweep that `directory` would hold; runs that it has already keep their numbers.

    Raises:
        BadInput: if the directory holds another sweep, or something else.
    """
    settings = expand(asked)
    if not (directory / "manifest.jsonl").exists():
        _insist_on_empty(directory, {"base.yaml": base.read_text(), "sweep.yaml": _written(asked)})
        return Sweep(directory, tuple(_lines(settings, asked, ())), asked)
    old = Sweep.load(directory)
    wanted, there = {canonical(one) for one in settings}, {canonical(line.set) for line in old.lines}
    changes = [f"  missing now: {line.name}" for line in old.lines if canonical(line.set) not in wanted]
    changes += differences(old.base_options, yaml.safe_load(base.read_text()))
    if changes:
        more = [f"  … and {len(changes) - 6} more"] if len(changes) > 6 else []
        raise BadInput(f"{directory} holds another sweep; choose another --sweep_dir", *changes[:6], *more)
    new = [setting for setting in settings if canonical(setting) not in there]
    same = not new and {**old.asked, "base": asked["base"]} == asked
    return Sweep(directory, (*old.lines, *_lines(new, asked, old.lines)), old.asked if same else asked)


def _lines(settings: Sequence[Setting], asked: Asked, before: Sequence[Line]) -> list[Line]:
    chosen = names(settings, varied(asked), [line.name for line in before])
    return [
        Line(index, name, f"runs/{name}", setting)
        for index, (name, setting) in enumerate(zip(chosen, settings, strict=True), len(before))
    ]


def _written(asked: Asked) -> str:
    return yaml.safe_dump(asked, sort_keys=False)


def _insist_on_empty(directory: Path, own: Mapping[str, str]) -> None:
    if directory.exists() and not directory.is_dir():
        raise BadInput(f"sweep_dir={str(directory)!r}: is a file; choose another directory")
    # A plan that was cut short has left at most `own`, and what it has written is what is written now.
    other = [path for path in directory.iterdir() if not path.name.startswith(".")] if directory.is_dir() else []
    if any(path.name not in own or path.is_dir() or path.read_text() != own[path.name] for path in other):
        raise BadInput(f"sweep_dir={str(directory)!r}: holds other files and no sweep; choose another directory")


def plan(asked: Asked, base: Path, directory: Path) -> Sweep:
    """Write the sweep directory, or extend it; what has been planned before stays as it is.

    Args:
        asked: what to vary, from `read`.
        base: the base configuration file.
        directory: of the sweep.

    Raises:
        BadInput: if the directory holds another sweep, or something else.
    """
    held = lock(directory)
    try:
        sweep = planned(asked, base, directory)
        begun = (directory / "manifest.jsonl").exists()
        contents = {
            "base.yaml": (sweep.base if begun else base).read_text(),
            "sweep.yaml": _written(sweep.asked),
            "manifest.jsonl": "".join(json.dumps(asdict(line)) + "\n" for line in sweep.lines),  # last: now it counts
        }
        for name, text in contents.items():
            path = directory / name
            if not path.exists() or path.read_text() != text:
                write_atomically(path, text)
    finally:
        if held is not None:
            held.close()
    return sweep
