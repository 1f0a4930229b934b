"""Counterfactual queries for causal tracing: another head, another relation, another entity, another query.

Each draw is a pure function of (seed, query): the same for every checkpoint and every order of the examples.

Shape legend: N example, G candidate, F fact, T position.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import singledispatch
from typing import Literal

import torch
from torch import Tensor

from grok.circuits.patching import Counterfactual
from grok.data.attribute_values import AttributeValues, Pairs
from grok.data.facts import AtomicFacts
from grok.data.keyed import POSITIVE, keyed_hash
from grok.data.knowledge_graph import keyed_sample
from grok.data.split import Split
from grok.errors import BadInput, Problem

__all__ = [
    "comparison_counterfactuals",
    "composition_counterfactuals",
    "counterfactuals_for",
    "known_counterfactuals",
    "other_queries",
    "same_bridge_counterfactuals",
    "same_query",
    "same_value_counterfactuals",
]

_MOST_CANDIDATES = 4096  # per query; of larger groups a random part is searched


class _Groups:
    """Rows of a table by key: which rows belong to a key, for many keys at once."""

    def __init__(self, keys: Tensor) -> None:
        self.keys, self.order = keys.sort(stable=True)

    def members(self, wanted: Tensor) -> Tensor:
        """`[N, G]` rows of each key `[N]`, -1 beyond the last; at most 4,096 of them, and G at least 1."""
        if not len(self.order):
            return torch.full_like(wanted, -1)[:, None]
        start = torch.searchsorted(self.keys, wanted)
        count = torch.searchsorted(self.keys, wanted, right=True) - start
        most = min(int(count.max()), _MOST_CANDIDATES) if len(count) else 0
        offset = torch.arange(max(1, most), device=wanted.device)
        place = (start[:, None] + offset).clamp(max=len(self.order) - 1)
        return torch.where(offset < count[:, None], self.order[place], -1)


def _draw(
    split: Split, purpose: str, seed: int, candidates: Tensor, acceptable: Tensor, names: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One acceptable candidate `[N]` per query, each as likely, and whether there is one: `[N]` bool.

    `candidates` `[N, G]`, G at least 1; by default their numbers are their `names` too, what the draw goes by.
    """
    query = keyed_hash("query", seed, *split.inputs.unbind(1))[:, None]
    score = keyed_hash(purpose, query, candidates if names is None else names) & POSITIVE
    best, place = torch.where(acceptable, score, -1).max(1)
    return candidates.gather(1, place[:, None])[:, 0], best >= 0


def two_hop_tokens(split: Split, facts: AtomicFacts) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tokens h, r1, r2, b and t of every query.

    Raises:
        BadInput: if the split has no bridge, more than one, or other positions.
    """
    if "bridge" not in split.truth or split.positions[:3] != ("h", "r1", "r2"):
        have = f"positions {', '.join(split.positions)} and ground truth {', '.join(split.truth) or '(none)'}"
        raise BadInput(
            f"counterfactuals: two-hop queries (positions h, r1, r2, a bridge) are needed; this split has {have}"
        )
    if split.truth["bridge"].shape[1] != 1:
        raise BadInput(
            f"counterfactuals: two-hop queries are needed; these have {split.truth['bridge'].shape[1]} bridges each: "
            "trace with tracing.counterfactuals=other, and leave semantic patching out"
        )
    bridge = split.truth["bridge"][:, 0].contiguous()
    if bool((bridge < 0).any()):
        raise BadInput(
            "counterfactuals: two-hop queries are needed; this split has atomic queries, which have no bridge"
        )
    h, r1, r2 = (column.contiguous() for column in split.inputs[:, :3].unbind(1))
    return h, r1, r2, bridge, split.targets[:, 0].contiguous()


def composition_counterfactuals(
    split: Split, facts: AtomicFacts, seed: int = 0, valid: bool = False
) -> list[Counterfactual]:
    """Counterfactuals `h`, `r1`, `r2` of two-hop queries, each patched at its own position (Wang et al. 2024).

    As in the released code: `h` is another head from which r1, r2 lead nowhere or to another answer (about 90 % lead
    nowhere); `r1` another relation of h whose tail has no fact r2 or one with another tail; `r2` another relation of
    the bridge with another tail. Heads and relations are drawn among the facts that occur in training compositions.

    Args:
        split: N two-hop queries.
        facts: all atomic facts.
        seed: selects the draws.
        valid: take only counterfactuals that are queries themselves, with an answer (another one).
    """
    h, r1, r2, bridge, answer = two_hop_tokens(split, facts)
    pool = facts.composed.nonzero()[:, 0]
    by_head, by_relation = _Groups(facts.head[pool]), _Groups(facts.relation[pool])

    def counterfactual(position: int, candidates: Tensor, outcome: Tensor) -> Counterfactual:
        tokens = split.inputs[:, position]
        acceptable = (candidates >= 0) & (candidates != tokens[:, None]) & (outcome != answer[:, None])
        if valid:
            acceptable &= outcome >= 0
        name = ("h", "r1", "r2")[position]
        place = torch.arange(candidates.shape[1], device=candidates.device).expand_as(candidates)
        chosen, exists = _draw(split, f"cf {name}", seed, place, acceptable)
        chosen = chosen[:, None]
        replaced = torch.where(exists, candidates.gather(1, chosen)[:, 0], tokens)
        inputs = split.inputs.index_copy(1, torch.tensor([position], device=tokens.device), replaced[:, None])
        return Counterfactual(name, inputs, (position,), outcome.gather(1, chosen)[:, 0].where(exists, -1), exists)

    if valid:
        heads = _at(facts.head[pool], by_relation.members(r1))
    else:
        every = torch.unique(facts.head[pool]) if len(pool) else torch.full_like(h[:1], -1)
        hashes = keyed_hash("heads", seed, every) & POSITIVE
        heads = every[keyed_sample(_MOST_CANDIDATES, hashes).sort().values].expand(len(split), -1)
    first = _at(facts.relation[pool], by_head.members(h))
    second = _at(facts.relation[pool], by_head.members(bridge))
    return [
        counterfactual(0, heads, facts.follow(facts.follow(heads, r1[:, None]), r2[:, None])),
        counterfactual(1, first, facts.follow(facts.follow(h[:, None], first), r2[:, None])),
        counterfactual(2, second, facts.follow(bridge[:, None], second)),
    ]


def _at(column: Tensor, rows: Tensor) -> Tensor:
    """`column[rows]`; -1 stays -1."""
    if not len(column):
        return torch.full_like(rows, -1)
    return torch.where(rows >= 0, column[rows.clamp(min=0)], -1)


def same_bridge_counterfactuals(split: Split, facts: AtomicFacts, seed: int = 0) -> list[Counterfactual]:
    """The floor of `composition_counterfactuals`: other queries that keep what the circuit carries.

    `h`: another head with the same r1 and the same bridge (few queries have one). `r1`: another fact, with
    another head and another relation, that leads to the same bridge. `r2`: another whole query with the same answer.
    """
    h, r1, r2, bridge, answer = two_hop_tokens(split, facts)
    by_tail = _Groups(facts.tail)
    to_bridge, to_answer = by_tail.members(bridge), by_tail.members(answer)
    ends = torch.arange(to_bridge.shape[1], device=h.device).expand_as(to_bridge)
    heads, relations = _at(facts.head, to_bridge), _at(facts.relation, to_bridge)

    def replaced(purpose: str, acceptable: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen, exists = _draw(split, purpose, seed, ends, acceptable)
        pick = chosen[:, None]
        return heads.gather(1, pick)[:, 0].where(exists, h), relations.gather(1, pick)[:, 0].where(exists, r1), exists

    head, _, head_exists = replaced("same h", (to_bridge >= 0) & (relations == r1[:, None]) & (heads != h[:, None]))
    different = (to_bridge >= 0) & (heads != h[:, None]) & (relations != r1[:, None])
    other_h, other_r1, bridge_exists = replaced("same r1", different)
    # Another second fact with the same answer, whose head some first fact leads to.
    second, second_exists = _draw(
        split, "same r2", seed, to_answer, (to_answer >= 0) & (_at(facts.head, to_answer) != bridge[:, None])
    )
    second = second.clamp(min=0)
    to_second = by_tail.members(facts.head[second])
    first, first_exists = _draw(split, "r2 head", seed, to_second, to_second >= 0)
    first, whole_exists = first.clamp(min=0), second_exists & first_exists
    whole = torch.stack([facts.head[first], facts.relation[first], facts.relation[second]], 1)

    def counterfactual(name: str, tokens: Tensor, exists: Tensor) -> Counterfactual:
        inputs = torch.where(exists[:, None], torch.cat([tokens, split.inputs[:, 3:]], 1), split.inputs)
        return Counterfactual(name, inputs, (("h", "r1", "r2").index(name),), answer.where(exists, -1), exists)

    return [
        counterfactual("h", torch.stack([head, r1, r2], 1), head_exists),
        counterfactual("r1", torch.stack([other_h, other_r1, r2], 1), bridge_exists),
        counterfactual("r2", whole, whole_exists),
    ]


def _compared(split: Split, knowledge: AttributeValues) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of attribute, e1 and e2 of comparison queries in the table of values: `[N]` each.

    Raises:
        BadInput: if the split has other positions.
    """
    if split.positions[:5] != ("a", "q", "e1", "mask", "e2"):
        raise BadInput(
            f"counterfactuals: positions a, q, e1, mask, e2 are needed; this split has {', '.join(split.positions)}"
        )
    tokens = [split.inputs[:, place].contiguous() for place in (0, 2, 4)]
    lists = (knowledge.attributes, knowledge.entities, knowledge.entities)
    attribute, e1, e2 = (torch.searchsorted(known, asked) for known, asked in zip(lists, tokens, strict=True))
    return attribute, e1, e2


def comparison_counterfactuals(
    split: Split, knowledge: AttributeValues, seed: int = 0, valid: bool = False
) -> list[Counterfactual]:
    """Counterfactuals `e1`, `e2`, `a` of comparison queries `a <q> e1 <mask> e2` (Wang et al. 2024, section 4).

    As in the released code: `e1` is another ID entity whose value on the attribute equals that of e2 (one more or less
    if e1 and e2 are equal), patched at e1 and the separator after it; `e2` the same around the value of e1, patched at
    e2; `a` a random other attribute, patched at the attribute and the separator after it.

    Args:
        split: N queries with positions `a`, `q`, `e1`, `mask`, `e2`.
        knowledge: values of all entities.
        seed: selects the draws.
        valid: take only counterfactuals that are queries themselves: of two different entities.
    """
    attribute, e1, e2 = _compared(split, knowledge)
    values, allowed = knowledge.values.T[attribute], ~knowledge.ood.T[attribute]  # [N, entity]
    v1, v2 = (values.gather(1, entity[:, None]) for entity in (e1, e2))

    def entity(name: str, place: int, own: Tensor, others: Tensor, positions: tuple[int, ...]) -> Counterfactual:
        mine, wanted = (v1, v2) if name == "e1" else (v2, v1)
        acceptable = allowed & ((values - wanted).abs() == (mine == wanted).long())
        chosen, exists = _drawn_entity(split, f"cf {name}", seed, acceptable, [own, others] if valid else [own])
        inputs = _replaced(split, [(place, knowledge.entities[chosen])], exists)
        pairs = Pairs(attribute, chosen, e2) if name == "e1" else Pairs(attribute, e1, chosen)
        return Counterfactual(name, inputs, positions, _label(knowledge, pairs, exists), exists)

    every = torch.arange(len(knowledge.attributes), device=e1.device).expand(len(split), -1)
    other, exists = _draw(split, "cf a", seed, every, every != attribute[:, None])
    answer = _label(knowledge, Pairs(other, e1, e2), exists)
    return [
        entity("e1", 2, e1, e2, (2, 3)),
        entity("e2", 4, e2, e1, (4,)),
        Counterfactual("a", _replaced(split, [(0, knowledge.attributes[other])], exists), (0, 1), answer, exists),
    ]


def same_value_counterfactuals(split: Split, knowledge: AttributeValues, seed: int = 0) -> list[Counterfactual]:
    """The floor of `comparison_counterfactuals`: other queries that keep what the circuit carries.

    `e1`, `e2`: another ID entity with the same value on the attribute. `a`: both of them, on the same attribute; of a
    causal model the states at `a` are then the same, and the floor is 0.
    """
    attribute, e1, e2 = _compared(split, knowledge)
    values, allowed = knowledge.values.T[attribute], ~knowledge.ood.T[attribute]

    def same(name: str, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        acceptable = allowed & (values == values.gather(1, own[:, None]))
        chosen, exists = _drawn_entity(split, f"same {name}", seed, acceptable, [own, others])
        return knowledge.entities[chosen], exists

    (first, one), (second, two) = same("e1", e1, e2), same("e2", e2, e1)

    def counterfactual(
        name: str, places: list[tuple[int, Tensor]], exists: Tensor, positions: tuple[int, ...]
    ) -> Counterfactual:
        answer = split.targets[:, 0].where(exists, -1)
        return Counterfactual(name, _replaced(split, places, exists), positions, answer, exists)

    return [
        counterfactual("e1", [(2, first)], one, (2, 3)),
        counterfactual("e2", [(4, second)], two, (4,)),
        counterfactual("a", [(2, first), (4, second)], one & two & (first != second), (0, 1)),
    ]


def _drawn_entity(
    split: Split, purpose: str, seed: int, acceptable: Tensor, but: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """One of the `acceptable` entities `[N, E]` of each query, none of those in `but`; and whether there is one."""
    every = torch.arange(acceptable.shape[1], device=acceptable.device).expand_as(acceptable)
    for entity in but:
        acceptable = acceptable & (every != entity[:, None])
    return _draw(split, purpose, seed, every, acceptable)


def _replaced(split: Split, places: Sequence[tuple[int, Tensor]], exists: Tensor) -> Tensor:
    """Inputs with other tokens `[N]` at some positions, where they exist."""
    inputs = split.inputs.clone()
    for place, tokens in places:
        inputs[:, place] = torch.where(exists, tokens, inputs[:, place])
    return inputs


def _label(knowledge: AttributeValues, pairs: Pairs, exists: Tensor) -> Tensor:
    """The label token of each comparison `[N]`; -1 where it does not exist."""
    return knowledge.labels[pairs.attribute, knowledge.compared(pairs)].where(exists, -1)


def other_queries(split: Split, seed: int = 0, same_answer: bool = False) -> list[Counterfactual]:
    """For any regime: the states of another query of the split, one counterfactual per position (resampling).

    The draw goes by what the queries show, not by their rows: the same in any order of the split. A copy of a query is
    not another one.

    Args:
        split: N queries.
        seed: selects the draws.
        same_answer: take queries with the same answer instead of another one: the floor.
    """
    answer, query = split.targets[:, 0], keyed_hash("rows", seed, *split.inputs.unbind(1))
    candidates = keyed_sample(_MOST_CANDIDATES, query & POSITIVE).expand(len(split), -1)
    same = answer[candidates] == answer[:, None]
    acceptable = (same == same_answer) & (query[candidates] != query[:, None])
    chosen, exists = _draw(split, "other", seed, candidates, acceptable, query[candidates])
    inputs = torch.where(exists[:, None], split.inputs[chosen], split.inputs)
    return [
        Counterfactual(name, inputs, (position,), answer[chosen].where(exists, -1), exists)
        for position, name in enumerate(split.positions)
    ]


def same_query(split: Split, positions: Sequence[int] | None = None) -> list[Counterfactual]:
    """Every query as its own counterfactual, which changes nothing; for checks."""
    every = torch.ones(len(split), dtype=torch.bool, device=split.inputs.device)
    chosen = range(len(split.positions)) if positions is None else positions
    return [Counterfactual(split.positions[p], split.inputs, (p,), split.targets[:, 0], every) for p in chosen]


Drawn = tuple[list[Counterfactual], list[Counterfactual]]


@singledispatch
def known_counterfactuals(knowledge: object, split: Split, valid: bool = False) -> Drawn:
    """Counterfactuals of the queries of `split` and their floor, by the regime's knowledge; a kind of knowledge that
    has some registers them here.

    Args:
        knowledge: `Generated.facts`.
        split: N queries.
        valid: take only counterfactuals that are queries themselves.

    Raises:
        BadInput: if there are none for this knowledge, or the queries are of another kind.
    """
    kind, fix = "valid" if valid else "reference", "this data has no atomic facts or attribute values: use other"
    raise BadInput(Problem("counterfactuals", kind, fix))


@known_counterfactuals.register
def _(knowledge: AtomicFacts, split: Split, valid: bool = False) -> Drawn:
    return composition_counterfactuals(split, knowledge, valid=valid), same_bridge_counterfactuals(split, knowledge)


@known_counterfactuals.register
def _(knowledge: AttributeValues, split: Split, valid: bool = False) -> Drawn:
    return comparison_counterfactuals(split, knowledge, valid=valid), same_value_counterfactuals(split, knowledge)


def counterfactuals_for(
    knowledge: object, split: Split, kind: Literal["reference", "valid", "other"] | None = None
) -> Drawn:
    """Counterfactuals of the queries of `split`, and those that keep what the circuit carries: the floor.

    Args:
        knowledge: the regime's knowledge, `Generated.facts`; None if it has none.
        split: N queries.
        kind: `reference` or `valid`, see `known_counterfactuals`; `other`, see `other_queries`; None takes `reference`
            where there are such, else `other`.

    Raises:
        BadInput: if there are none of that kind.
    """
    if kind in ("reference", "valid"):
        return known_counterfactuals(knowledge, split, kind == "valid")
    if kind is None:
        with suppress(BadInput):
            return known_counterfactuals(knowledge, split)
    return other_queries(split), other_queries(split, same_answer=True)
