"""The sweep directory: a manifest with one line for each run, written once and only ever extended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from grok.configuration import differences, insist_on_mapping
from grok.errors import BadInput
from grok.files import lock, write_atomically
from grok.reading import parse_json, read_text, read_yaml
from grok.records import RunRecord
from grok.sweep.asked import Asked
from grok.sweep.expansion import Setting, argument, expand, names, varied
from grok.sweep.line import BASE, Line, value_of
from grok.sweep.then import further

__all__ = ["Line", "Sweep", "plan", "planned"]


@dataclass(frozen=True)
class Sweep:
    """A sweep directory: `sweep.yaml`, `base.yaml`, `manifest.jsonl`, `runs/`, `logs/`, `results/`, `figures/`.

    A further part with a base configuration of its own has a copy of it beside `base.yaml`.
    """

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
            lines = tuple(Line(**parse_json(line)) for line in read_text(path).splitlines())
            asked = read_yaml(path.parent / "sweep.yaml")
        except (ValueError, TypeError, OSError):
            lines, asked = (), None
        numbered = [line.index for line in lines] == list(range(len(lines)))
        if not isinstance(asked, dict) or not numbered or not lines or not all(_is_sound(line) for line in lines):
            raise BadInput(f"{path}: it or sweep.yaml is damaged; `grok sweep plan` into a new directory")
        return cls(path.parent, lines, asked)

    @property
    def name(self) -> str:
        """Name of the sweep, which is the experiment of its runs."""
        return self.directory.resolve().name

    @cached_property
    def _options(self) -> dict[str, Mapping[str, Any]]:
        names = {line.base for line in self.lines}
        return {name: insist_on_mapping(self.directory / name) for name in names}

    def value(self, line: Line, key: str, default: Any = None) -> Any:
        """Value of a key, such as `trainer.max_steps`, in a run: its own or that of its base configuration."""
        return value_of(line.set, self._options[line.base], key, default)

    def source(self, line: Line) -> Line | None:
        """The run whose weights a run starts from."""
        return None if line.after is None else self.lines[line.after]

    def record(self, line: Line) -> RunRecord:
        """The record of a run."""
        return RunRecord(self.directory / line.run_dir)

    def log(self, line: Line, suffix: str = ".log") -> Path:
        """What a run has printed, in all attempts (`.log`), or how the last one ended (`.json`)."""
        return self.directory / "logs" / f"{line.name}{suffix}"

    def fit(self, line: Line, base: Path | None = None) -> list[str]:
        """Arguments of `grok fit` for a run; `base` is the base configuration if not the sweep's copy.

        The run that it starts from is named by its absolute path: from wherever a run is resumed, it is the same.
        """
        # A class before its arguments: `--data CLASS` would forget them.
        chosen = sorted(line.set.items(), key=lambda item: item[0].count("."))
        source = self.source(line)
        return [
            "fit", f"--config={base or self.directory / line.base}",
            *(f"--{key}={argument(value)}" for key, value in chosen),
            *([] if source is None else [f"--start.run={(self.directory / source.run_dir).resolve()}"]),
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


def _is_sound(line: Line) -> bool:
    """Whether a line can be one that was planned: its names stay within the sweep, its source comes before it."""
    words = (line.name, line.run_dir, line.base, line.block)
    if not all(isinstance(word, str) for word in words) or not isinstance(line.set, dict):
        return False
    if any(set(word) & set("/\\\0") or not word.strip(".") for word in (line.name, line.base)):
        return False
    follows = line.after is None or (type(line.after) is int and 0 <= line.after < line.index)
    return line.run_dir == f"runs/{line.name}" and follows


def planned(asked: Asked, base: Path, directory: Path, others: Mapping[str, Path] | None = None) -> Sweep:
    """The sweep that `directory` would hold; runs that it has already keep their numbers.

    Raises:
        BadInput: if the directory holds another sweep, or something else.
    """
    bases = {BASE: base, **(others or {})}
    if not (directory / "manifest.jsonl").exists():
        own = {name: path.read_text() for name, path in bases.items()}
        _insist_on_empty(directory, {**own, "sweep.yaml": _written(asked)})
        return Sweep(directory, _lines(asked, base, ())[0], asked)
    old = Sweep.load(directory)
    lines, wanted = _lines(asked, base, old.lines)
    changes = [f"  missing now: {line.name}" for line in old.lines if line.key not in wanted]
    for copy, path in ((directory / name, path) for name, path in bases.items() if (directory / name).exists()):
        changes += differences(insist_on_mapping(copy), insist_on_mapping(path))
    if changes:
        more = [f"  … and {len(changes) - 6} more"] if len(changes) > 6 else []
        raise BadInput(f"{directory} holds another sweep; choose another --sweep_dir", *changes[:6], *more)
    same = len(lines) == len(old.lines) and {**old.asked, "base": asked["base"]} == asked
    return Sweep(directory, lines, old.asked if same else asked)


def _lines(asked: Asked, base: Path, before: Sequence[Line]) -> tuple[tuple[Line, ...], set[str]]:
    """Those planned before and what is new after them; and the keys of all that are wanted now."""
    settings, options = expand(asked), insist_on_mapping(base)
    first = _numbered([Line(-1, "", "", setting) for setting in settings], settings, varied(asked), before)
    wanted, lines = [*first], _joined(before, first)
    for block in asked.get("then", []):
        found = _numbered(*further(asked, block, first, options), lines, block["name"])
        wanted, lines = [*wanted, *found], _joined(lines, found)
    return tuple(lines), {line.key for line in wanted}


def _numbered(
    wanted: Sequence[Line], told: Sequence[Setting], keys: Sequence[str], before: Sequence[Line], prefix: str = ""
) -> list[Line]:
    """The wanted runs: as they were planned `before`, or with new numbers and names, which tell `keys`."""
    known = {line.key: line for line in before}
    new = [(line, setting) for line, setting in zip(wanted, told, strict=True) if line.key not in known]
    chosen = names([setting for _, setting in new], keys, [line.name for line in before], prefix)
    for index, ((line, _), name) in enumerate(zip(new, chosen, strict=True), len(before)):
        known[line.key] = replace(line, index=index, name=name, run_dir=f"runs/{name}")
    return [known[line.key] for line in wanted]


def _joined(before: Sequence[Line], found: Sequence[Line]) -> list[Line]:
    return [*before, *(line for line in found if line.index >= len(before))]


def _written(asked: Asked) -> str:
    return yaml.safe_dump(asked, sort_keys=False)


def _insist_on_empty(directory: Path, own: Mapping[str, str]) -> None:
    if directory.exists() and not directory.is_dir():
        raise BadInput(f"sweep_dir={str(directory)!r}: is a file; choose another directory")
    # A plan that was cut short has left at most `own`, and what it has written is what is written now.
    other = [path for path in directory.iterdir() if not path.name.startswith(".")] if directory.is_dir() else []
    if any(path.name not in own or path.is_dir() or path.read_text() != own[path.name] for path in other):
        raise BadInput(f"sweep_dir={str(directory)!r}: holds other files and no sweep; choose another directory")


def plan(asked: Asked, base: Path, directory: Path, others: Mapping[str, Path] | None = None) -> Sweep:
    """Write the sweep directory, or extend it; what has been planned before stays as it is.

    Args:
        asked: what to vary, from `read`.
        base: the base configuration file.
        directory: of the sweep.
        others: name of the copy, and file, of every base configuration of a further part.

    Raises:
        BadInput: if the directory holds another sweep, or something else.
    """
    held = lock(directory)
    try:
        sweep = planned(asked, base, directory, others)
        begun = (directory / "manifest.jsonl").exists()
        copies = {
            name: directory / name if begun and (directory / name).exists() else path
            for name, path in {BASE: base, **(others or {})}.items()
        }
        contents = {
            **{name: path.read_text() for name, path in copies.items()},
            "sweep.yaml": _written(sweep.asked),
            "manifest.jsonl": "".join(json.dumps(line.written()) + "\n" for line in sweep.lines),  # last: now it counts
        }
        for name, text in contents.items():
            path = directory / name
            if not path.exists() or path.read_text() != text:
                write_atomically(path, text)
    finally:
        if held is not None:
            held.close()
    return sweep
