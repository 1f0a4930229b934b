"""The reference repositories' own data as a regime, and our data as theirs (Wang et al. 2024, He et al. 2026)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from grok.data.baselines import two_hop_baselines
from grok.data.composition import TwoHopComposition, token_name, two_hop_questions, used_in_compositions
from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.encoding import Encoding, NextToken
from grok.data.facts import AtomicFacts
from grok.data.knowledge_graph import Hops
from grok.data.reference_facts import HOPS, FactTable, recover_facts
from grok.data.reference_files import REQUIRED, TYPES, Findings, ReferenceFiles, Rows, read_files, write_files
from grok.data.split import Split
from grok.data.stream import TableStream
from grok.errors import BadInput, Problem, insist
from grok.task import Task

__all__ = ["ReferenceJSON", "write_reference_json"]


class ReferenceJSON(RegimeDataModule):
    """A directory in the format of the reference repositories; see `grok.data.reference_files`.

    The training table is `train.json` in file order. The evaluation splits are the types of `test.json`, except that
    those repositories count compositions with an OOD hop, injected by augmentation, as `train_inferred`: these become
    `train_inferred_io` (second hop OOD), `train_inferred_oi` (first hop OOD) and `train_inferred_oo` (both). Facts are
    numbered in the order of (head, relation).

    Args:
        path: the directory, with `train.json`, `valid.json`, `test.json`, `vocab.json`, and perhaps `id_facts.json` and
            `ood_facts.json`.
        encoding: how queries become model inputs; None is `NextToken()`.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    memorised_split = "train_inferred"
    held_out_splits = TwoHopComposition.held_out_splits
    remedy = "add rows of this type to test.json"

    def __init__(
        self,
        path: str | Path,
        encoding: Encoding | None = None,
        batch: int = 512,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        insist(self.check(path=path, batch=batch, evaluation_batch=evaluation_batch))
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.path = Path(path)
        self.encoding: Encoding = encoding or NextToken()
        self._read: tuple[ReferenceFiles, FactTable] | None = None

    @staticmethod
    def check(path: str | Path | None = None, batch: int = 512, evaluation_batch: int = 4096) -> list[Problem]:
        """All problems with the arguments of the constructor; the content of the files is not read yet."""
        problems = RegimeDataModule.check_common(batch=batch, evaluation_batch=evaluation_batch)
        if path is not None:
            missing = [name for name in REQUIRED if not (Path(path) / name).is_file()]
            if missing:
                problems.append(Problem("path", str(path), f"give a directory that holds {', '.join(missing)}"))
        return problems

    def _content(self) -> tuple[ReferenceFiles, FactTable]:
        if self._read is None:
            findings = Findings()
            files = read_files(self.path, findings)
            self._read = files, recover_facts(files, findings)
        return self._read

    @property
    def files(self) -> ReferenceFiles:
        """What the directory holds, read on first use.

        Raises:
            BadInput: with every malformed or contradictory row, by file and number.
        """
        return self._content()[0]

    @property
    def facts(self) -> FactTable:
        """The facts behind the files."""
        return self._content()[1]

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return self.encoding.task(len(self.files.vocabulary), prompt=3, answer=1)

    def token_name(self, token: int) -> str:
        """See `RegimeDataModule.token_name`."""
        vocabulary = self.files.vocabulary
        return token_name(token, self.encoding.token(torch.arange(len(vocabulary))), lambda symbol: vocabulary[symbol])

    def encode(self, rows: Rows) -> Split:
        """Inputs, slots and truth of the rows of a file."""
        facts, symbols = self.facts, rows.symbols
        hops = facts.hops(symbols)
        bridge = torch.where(rows.inferred, facts.tail(hops.first), -1)
        questions = two_hop_questions(symbols[:, :3], symbols[:, 3], bridge, torch.stack(hops, 1), facts.is_ood(hops))
        split = self.encoding.encode(questions, len(self.files.vocabulary), self.files.end)
        return replace(split, labels=self.encoding.token(facts.entities))

    def baselines(self, split: str) -> dict[str, float]:
        """See `two_hop_baselines`."""
        return two_hop_baselines(self.generated.train, self.splits[split])

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        tests = Rows.concatenate([rows for _, rows in self.files.by_name()[2:]])
        ood = self.facts.is_ood(self.facts.hops(tests.symbols))
        loose = tests.types == TYPES.index("train_inferred")
        evaluation = {}
        for name, hops in HOPS.items():
            if name.startswith("train_inferred"):
                chosen = loose & (ood == torch.tensor(hops)).all(1)
            else:
                chosen = tests.types == TYPES.index(name)
            evaluation[name] = self.encode(tests.take(chosen))
        stream = TableStream(self.encode(self.files.train), self.batch, self.order_seed)
        return Generated(stream, evaluation, self._atomic_facts())

    def _atomic_facts(self) -> AtomicFacts:
        facts, token = self.facts, self.encoding.token
        known = facts.hops(self.files.train.symbols)
        train = known.take((known.first >= 0) & (known.second >= 0))
        head, relation = facts.keys // facts.symbols, facts.keys % facts.symbols
        composed = used_in_compositions(train, len(facts.keys))
        return AtomicFacts(token(head), token(relation), token(facts.tails), composed)


def write_reference_json(regime: TwoHopComposition | ReferenceJSON, directory: str | Path) -> None:
    """Write a regime's data as the files that the reference repositories read.

    Their `test.json` has no type for tests with one OOD hop, so those of a `TwoHopComposition` go to `test_mixed.json`.

    Args:
        regime: whose training table and evaluation splits are written.
        directory: a new or an empty one; it is made whole or not at all.

    Raises:
        BadInput: if the directory is not empty, or the regime has no table (`lazy`), or splits that those
            repositories do not know (`NewKnowledge`).
    """
    write_files(regime.files if isinstance(regime, ReferenceJSON) else _files(regime), Path(directory))


def _files(regime: TwoHopComposition) -> ReferenceFiles:
    if regime.lazy:
        raise BadInput(Problem("lazy", regime.lazy, "the lazy mode has no training table to write: use lazy=false"))
    queries, graph = regime.queries(), regime.graph
    untyped = queries.evaluation.keys() - HOPS.keys()
    if untyped:
        fix = f"those files have no type for {', '.join(sorted(untyped))}: write the data of the earlier training"
        raise BadInput(Problem("regime", type(regime).__name__, fix))

    def rows(hops: Hops, name: str | None = None) -> Rows:
        symbols = torch.cat([regime.prompt(graph, hops), graph.answer(hops)[:, None]], 1)
        # Injected compositions have no type of their own: in those files all trained ones are train_inferred.
        kind = -1 if name is None else TYPES.index("train_inferred" if name.startswith("train") else name)
        return Rows(symbols, torch.full((len(symbols),), kind))

    def tests(mixed: bool) -> Rows:
        names = [name for name in queries.evaluation if (name in ("test_inferred_io", "test_inferred_oi")) == mixed]
        return Rows.concatenate([rows(queries.evaluation[name], name) for name in names])

    known = graph.atomic((~graph.ood).nonzero()[:, 0])
    unknown = graph.atomic(graph.ood.nonzero()[:, 0])
    mixed = tests(mixed=True)
    return ReferenceFiles(
        vocabulary=tuple(regime.symbol_name(symbol) for symbol in range(regime.symbols)),
        train=rows(queries.train),
        valid=rows(queries.evaluation["test_inferred_ood"]),
        test=tests(mixed=False),
        id_facts=rows(known).symbols[:, [0, 1, 3]],
        ood_facts=rows(unknown).symbols[:, [0, 1, 3]],
        mixed=mixed if len(mixed) else None,
    )
