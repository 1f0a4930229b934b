"""From what was asked to a list of runs: grids, zips and lists multiplied out, and a name for every run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grok.errors import BadInput
from grok.sweep.asked import MOST_VALUES, Asked, Setting

__all__ = ["Setting", "argument", "canonical", "expand", "names", "varied", "with_whole_numbers"]

MOST_LETTERS = 120
"""Longest name of a run; file systems allow 255 bytes, suffixes included."""

_CLASS = re.compile(r"(?:[A-Za-z_]\w*\.)+([A-Z]\w*)")


def varied(asked: Asked) -> list[str]:
    """Keys that the runs differ in, in the order asked; the first varies slowest."""
    keys: list[str] = []
    for kind in asked:
        if kind in ("grid", "zip"):
            keys += asked[kind]
        elif kind == "list":
            keys += dict.fromkeys(key for row in asked[kind] for key in row)
    return keys


def expand(asked: Asked) -> list[Setting]:
    """The settings of all runs: the product of the grid's keys, the zipped rows and the list, the first slowest.

    Raises:
        BadInput: if nothing varies, or two runs are the same.
    """
    factors: list[list[Setting]] = []
    for kind, content in asked.items():
        if kind == "grid":
            factors += [[{key: value} for value in values] for key, values in content.items()]
        elif kind == "zip" and content:
            factors.append([dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)])
        elif kind == "list":
            factors.append(content)
    if not factors:
        raise BadInput(f"{asked['base']}: nothing varies; give grid, zip or list")
    if math.prod(map(len, factors)) > MOST_VALUES:
        raise BadInput(f"{math.prod(map(len, factors)):,} runs; plan at most {MOST_VALUES:,} in one sweep")
    runs, seen = [], set()
    for parts in itertools.product(*factors):
        run = {key: value for part in (asked.get("set", {}), *parts) for key, value in part.items()}
        same = canonical(with_whole_numbers(run))
        if same in seen:
            raise BadInput(f"two runs would be the same: {_told(run, varied(asked))}; remove one")
        seen.add(same)
        runs.append(run)
    return runs


def canonical(setting: Setting) -> str:
    """One text for a setting, whatever the order of its keys."""
    return json.dumps(setting, sort_keys=True)


def with_whole_numbers(value: Any) -> Any:
    """A value in which 1.0 is 1: no key takes them for different things."""
    if isinstance(value, dict):
        return {key: with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def argument(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _told(setting: Setting, keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={argument(setting[key])}" for key in keys if key in setting)


def names(settings: Iterable[Setting], keys: Sequence[str], taken: Iterable[str] = (), prefix: str = "") -> list[str]:
    """A name for each setting, safe as a file name: the values of `keys`, with a hash where that is not enough.

    Args:
        settings: of the runs, all different.
        keys: those that are in the names.
        taken: names of other runs.
        prefix: with which each begins.
    """
    short, used, chosen = _short(keys), {name.casefold() for name in taken}, []
    for setting in settings:
        parts = [f"{short[key]}={_in_name(setting[key])}" for key in keys if key in setting]
        told = ",".join([prefix, *parts] if prefix else parts)
        name = re.sub(r"[^\w.+=,-]+", "-", told, flags=re.ASCII)
        if len(name) > MOST_LETTERS or name.casefold() in used:
            code = hashlib.sha256(canonical(setting).encode()).hexdigest()[:10]
            name = f"{name[: MOST_LETTERS - 11]}-{code}"
        used.add(name.casefold())
        chosen.append(name)
    return chosen


def _short(keys: Sequence[str]) -> Mapping[str, str]:
    """The last part of each key, and as many more as it takes to tell it from the others."""
    parts = {key: [part for part in key.split(".") if part != "init_args"] for key in keys}
    short = {}
    for key, own in parts.items():
        others = [other for one, other in parts.items() if one != key]
        size = next((n for n in range(1, len(own)) if all(o[-n:] != own[-n:] for o in others)), len(own))
        short[key] = ".".join(own[-size:])
    if "seed_everything" in short and "seed" not in short.values():
        short["seed_everything"] = "seed"
    return short


def _in_name(value: Any) -> str:
    text = argument(value)
    named = _CLASS.fullmatch(text)
    return named[1] if named else re.sub(r"[^\w.+-]+", "-", text.strip("[]{}\"' "), flags=re.ASCII)
