"""Reading a sweep file: what is to vary, with every shorthand written out and every key looked at."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grok.errors import BadInput
from grok.reading import parse_json, parse_yaml, read_text, read_yaml

__all__ = ["MOST_VALUES", "Asked", "Setting", "plain", "read", "read_file", "read_options", "same_key"]

Setting = dict[str, Any]
"""Keys of `grok fit` and their values, for one run."""

Asked = dict[str, Any]
"""A sweep file with all shorthands written out: base, set, grid, zip, list, figure, then."""

MOST_VALUES = 100_000
"""Values of one key, and runs of a sweep."""

_KINDS = ("base", "set", "grid", "zip", "list", "figure", "then")
_OF_A_PART = ("name", "base", "from", "inherit", "start", "set", "grid", "zip", "list")
_OF_THE_SWEEP = ("config", "run_dir", "experiment", "fresh", "ckpt_path")
_KEY = re.compile(r"[A-Za-z_][\w.]*")
_NAME = re.compile(r"[A-Za-z][\w-]{0,39}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", re.IGNORECASE)
_SPAN = re.compile(r"(-?\d+)\.\.(-?\d+)")


def read(asked: Any, where: str, directory: Path) -> Asked:
    """Check what was asked and write out its shorthands.

    Args:
        asked: the content of a sweep file.
        where: what to call it in messages.
        directory: to which its file names are relative.

    Raises:
        BadInput: naming the key and the fix.
    """
    if not isinstance(asked, dict) or "base" not in asked:
        raise BadInput(f"{where}: no sweep; give at least `base: CONFIG.yaml` and one of grid, zip, list")
    if wrong := [key for key in asked if key not in _KINDS]:
        raise BadInput(f"{where}: {wrong[0]}: no such key; use {', '.join(_KINDS)}")
    read: Asked = {"base": str(asked["base"])}
    for kind in (kind for kind in asked if kind != "base"):
        content = asked[kind]
        if kind == "list":
            read[kind] = _rows(content, where, directory)
        elif kind == "then":
            read[kind] = _parts(content, where, directory)
        elif kind == "figure" and isinstance(content, list) and all(isinstance(one, dict) for one in content):
            read[kind] = plain(content, f"{where}: figure")
        elif not isinstance(content, dict):
            raise BadInput(f"{where}: {kind}={content!r}: use a mapping of keys")
        elif kind in ("grid", "zip"):
            read[kind] = {key: _values(values, f"{where}: {kind}.{key}") for key, values in content.items()}
        else:
            read[kind] = {key: plain(value, f"{where}: {kind}.{key}") for key, value in content.items()}
    _insist_on_keys(read, where)
    return read


def _parts(parts: Any, where: str, directory: Path) -> list[Asked]:
    """The further parts of a sweep, see `grok.sweep.then`."""
    parts = parts if isinstance(parts, list) else [parts]
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise BadInput(f"{where}: then: use a mapping of {', '.join(_OF_A_PART)}, or a list of such")
    found = [_part(part, where, directory) for part in parts]
    names = [part["name"].casefold() for part in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{where}: then: two parts are called {twice[0]}; give each a `name`")
    return found


def _part(part: Asked, where: str, directory: Path) -> Asked:
    name = part.get("name", "then")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.casefold() in ("base", "sweep", "first"):
        raise BadInput(f"{where}: then: name={name!r}: use a word of letters, digits, - and _, not base, sweep, first")
    where = f"{where}: then ({name})"
    if wrong := [key for key in part if key not in _OF_A_PART]:
        raise BadInput(f"{where}: {wrong[0]}: no such key; use {', '.join(_OF_A_PART)}")
    own = {kind: part[kind] for kind in ("set", "grid", "zip", "list") if kind in part}
    found = {"name": name, **read({"base": part.get("base"), **own}, where, directory)}
    if "base" not in part:
        del found["base"]
    if "start" in part:
        found["start"] = part["start"]
    if "from" in part:
        found["from"] = _chosen(part["from"], where)
    if "inherit" in part:
        found["inherit"] = part["inherit"]
    _insist_on_part(found, where)
    return found


def _chosen(chosen: Any, where: str) -> dict[str, list[Any]]:
    if not isinstance(chosen, dict):
        raise BadInput(f"{where}: from={chosen!r}: use a mapping of keys to a value or a list of values")
    values = {key: value if isinstance(value, list) else [value] for key, value in chosen.items()}
    return {str(key): plain(value, f"{where}: from.{key}") for key, value in values.items()}


def _insist_on_part(part: Asked, where: str) -> None:
    starts, inherited = part.get("start", True), part.get("inherit", [])
    if not isinstance(starts, bool):
        raise BadInput(f"{where}: start={starts!r}: use true, or false for controls that start from random weights")
    if not isinstance(inherited, list) or not all(isinstance(key, str) and _KEY.fullmatch(key) for key in inherited):
        raise BadInput(f"{where}: inherit={inherited!r}: use a list of keys")
    own = {same_key(key): kind for kind in ("set", "grid", "zip", "list") for key in _keys(part.get(kind, {}))}
    if twice := [key for key in inherited if same_key(key) in own]:
        raise BadInput(f"{where}: {twice[0]} is in inherit and in {own[same_key(twice[0])]}; keep one")
    if starts and "start.run" in own:
        raise BadInput(f"{where}: start.run: the sweep itself chooses it; leave it out")
    if not starts and any(key.startswith("start.") for key in (*own, *inherited)):
        raise BadInput(f"{where}: start: `start: false` starts from random weights; leave its keys out")


def _keys(content: Any) -> list[str]:
    """Keys of a mapping, or of any row of a list, each once, sorted."""
    return sorted({str(key) for row in (content if isinstance(content, list) else [content]) for key in row})


def plain(value: Any, where: str = "") -> Any:
    """A value as JSON has it; YAML reads `1e-3` as text, which is meant as a number.

    Raises:
        BadInput: if it is something else, such as a date.
    """
    if isinstance(value, str):
        return float(value) if _FLOAT.fullmatch(value) else value
    if isinstance(value, list):
        return [plain(item, where) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item, where) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise BadInput(f"{where}={value}: a {type(value).__name__} is no value of a key; put it in quotes")


def same_key(key: str) -> str:
    """The one spelling of a key: `init_args` may stand in it or not."""
    return key.replace(".init_args", "")


def _values(values: Any, where: str) -> list[Any]:
    """The values of a key: a list, `{range: [0, 10]}` as Python counts, or `0..9`, both ends included."""
    span = _SPAN.fullmatch(values) if isinstance(values, str) else None
    if span:
        values = _range(where, int(span[1]), int(span[2]) + 1)
    elif isinstance(values, dict) and list(values) == ["range"]:
        bounds = values["range"] if isinstance(values["range"], list) else [values["range"]]
        if not (1 <= len(bounds) <= 3 and all(type(bound) is int for bound in bounds) and 0 not in bounds[2:]):
            raise BadInput(f"{where}.range={values['range']!r}: use [first, one past the last]")
        values = _range(where, *bounds)
    if not isinstance(values, list) or not values:
        raise BadInput(f"{where}={values!r}: use a list of values, such as [0, 1, 2]")
    return [plain(value, where) for value in values]


def _range(where: str, *bounds: int) -> list[int]:
    values = range(*bounds)
    if values[MOST_VALUES:]:
        raise BadInput(f"{where}: a range of more than {MOST_VALUES:,} values; use at most so many")
    return list(values)


def _rows(rows: Any, where: str, directory: Path) -> list[Setting]:
    if isinstance(rows, str):
        path = directory / rows
        where, rows = str(path), _read_rows(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise BadInput(f"{where}: list: use a list of mappings of keys to values, one for each run")
    return [{key: plain(value, f"{where}: {key}") for key, value in row.items()} for row in rows]


def _read_rows(path: Path) -> Any:
    if path.suffix not in (".csv", ".jsonl", ".yaml", ".yml"):
        raise BadInput(f"{path}: use a .csv, .jsonl or .yaml file")
    try:
        if path.suffix in (".yaml", ".yml"):
            return read_yaml(path)
        text = read_text(path)
        if path.suffix == ".jsonl":
            return [parse_json(line) for line in text.splitlines() if line.strip()]
        rows = list(csv.DictReader(text.splitlines(), strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise BadInput(f"{path}: rows of different lengths; one value for each name of the first line")
        return [{key: parse_yaml(value, f"{path}: {key}") for key, value in row.items() if value != ""} for row in rows]
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: not {path.suffix[1:].upper()}: {str(error).splitlines()[0]}") from None


def _insist_on_keys(asked: Asked, where: str) -> None:
    places: dict[str, str] = {}
    for kind in ("set", "grid", "zip", "list"):
        for key in _keys(asked.get(kind, {})):
            if not _KEY.fullmatch(key):
                raise BadInput(f"{where}: {kind}.{key}: not a key of `grok fit`")
            if key in _OF_THE_SWEEP:
                raise BadInput(f"{where}: {kind}.{key}: the sweep itself chooses it; leave it out")
            same = same_key(key)
            if same in places:
                raise BadInput(f"{where}: {key} is in {places[same]} and in {kind}; keep one")
            places[same] = kind
    lengths = {key: len(values) for key, values in asked.get("zip", {}).items()}
    if len(set(lengths.values())) > 1:
        raise BadInput(f"{where}: zip: lists of different lengths: {', '.join(f'{k} {n}' for k, n in lengths.items())}")


def read_file(path: Path) -> Asked:
    """Read a sweep file.

    Raises:
        BadInput: if it is not there or is none.
    """
    try:
        asked = read_yaml(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give a sweep file") from None
    return read(asked, str(path), path.parent)


def read_options(given: dict[str, Any]) -> Asked:
    """Read what the command line says: `set`, `grid` and `zip` are lists of `KEY=…`, the rest as in a file.

    Raises:
        BadInput: naming the option and the fix.
    """
    for name in ("set", "grid", "zip"):
        if name in given:
            given = {**given, name: {key: _value(text, name) for key, text in _pairs(given[name], name)}}
    return read(given, "grok sweep plan", Path())


def _pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = [(key, value) for key, _, value in (text.partition("=") for text in texts)]
    if wrong := [key for key, value in pairs if not key or not value]:
        raise BadInput(f"--{option} {wrong[0]}: use --{option} KEY={'VALUE' if option == 'set' else 'A,B,C'}")
    if len({key for key, _ in pairs}) < len(pairs):
        raise BadInput(f"--{option}: a key is given twice; keep one")
    return pairs


def _value(text: str, option: str) -> Any:
    if option != "set" and ".." in text:
        return text
    try:
        return parse_yaml(text if option == "set" else f"[{text}]", f"--{option}")
    except BadInput:
        raise BadInput(f"--{option} …={text}: not readable; quote it as in YAML") from None
