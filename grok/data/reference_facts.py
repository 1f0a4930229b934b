"""The facts behind a reference directory, recovered from its rows, and every contradiction between them.

Shape legend: N query, F fact. Symbol id = index in `vocab.json`. -1 stands for a hop that a query does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grok.data.knowledge_graph import Hops
from grok.data.reference_files import TYPES, Findings, ReferenceFiles, Rows

__all__ = ["HOPS", "FactTable", "recover_facts"]

HOPS = {
    "id_atomic": (0, -1),
    "ood_atomic": (1, -1),
    "train_inferred": (0, 0),
    "train_inferred_io": (0, 1),
    "train_inferred_oi": (1, 0),
    "train_inferred_oo": (1, 1),
    "test_inferred_iid": (0, 0),
    "test_inferred_ood": (1, 1),
    "test_inferred_io": (0, 1),
    "test_inferred_oi": (1, 0),
}
"""Whether the hops of a query of each type are out of distribution (1) or in (0); -1 for no hop."""


@dataclass(frozen=True)
class FactTable:
    """Atomic facts in the order of (head, relation), which is that of a `KnowledgeGraph` too.

    Args:
        keys: `[F]` ascending, head · symbols + relation.
        tails: `[F]` symbol ids.
        ood: `[F]` bool.
        symbols: size of the vocabulary.
    """

    keys: Tensor
    tails: Tensor
    ood: Tensor
    symbols: int

    @property
    def entities(self) -> Tensor:
        """Symbol ids of all entities, ascending."""
        entities: Tensor = torch.unique(torch.cat([self.keys // self.symbols, self.tails]))
        return entities

    def find(self, head: Tensor, relation: Tensor) -> Tensor:
        """Fact row of each (`head`, `relation`), -1 where there is no such fact."""
        key = head * self.symbols + relation
        row = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return torch.where((self.keys[row] == key) & (head >= 0) & (relation >= 0), row, -1)

    def tail(self, fact: Tensor) -> Tensor:
        """Tail of each fact; -1 stays -1."""
        return torch.where(fact >= 0, self.tails[fact.clamp(min=0)], -1)

    def hops(self, symbols: Tensor) -> Hops:
        """The facts that the queries `symbols` `[N, 4]` go through; -1 for one that is unknown or does not exist."""
        first = self.find(symbols[:, 0], symbols[:, 1])
        return Hops(first, self.find(self.tail(first), symbols[:, 2]))

    def is_ood(self, hops: Hops) -> Tensor:
        """`[N, 2]` 1 where a hop's fact is out of distribution, else 0; -1 for no hop."""
        facts = torch.stack(hops, 1)
        return torch.where(facts >= 0, self.ood[facts.clamp(min=0)].long(), -1)


def _sources(files: ReferenceFiles) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Where atomic facts are written: file, row numbers `[M]` and facts `[M, 3]`."""
    for name, listed in (("id_facts.json", files.id_facts), ("ood_facts.json", files.ood_facts)):
        if listed is not None:
            rows = (listed[:, 0] >= 0).nonzero()[:, 0]
            yield name, rows, listed[rows]
    for name, table in files.by_name():
        rows = (table.readable & ~table.inferred).nonzero()[:, 0]
        yield name, rows, table.symbols[rows][:, [0, 1, 3]]


def _fact_table(files: ReferenceFiles, findings: Findings) -> FactTable:
    """All facts that are written anywhere; contradictions between them are noted.

    Raises:
        BadInput: if there is no atomic fact at all.
    """
    names, rows, facts = zip(*_sources(files), strict=True)
    origin = torch.cat([torch.full_like(row, index) for index, row in enumerate(rows)])
    row, fact = torch.cat(rows), torch.cat(facts)
    if not len(fact):
        findings.add("train.json", "no atomic fact", "give the facts as rows <h><r>, or in id_facts.json")
        findings.insist()
    keys, order = (fact[:, 0] * len(files.vocabulary) + fact[:, 1]).sort(stable=True)
    tails = fact[order, 2]

    def place(i: Tensor | int) -> str:
        return f"{names[int(origin[i])]} row {int(row[i])}"

    # Every row is compared with the first one of its head and relation, which stands for the fact from here on.
    new = torch.ones_like(keys, dtype=torch.bool)
    new[1:] = keys[1:] != keys[:-1]
    first = new.nonzero()[:, 0][new.cumsum(0) - 1]

    def contradiction(i: int) -> tuple[str, str, str]:
        earlier = f"{place(order[first[i]])} gives {files.vocabulary[int(tails[first[i]])]}"
        return place(order[i]), files.text(fact[order[i]]), f"{earlier}: a head and relation have one tail"

    findings.add_rows(tails != tails[first], contradiction)

    def mixed_up(i: int) -> tuple[str, str, str]:
        return place(i), files.text(fact[i]), "an entity stands where a relation belongs, or the reverse"

    findings.add_rows(_in_another_role(fact), mixed_up)
    table = FactTable(keys[new], tails[new], torch.zeros(int(new.sum()), dtype=torch.bool), len(files.vocabulary))
    return replace(table, ood=_ood(files, table, findings))


def _in_another_role(fact: Tensor) -> Tensor:
    """Which of the facts `[M, 3]` use an entity as a relation, or a relation as an entity, against most others."""
    entities, relations = fact[:, [0, 2]], fact[:, 1]
    size = int(fact.max()) + 1
    as_entity, as_relation = entities.flatten().bincount(minlength=size), relations.bincount(minlength=size)
    wrong_entity, wrong_relation = as_relation >= as_entity, as_entity >= as_relation
    return wrong_entity[entities].any(1) | wrong_relation[relations]


def _ood(files: ReferenceFiles, table: FactTable, findings: Findings) -> Tensor:
    """Which facts are out of distribution: those of `ood_facts.json`, or not of `id_facts.json`, or by type of test."""
    ood = torch.zeros_like(table.ood)
    if files.ood_facts is not None:
        listed = table.find(files.ood_facts[:, 0], files.ood_facts[:, 1])
        ood[listed[listed >= 0]] = True
        if files.id_facts is not None:
            known = files.id_facts
            fact = table.find(known[:, 0], known[:, 1])
            fix = "this fact is in ood_facts.json too: leave it in one of them"
            findings.add_rows(
                (fact >= 0) & ood[fact.clamp(min=0)], lambda i: (f"id_facts.json row {i}", files.text(known[i]), fix)
            )
        return ood
    if files.id_facts is not None:
        listed = table.find(files.id_facts[:, 0], files.id_facts[:, 1])
        ood[:] = True
        ood[listed[listed >= 0]] = False
        return ood
    for _, rows in files.by_name():
        facts = torch.stack(table.hops(rows.symbols), 1)
        ood[facts[(_expected(rows) == 1) & (facts >= 0)]] = True
    return ood


def _expected(rows: Rows) -> Tensor:
    """`[N, 2]` what the type of each row says of its hops, as in `HOPS`; -2 where there is no type."""
    return torch.tensor([*(HOPS[name] for name in TYPES), (-2, -2)])[rows.types]


def _check_held_out(file: str, rows: Rows, files: ReferenceFiles, findings: Findings) -> None:
    """Note the held-out compositions of a file that are in training."""

    def key(of: Rows) -> Tensor:
        head, relation1, relation2, _ = of.symbols.unbind(1)
        return (head * len(files.vocabulary) + relation1) * len(files.vocabulary) + relation2

    held_out = rows.inferred & (rows.types != TYPES.index("train_inferred"))
    trained = torch.isin(key(rows), key(files.train)[files.train.inferred])
    fix = "this held-out query is in train.json too: leave it in one of them"
    findings.add_rows(held_out & trained, lambda i: (f"{file} row {i}", files.text(rows.symbols[i]), fix))


def _check_queries(file: str, rows: Rows, files: ReferenceFiles, table: FactTable, findings: Findings) -> None:
    """Note the compositions that do not follow from the facts, and the types that do not fit the facts."""
    hops = table.hops(rows.symbols)
    unknown = rows.inferred & ((hops.first < 0) | (hops.second < 0))
    answer = table.tail(hops.second)
    wrong = rows.inferred & ~unknown & (answer != rows.symbols[:, 3])
    # The reference files call all training compositions train_inferred, those injected by augmentation included.
    loose = rows.inferred & (rows.types == TYPES.index("train_inferred"))
    misnamed = (rows.types >= 0) & ~unknown & ~loose & (table.is_ood(hops) != _expected(rows)).any(1)

    def note(mask: Tensor, fix: Callable[[int], str]) -> None:
        findings.add_rows(mask, lambda i: (f"{file} row {i}", files.text(rows.symbols[i]), fix(i)))

    note(unknown, lambda _: "a hop has no atomic fact: add it to id_facts.json or ood_facts.json")
    note(wrong, lambda i: f"the facts lead to {files.vocabulary[int(answer[i])]}: correct the row or the facts")
    note(
        misnamed,
        lambda i: f"type {TYPES[int(rows.types[i])]} does not fit the facts: see ood_facts.json, or ood_atomic",
    )


def recover_facts(files: ReferenceFiles, findings: Findings) -> FactTable:
    """All atomic facts of a directory, and whether each is out of distribution.

    Without the optional lists, the facts of `ood_atomic` rows and the hops that a test type calls OOD are OOD.

    Args:
        files: the content of the directory.
        findings: problems of single rows; contradictions are added.

    Raises:
        BadInput: with all of `findings`.
    """
    rows_are_readable = not findings.count
    table = _fact_table(files, findings)
    for file, rows in files.by_name()[1:]:
        _check_held_out(file, rows, files, findings)
    if rows_are_readable:  # else a fact that could not be read would be missed again at each use
        for file, rows in files.by_name():
            _check_queries(file, rows, files, table, findings)
    findings.insist()
    return table
