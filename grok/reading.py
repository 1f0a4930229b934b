"""Reading what a person, another program or a crash has left: refused by name and with the fix, never trusted."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import yaml

from grok.errors import BadInput

__all__ = ["LARGEST", "parse_json", "parse_yaml", "read_text", "read_yaml"]

LARGEST = 2**30
"""Bytes of the largest text file that is read: every record and every data file at paper size is a tenth of it."""

LARGEST_YAML = 2**24
MOST_VALUES = 100_000
"""Values of a YAML file with its aliases written out; a few aliases of aliases stand for billions."""


def read_text(path: Path, largest: int = LARGEST) -> str:
    """A UTF-8 file; what is larger is not held in memory.

    Raises:
        BadInput: if it is too large, or no text.
        OSError: if it cannot be read.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # a device has no end, and nobody may write into a pipe
        what = "a directory" if stat.S_ISDIR(about.st_mode) else "no regular file"
        raise BadInput(f"{path}: is {what}; give a file")
    if about.st_size > largest:
        raise BadInput(f"{path}: more than {largest:,} bytes, so not what it should be; give another file")
    content = path.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        told = f"byte {error.start} is {content[error.start]:#04x}"
        raise BadInput(f"{path}: not a text file in UTF-8 ({told}); save it as UTF-8") from None


def parse_json(text: str | bytes) -> Any:
    """JSON as Python has it.

    Raises:
        ValueError: if it is none, or nested too deep, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of plain data.

    Raises:
        BadInput: if it is none, or a key is given twice in a mapping, of which one would be lost.
        OSError: if it cannot be read.
    """
    return parse_yaml(read_text(path, LARGEST_YAML), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """As `read_yaml`.

    Args:
        text: the content.
        where: what to call it in messages.
    """
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {}, where)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise BadInput(f"{where}: not YAML of plain data: {line}{error.problem}; correct it") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{where}: not YAML: {' '.join(str(error).split())}; correct it") from None
    except RecursionError:
        raise BadInput(f"{where}: nested too deep; correct it") from None
    except ValueError as error:  # a date that there is not, a number of thousands of digits
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{where}: not YAML: {error}; put the value in quotes") from None
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], where: str) -> int:
    """Values of a node with its aliases written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        size = known[id(node)]
    else:
        known[id(node)] = MOST_VALUES  # meets itself
        if isinstance(node, yaml.MappingNode):
            _insist_on_different_keys(node, where)
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        size = known[id(node)] = 1 + sum(_size(part, known, where) for part in parts)
    if size >= MOST_VALUES:
        line = node.start_mark.line + 1
        raise BadInput(f"{where}: line {line}: more than {MOST_VALUES:,} values, aliases written out; write less")
    return size


def _insist_on_different_keys(mapping: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise BadInput(f"{where}: line {key.start_mark.line + 1}: {key.value} is given twice; keep one")
            seen.add(key.value)
