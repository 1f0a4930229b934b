"""Facts from files: the JSON of 2WikiMultiHopQA, and a plain CSV of head, relation, tail.

**2WikiMultiHopQA** (Ho et al. 2020, arXiv 2011.01060): `train.json` or `dev.json` as downloaded, a list of objects with
`_id`, `type` (comparison, compositional, inference, bridge_comparison), `question`, `context` `[[title, [sentence]]]`,
`supporting_facts` `[[title, sentence number]]`, `evidences` `[[subject, relation, object]]` and `answer`. Only
`evidences` is relied on, and `evidences_id` where it is there (the release of December 2020): the same triples with
Wikidata ids for subject and object, or an empty list. `test.json` has no evidences.
An id is what tells entities apart: two names of one id are one entity, called by the first; two ids of one name are two
entities, `name` and `name (Q42)`. A name without an id means the first entity of that name.

**CSV**: UTF-8, separated by commas, with `head`, `relation` and `tail` in the first line, in any order; other columns
are ignored, and so are empty lines.

In both, runs of white space in a name are one space. A fact that is given again is kept once. Of several tails for one
(head, relation), which real facts have (children, spouses), the first in the file is kept; how many were dropped is
counted in `Knowledge.report` and warned of.
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch

from grok.data.fact_graph import Knowledge
from grok.errors import BadInput
from grok.reading import parse_json, read_text

__all__ = ["Format", "read_facts", "selected"]

Format = Literal["2wiki", "csv"]

_COLUMNS = ("head", "relation", "tail")
_SHOWN = 3


class _Collector:
    """Facts in the order of the file, each (head, relation) once."""

    def __init__(self) -> None:
        self.entities: dict[str, int] = {}
        self.relations: dict[str, int] = {}
        self.tails: dict[tuple[int, int], int] = {}
        self.names: list[str] = []
        self.again = 0
        self.dropped: dict[tuple[int, int, int], None] = {}

    def entity(self, key: str, name: str) -> int:
        """Number of the entity `key`, which is called `name` if it is new."""
        if key not in self.entities:
            self.entities[key] = len(self.entities)
            self.names.append(name)
        return self.entities[key]

    def add(self, head: int, relation: str, tail: int) -> None:
        """Add a fact, unless there is one of this head and relation."""
        key = head, self.relations.setdefault(relation, len(self.relations))
        if key not in self.tails:
            self.tails[key] = tail
        elif self.tails[key] == tail:
            self.again += 1
        else:
            self.dropped[(*key, tail)] = None

    def knowledge(self, where: str, digest: str) -> Knowledge:
        """What was collected.

        Raises:
            BadInput: if nothing was.
        """
        if not self.tails:
            fix = "give a CSV with more than one line, or train.json or dev.json of 2WikiMultiHopQA, not test.json"
            raise BadInput(f"{where}: no facts; {fix}")
        relations = tuple(self.relations)
        report = f"{len(self.tails):,} facts"
        report += f", {self.again:,} given again" if self.again else ""
        if self.dropped:
            shown = [
                f"{self.names[head]}, {relations[relation]}: {self.names[self.tails[head, relation]]} kept, "
                f"{self.names[tail]} dropped"
                for head, relation, tail in list(self.dropped)[:_SHOWN]
            ]
            more = [f"and {len(self.dropped) - _SHOWN:,} more"] if len(self.dropped) > _SHOWN else []
            told = f"{len(self.dropped):,} further tails of a (head, relation) dropped ({'; '.join([*shown, *more])})"
            warnings.warn(f"{where}: {told}", stacklevel=4)
            report += f", {told}"
        columns = torch.tensor([(*key, tail) for key, tail in self.tails.items()])
        return Knowledge(_distinct(self.entities, self.names), relations, columns, digest, report)


def read_facts(path: Path, form: Format) -> Knowledge:
    """Read a file of facts.

    Raises:
        BadInput: naming the file, the line or entry, what is wrong and the fix.
        OSError: if it cannot be read.
    """
    text = read_text(path).removeprefix("\ufeff")
    collector = _Collector()
    for head, relation, tail in (_two_wiki if form == "2wiki" else _csv)(text, str(path), collector):
        collector.add(head, relation, tail)
    return collector.knowledge(str(path), hashlib.sha256(text.encode()).hexdigest())


def selected(knowledge: Knowledge, keep: list[str] | None, leave_out: list[str]) -> Knowledge:
    """The facts of the relations `keep` (None: all) that are not in `leave_out`; entities and relations stay.

    Raises:
        BadInput: if a relation is not there, or no fact is left.
    """
    for key, names in (("keep", keep or []), ("leave_out", leave_out)):
        if unknown := [name for name in names if name not in knowledge.relations]:
            raise BadInput(f"{key}={unknown[0]!r}: no such relation; use some of {', '.join(knowledge.relations)}")
    wanted = [(keep is None or name in keep) and name not in leave_out for name in knowledge.relations]
    columns = knowledge.columns[torch.tensor(wanted)[knowledge.columns[:, 1]]]
    if not len(columns):
        raise BadInput(f"leave_out={leave_out}: no fact is left; leave out fewer relations")
    return Knowledge(knowledge.entities, knowledge.relations, columns, knowledge.digest, knowledge.report)


def _name(value: Any, where: str, what: str) -> str:
    name = " ".join(value.split()) if isinstance(value, str) else ""
    if not name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise BadInput(f"{where}: {what}={value!r:.80}: give a name in Unicode")
    return name


def _csv(text: str, path: str, collector: _Collector) -> Iterator[tuple[int, str, int]]:
    rows = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().casefold() for name in next(rows, [])]
        if missing := [name for name in _COLUMNS if header.count(name) != 1]:
            raise BadInput(f"{path}: line 1: no column {missing[0]}, or two; begin with the line {','.join(_COLUMNS)}")
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                fix = "put names with commas in quotes"
                raise BadInput(f"{where}: {len(row)} columns for {len(header)} in the first line; {fix}")
            head, relation, tail = (_name(row[header.index(name)], where, name) for name in _COLUMNS)
            yield collector.entity(head, head), relation, collector.entity(tail, tail)
    except csv.Error as error:
        raise BadInput(f"{path}: line {rows.line_num}: {error}; quote names as in CSV, a quote in one twice") from None


def _two_wiki(text: str, path: str, collector: _Collector) -> Iterator[tuple[int, str, int]]:
    try:
        entries = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); complete the download, or use format=csv") from None
    if not isinstance(entries, list):
        raise BadInput(f"{path}: a JSON {type(entries).__name__}; give the list of questions as downloaded")
    evidences = [one for number, entry in enumerate(entries) for one in _evidences(entry, f"{path}: entry {number}")]
    of_name: dict[str, str] = {}  # the entity that a name means where no id is given
    for names, ids in evidences:
        for name, of_id in zip(names[::2], ids, strict=True):
            if of_id:
                of_name.setdefault(name, of_id)
    for names, ids in evidences:
        keys = [of_id or of_name.get(name, f"\0{name}") for name, of_id in zip(names[::2], ids, strict=True)]
        head, tail = (collector.entity(key, name) for key, name in zip(keys, names[::2], strict=True))
        yield head, names[1], tail


def _evidences(entry: Any, where: str) -> Iterator[tuple[list[str], list[str]]]:
    """Names of subject, relation and object, and ids of subject and object (empty: none), of each evidence."""
    triples = entry.get("evidences") if isinstance(entry, Mapping) else None
    if not isinstance(triples, list):
        raise BadInput(f"{where}: no list of evidences; 2wiki: give train.json or dev.json as downloaded")
    told = entry.get("evidences_id") or []
    if not isinstance(told, list) or len(told) not in (0, len(triples)):
        raise BadInput(f"{where}: evidences_id is not a list as long as evidences; leave it out, or complete it")
    for place, triple in enumerate(triples):
        here = f"{where}, evidence {place}"
        if not isinstance(triple, list) or len(triple) != 3:
            raise BadInput(f"{here}: {triple!r:.80}: give [subject, relation, object]")
        names = [_name(name, here, what) for name, what in zip(triple, ("subject", "relation", "object"), strict=True)]
        ids = told[place] if told else ["", "", ""]
        if not isinstance(ids, list) or len(ids) != 3 or not all(isinstance(one, str | None) for one in ids):
            raise BadInput(f"{here}: id {ids!r:.80}: give [subject id, relation, object id]")
        yield names, [ids[0] or "", ids[2] or ""]


def _distinct(keys: Mapping[str, int], names: list[str]) -> tuple[str, ...]:
    """Names by which entities can be told apart: of several with one name, all but the first carry their key."""
    taken: set[str] = set()
    found = []
    for key, name in zip(keys, names, strict=True):
        while name in taken:
            name += f" ({key})"
        taken.add(name)
        found.append(name)
    return tuple(found)
