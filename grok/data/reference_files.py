"""The files of the reference repositories (Wang et al. 2024, He et al. 2026): strings here, symbol ids inside.

`train.json` and `valid.json` are lists of `{"input_text": "<h><r1><r2>", "target_text": "<h><r1><r2><t></a>"}` (one
relation in an atomic fact), `test.json` has a `type` besides, `vocab.json` lists the symbols, and the optional
`id_facts.json` and `ood_facts.json` list `[h, r, t]`. Our one addition is `test_mixed.json`, which those repositories
do not look at: test queries with one hop in and one hop out of distribution, which they have no type for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grok.errors import BadInput, Problem
from grok.reading import LARGEST, parse_json

__all__ = ["FILES", "TYPES", "Findings", "ReferenceFiles", "Rows", "read_files", "write_files"]

FILES = ("train.json", "valid.json", "test.json", "vocab.json", "id_facts.json", "ood_facts.json", "test_mixed.json")
REQUIRED = FILES[:4]
TYPES = (
    "id_atomic",
    "ood_atomic",
    "train_inferred",
    "test_inferred_iid",
    "test_inferred_ood",
    "test_inferred_io",
    "test_inferred_oi",
)
"""What `type` can be; a row's type is kept as its index here."""

END = "</a>"
SHOWN = 8  # problems; further ones are counted
_UNREADABLE = (-1, -1, -1, -1)
_TYPE_INDEX = {name: index for index, name in enumerate(TYPES)}


class Findings:
    """Problems met so far: the first few, and how many more."""

    def __init__(self) -> None:
        self.shown: list[Problem] = []
        self.count = 0

    def add(self, key: str, value: Any, fix: str) -> None:
        """Note one problem."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(Problem(key, value, fix))

    def add_rows(self, wrong: Tensor, problem: Callable[[int], tuple[str, Any, str]]) -> None:
        """Note `problem(i)` for every i where the mask `wrong` `[N]` is true."""
        rows = wrong.nonzero()[:, 0].tolist()
        for row in rows[:SHOWN]:
            self.add(*problem(row))
        self.count += len(rows[SHOWN:])

    def insist(self) -> None:
        """Raise `BadInput` if there are any."""
        if self.count:
            more = self.count - len(self.shown)
            raise BadInput(*self.shown, *([f"… and {more} more"] if more else []))


@dataclass(frozen=True)
class Rows:
    """The rows of one file.

    Args:
        symbols: `[N, 4]` symbol ids of h, r1, r2 and t; r2 is -1 in an atomic fact, all are -1 in an unreadable row.
        types: `[N]` index into `TYPES`; -1 if the file has no types.
    """

    symbols: Tensor
    types: Tensor

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def readable(self) -> Tensor:
        """Whether each row is well-formed: bool `[N]`."""
        return self.symbols[:, 0] >= 0

    @property
    def inferred(self) -> Tensor:
        """Whether each row is a composition: bool `[N]`."""
        return self.symbols[:, 2] >= 0

    def take(self, rows: Tensor) -> Rows:
        """The rows at `rows` (indices, or a mask)."""
        return Rows(self.symbols[rows], self.types[rows])

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """All rows of `parts`, in order."""
        return Rows(torch.cat([part.symbols for part in parts]), torch.cat([part.types for part in parts]))


@dataclass(frozen=True)
class ReferenceFiles:
    """All that a directory holds, in file order; `[N, 3]` facts are symbol ids of h, r and t."""

    vocabulary: tuple[str, ...]
    train: Rows
    valid: Rows
    test: Rows
    id_facts: Tensor | None
    ood_facts: Tensor | None
    mixed: Rows | None

    @property
    def end(self) -> int:
        """Symbol id of `</a>`."""
        return self.vocabulary.index(END)

    def text(self, symbols: Tensor) -> str:
        """A row or a fact, written."""
        return "".join(self.vocabulary[symbol] for symbol in symbols.tolist() if symbol >= 0)

    def by_name(self) -> list[tuple[str, Rows]]:
        """The files with rows, by file name."""
        mixed = [] if self.mixed is None else [("test_mixed.json", self.mixed)]
        return [("train.json", self.train), ("valid.json", self.valid), ("test.json", self.test), *mixed]


def read_files(directory: Path, findings: Findings) -> ReferenceFiles:
    """Read a directory; rows that cannot be read are noted in `findings` and left as -1.

    Raises:
        BadInput: if a file is missing, is not JSON, or is no list; or if the vocabulary cannot be used.
    """
    loaded = {name: _load(directory / name, findings) for name in FILES}
    findings.insist()
    content = {name: rows for name, rows in loaded.items() if rows is not None}
    vocabulary = content["vocab.json"]
    _check_vocabulary(vocabulary, findings)
    findings.insist()
    ids = {name[1:-1]: index for index, name in enumerate(vocabulary)}
    for name in ("train.json", "test.json"):
        if not content[name]:
            findings.add(name, [], "give at least one row")

    def rows(name: str) -> Rows:
        return _rows(content[name], name, ids, name.startswith("test"), findings)

    def facts(name: str) -> Tensor | None:
        return _facts(content[name], name, ids, findings) if name in content else None

    return ReferenceFiles(
        vocabulary=tuple(vocabulary),
        train=rows("train.json"),
        valid=rows("valid.json"),
        test=rows("test.json"),
        id_facts=facts("id_facts.json"),
        ood_facts=facts("ood_facts.json"),
        mixed=rows("test_mixed.json") if "test_mixed.json" in content else None,
    )


def _load(path: Path, findings: Findings) -> list[Any] | None:
    """The list in a file; None if the file is optional and absent, or cannot be used."""
    if not path.is_file():
        if path.name in REQUIRED:
            findings.add("path", str(path), f"there is no such file: give a directory with {', '.join(REQUIRED)}")
        return None
    if (size := path.stat().st_size) > LARGEST:
        findings.add(path.name, f"{size:,} bytes", f"larger than {LARGEST:,} bytes: give the file of a smaller graph")
        return None
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        findings.add(path.name, str(error), "not a JSON file: make it again, or complete the download")
        return None
    if not isinstance(content, list):
        findings.add(path.name, type(content).__name__, "the file must hold one JSON list")
        return None
    return content


def _check_vocabulary(vocabulary: list[Any], findings: Findings) -> None:
    first: dict[str, int] = {}
    for index, name in enumerate(vocabulary):
        key = f"vocab.json row {index}"
        if not (isinstance(name, str) and re.fullmatch("<[^<>]+>", name)):
            findings.add(key, name, "write a symbol as <name>")
        elif name in first:
            findings.add(key, name, f"already in row {first[name]}: name each symbol once")
        else:
            first[name] = index
    if END not in first:
        findings.add("vocab.json", f"{len(vocabulary)} symbols", f"add {END}, which ends an answer")


def _rows(content: list[Any], file: str, ids: dict[str, int], typed: bool, findings: Findings) -> Rows:
    symbols, types = array("q"), array("q")
    for number, row in enumerate(content):
        read = _symbols(row, ids)
        kind = _type(row) if typed else -1
        if read is None:
            findings.add(f"{file} row {number}", row, _fault(row, ids))
        elif kind is None:
            findings.add(f"{file} row {number}", row, f"give it a type among {', '.join(TYPES)}")
        symbols.extend(_UNREADABLE if read is None or kind is None else read)
        types.append(-1 if kind is None else kind)
    return Rows(torch.from_numpy(np.array(symbols)).view(-1, 4), torch.from_numpy(np.array(types)))


def _symbols(row: Any, ids: dict[str, int]) -> tuple[int, ...] | None:
    """h, r1, r2 (-1 if atomic) and t of a row; None if it is malformed. Called for every row, so made for speed."""
    try:
        question, target = row["input_text"], row["target_text"]
        *names, answer, _ = target[1:-1].split("><")
        if target[0] != "<" or target != f"{question}<{answer}>{END}":
            return None
        prompt = [ids[name] for name in names]
        tail = ids[answer]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    if len(prompt) == 2:
        return (*prompt, -1, tail)
    return (*prompt, tail) if len(prompt) == 3 else None


def _type(row: Any) -> int | None:
    name = row.get("type") if isinstance(row, dict) else None
    return _TYPE_INDEX.get(name) if isinstance(name, str) else None


def _fault(row: Any, ids: dict[str, int]) -> str:
    """What is wrong with a malformed row, and how to mend it."""
    if not isinstance(row, dict):
        return "a row is an object with input_text and target_text"
    texts = [row.get(key) for key in ("input_text", "target_text")]
    if not all(isinstance(text, str) for text in texts):
        return "input_text and target_text must both be there, as strings"
    question, target = (str(text) for text in texts)
    for text in (question, target):
        names = re.findall("<([^<>]*)>", text)
        if "".join(f"<{name}>" for name in names) != text:
            return "write symbols as <name>, with nothing between them"
        unknown = [name for name in names if name not in ids]
        if unknown:
            return f"<{unknown[0]}> is not in vocab.json: correct the row, or add the symbol"
    if not target.startswith(question):
        return "target_text must begin with input_text"
    if not target.endswith(END):
        return f"target_text must end with {END}"
    if question.count("<") not in (2, 3):
        return "input_text must be <h><r> or <h><r1><r2>"
    return f"target_text must add one answer and {END} to input_text"


def _facts(content: list[Any], file: str, ids: dict[str, int], findings: Findings) -> Tensor:
    symbols = array("q")
    for number, fact in enumerate(content):
        good = isinstance(fact, list) and len(fact) == 3 and all(isinstance(name, str) for name in fact)
        found = [ids.get(name[1:-1], -1) if name[:1] + name[-1:] == "<>" else -1 for name in fact] if good else [-1]
        if min(found) < 0:
            findings.add(f"{file} row {number}", fact, "a fact is a list [h, r, t] of symbols in vocab.json")
        symbols.extend(_UNREADABLE[:3] if min(found) < 0 else found)
    return torch.from_numpy(np.array(symbols)).view(-1, 3)


def write_files(files: ReferenceFiles, directory: Path) -> None:
    """Write a directory, whole or not at all.

    Raises:
        BadInput: if `directory` is there and not empty.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise BadInput(
            Problem("directory", str(directory), "give a directory that is new or empty; nothing was written")
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        for name, content in _contents(files).items():
            (partial / name).write_text(json.dumps(content), encoding="utf-8")
        partial.replace(directory)  # takes the place of an empty directory, never of a full one
    except BaseException:
        shutil.rmtree(partial)
        raise


def _contents(files: ReferenceFiles) -> dict[str, list[Any]]:
    names = files.vocabulary
    contents: dict[str, list[Any]] = {file: _texts(rows, names) for file, rows in files.by_name()}
    contents["vocab.json"] = list(names)
    for file, facts in (("id_facts.json", files.id_facts), ("ood_facts.json", files.ood_facts)):
        if facts is not None:
            contents[file] = [[names[symbol] for symbol in fact] for fact in facts.tolist()]
    return contents


def _texts(rows: Rows, names: tuple[str, ...]) -> list[dict[str, str]]:
    texts = []
    for (*prompt, tail), kind in zip(rows.symbols.tolist(), rows.types.tolist(), strict=True):
        question = "".join([names[symbol] for symbol in prompt if symbol >= 0])
        row = {"input_text": question, "target_text": f"{question}{names[tail]}{END}"}
        texts.append(row if kind < 0 else {**row, "type": TYPES[kind]})
    return texts
