"""Real facts from a file, and a synthetic knowledge base of the same shape (Abramov et al. 2025, arXiv 2504.20752).

Their data: 2WikiMultiHopQA, of which 120 atomic and 60 inferred facts about five countries become 1,000 and 8,000 (phi
8, comparison), and 200 and 100 become 800 and 5,000 (phi 6.25, composition). The augmented data are not public.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from grok.data.fact_files import Format, read_facts, selected
from grok.data.fact_graph import Knowledge
from grok.data.fact_regime import FactRegime
from grok.data.fact_tasks import Compared
from grok.data.keyed import keyed_uniform
from grok.data.knowledge_graph import KnowledgeGraph
from grok.errors import BadInput, Problem, insist

__all__ = ["RealFacts", "SyntheticKnowledge"]


class RealFacts(FactRegime):
    """Facts of 2WikiMultiHopQA, or your own, see `grok.data.fact_files` and `FactRegime`.

    A checkpoint keeps the SHA-256 of the file: with another file it is refused.

    Args:
        path: the file.
        format: `2wiki`, `train.json` or `dev.json` as downloaded; `csv`, with the columns head, relation, tail.
        keep: only facts of these relations; None means all.
        leave_out: no facts of these relations (the paper: no dates as answers).
        facts: see `FactRegime`.
    """

    def __init__(
        self,
        path: str | Path,
        format: Format = "2wiki",
        keep: list[str] | None = None,
        leave_out: list[str] | None = None,
        **facts: Any,
    ) -> None:
        insist(self.check(path=path, format=format, **facts))
        super().__init__(**facts)
        self.path, self.format, self.keep, self.leave_out = Path(path), format, keep, leave_out or []

    @staticmethod
    def check(*, path: str | Path | None = None, format: str = "2wiki", **facts: Any) -> list[Problem]:
        """All problems with the arguments of the constructor; the content of the file is not read yet."""
        problems = []
        if path is not None and not Path(path).is_file():
            problems.append(Problem("path", str(path), "no such file: give train.json of 2WikiMultiHopQA, or a CSV"))
        if format not in get_args(Format):
            problems.append(Problem("format", format, f"use {' or '.join(get_args(Format))}"))
        checked = {key: value for key, value in facts.items() if key not in ("keep", "leave_out")}
        return problems + FactRegime.check_words(**checked)

    def knowledge(self) -> Knowledge:
        """See `FactRegime.knowledge`.

        Raises:
            BadInput: naming the line or entry that cannot be used.
        """
        return selected(read_facts(self.path, self.format), self.keep, self.leave_out)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: which facts it was trained on."""
        return {"digest": self.lessons.knowledge.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse weights that were trained on other facts: their tokens would mean something else.

        Raises:
            BadInput: naming the file.
        """
        trained, given = state_dict["digest"], self.lessons.knowledge.digest
        if trained != given:
            fix = f"not the file of the training (SHA-256 {given[:12]}…, then {trained[:12]}…): restore that"
            raise BadInput(Problem("data.path", str(self.path), fix))


class SyntheticKnowledge(FactRegime):
    """A random knowledge base: `entities · out_degree` facts, see `FactRegime` for what is taught and asked.

    In composition tails are entities like heads, so that the branching factor is about `out_degree`. In comparison they
    are `tails` further entities, each as likely, so that entities share them.

    Args:
        entities: number of entities that facts are about.
        relations: number of relations.
        out_degree: facts per entity, each of another relation.
        tails: number of tails that a relation has, in comparison.
        facts: see `FactRegime`.
    """

    def __init__(
        self, entities: int = 80, relations: int = 10, out_degree: int = 10, tails: int = 5, **facts: Any
    ) -> None:
        insist(self.check(entities=entities, relations=relations, out_degree=out_degree, tails=tails, **facts))
        super().__init__(**facts)
        self.entities, self.relations, self.out_degree, self.tails = entities, relations, out_degree, tails

    @staticmethod
    def check(
        *, entities: int = 80, relations: int = 10, out_degree: int = 10, tails: int = 5, **facts: Any
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        numbers = {
            "entities": (entities, 2),
            "relations": (relations, 1),
            "out_degree": (out_degree, 1),
            "tails": (tails, 2),
        }
        problems = [
            Problem(key, value, f"give a number, {least} or more")
            for key, (value, least) in numbers.items()
            if value < least
        ]
        if out_degree > relations >= 1:
            fix = f"the facts of an entity have distinct relations: use at most relations={relations}"
            problems.append(Problem("out_degree", out_degree, fix))
        if entities * out_degree > 1_000_000:
            problems.append(Problem("entities", entities, "use at most a million facts (entities · out_degree)"))
        return problems + FactRegime.check_words(**facts)

    def knowledge(self) -> Knowledge:
        """See `FactRegime.knowledge`."""
        seed = self._arguments["seed"]
        graph = KnowledgeGraph.random(self.entities, self.relations, self.out_degree, ood=0.0, seed=seed)
        fact = torch.arange(graph.facts)
        head, relation, tail = graph.head(fact), graph.relation(fact), graph.tail(fact)
        names = tuple(f"entity {number}" for number in range(self.entities))
        if self.kind is Compared:
            value = keyed_uniform(self.tails, "value", seed, head, relation)
            tail = self.entities + relation * self.tails + value
            names += tuple(
                f"value {one} of {relation}" for relation in range(self.relations) for one in range(self.tails)
            )
        relations = tuple(f"relation {number}" for number in range(self.relations))
        return Knowledge(names, relations, torch.stack([head, relation, tail], 1))
