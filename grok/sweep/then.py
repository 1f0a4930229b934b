"""The further parts of a sweep, whose runs start from runs of the first part, or are their controls from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grok.errors import BadInput
from grok.sweep.asked import Asked, Setting, same_key
from grok.sweep.expansion import expand, varied
from grok.sweep.line import BASE, Line, value_of

__all__ = ["further", "other_bases", "varied_in_all"]


def other_bases(asked: Asked, directory: Path) -> dict[str, Path]:
    """Name of the copy in the sweep's directory, and file, of every further base configuration."""
    return {f"{one['name']}.yaml": directory / one["base"] for one in asked.get("then", []) if "base" in one}


def varied_in_all(asked: Asked) -> list[str]:
    """Keys that the runs of any part differ in, each once, in the order asked."""
    return list(dict.fromkeys(key for part in (asked, *asked.get("then", [])) for key in varied(part)))


def further(
    asked: Asked, block: Asked, first: Sequence[Line], options: Mapping[str, Any]
) -> tuple[list[Line], list[Setting], list[str]]:
    """The runs of a further part.

    Args:
        asked: the sweep.
        block: one of its further parts.
        first: runs of the first part, with their numbers.
        options: base configuration of the first part.

    Returns:
        Lines yet without number and name; what tells each from the others; and the keys that belong in the names.

    Raises:
        BadInput: if no run of the first part is meant, or a key cannot be inherited.
    """
    sources = [line for line in first if _is_meant(line, block.get("from", {}), options)]
    if not sources:
        raise BadInput(f"then ({block['name']}): from={block.get('from')}: no run of the first part is like that")
    keys, starts = _inherited_keys(asked, block), block.get("start", True)
    copy = f"{block['name']}.yaml" if "base" in block else BASE
    lines: dict[str, Line] = {}
    told: list[Setting] = []
    for source in sources:
        taken = _inherited(source, block, keys, options, varied(asked))
        for own in expand(block | {"base": block["name"]}) if varied(block) else [block.get("set", {})]:
            after = source.index if starts else None
            line = Line(-1, "", "", {**taken, **own}, copy, after, block["name"])
            if line.key not in lines:  # sources that differ in nothing that a control takes over have one control
                lines[line.key] = line
                told.append({**source.set, **own, "start.run": source.run_dir} if starts else line.set)
    first_keys = varied(asked) if starts else [key for key in keys if _is_in(key, varied(asked))]
    return list(lines.values()), told, list(dict.fromkeys([*first_keys, *varied(block)]))


def _is_in(key: str, keys: Sequence[str]) -> bool:
    return same_key(key) in map(same_key, keys)


def _is_meant(line: Line, wanted: Mapping[str, Sequence[Any]], options: Mapping[str, Any]) -> bool:
    return all(value_of(line.set, options, key) in values for key, values in wanted.items())


def _inherited_keys(asked: Asked, block: Asked) -> list[str]:
    own = [*block.get("set", {}), *varied(block)]
    usual = [key for key in varied(asked) if not _is_in(key, own)]
    return list(block.get("inherit", usual))


def _inherited(
    source: Line, block: Asked, keys: Sequence[str], options: Mapping[str, Any], may_lack: Sequence[str]
) -> Setting:
    """Values of a run of the first part; a run of a `list` may lack one that others have."""
    found = {key: value_of(source.set, options, key) for key in keys}
    missing = [key for key, value in found.items() if value is None and not _is_in(key, may_lack)]
    if missing:
        told = f"inherit={missing[0]!r}: the first part neither varies nor sets it, nor does its base"
        raise BadInput(f"then ({block['name']}): {told}")
    return {key: value for key, value in found.items() if value is not None or _is_in(key, list(source.set))}
