"""Whether a state carries the *bridge*, wherever it came from: cross-query semantic patching and the two probings of
Ye et al. 2025 ("How do Transformers Learn Implicit Reasoning?", NeurIPS 2025).

Shape legend: N query, Q pair of a source and a target query, S state, T position, C counterfactual (here: position),
M token of a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grok.circuits.counterfactuals import two_hop_tokens
from grok.circuits.examples import column as column_of
from grok.circuits.examples import position_index
from grok.circuits.grid import Grid, group_means
from grok.circuits.lens import logit_lens
from grok.circuits.patching import Counterfactual, Patched, patch_states
from grok.circuits.reading import Reading
from grok.data.facts import AtomicFacts
from grok.data.keyed import POSITIVE, keyed_hash, keyed_permutation
from grok.data.knowledge_graph import keyed_sample
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel

__all__ = ["Pairs", "Semantic", "full_run_probing", "immediate_probing", "semantic_pairs", "semantic_patching"]

_MOST_QUERIES = 2048  # of larger splits a random part is paired
_AT_ONCE = 256  # targets paired with all sources at a time


@dataclass(frozen=True)
class Pairs:
    """Source and target queries, and what the target should say with the source's bridge.

    Args:
        target: `[Q]` rows of the target split.
        source: `[Q]` rows of the source split.
        expected: `[Q]` token, tail of (bridge of the source, r2 of the target).
    """

    target: Tensor
    source: Tensor
    expected: Tensor


def semantic_pairs(
    split: Split,
    facts: AtomicFacts,
    sources: Split | None = None,
    pairs: int = 2000,
    composed: bool = True,
    seed: int = 0,
) -> Pairs:
    """Random pairs of two-hop queries, each valid pair as likely, none twice.

    A pair is valid if (bridge of the source, r2 of the target) is a known fact whose tail is neither the target's own
    answer, which would count a patch without effect, nor the source's, which would count a copied answer. Of splits of
    more than 2,048 queries a random part is paired. The draw is a function of the queries, not of their order.

    Args:
        split: target queries.
        facts: all atomic facts.
        sources: source queries, perhaps of another split (OOD bridges); None means those of `split`.
        pairs: at most so many.
        composed: only second hops that occur in training compositions, so that the model can know the hop as one.
        seed: selects the draw.

    Raises:
        BadInput: if the splits are no two-hop queries of one encoding, or no pair is valid.
    """
    sources = split if sources is None else sources
    if sources.positions != split.positions:
        fix = f"sources and targets need the same positions; the targets have {', '.join(split.positions)}"
        raise BadInput(Problem("sources", ", ".join(sources.positions), fix))
    if pairs < 1:
        raise BadInput(Problem("pairs", pairs, "use 1 or more"))
    facts = facts.to(split.inputs.device)
    _, _, r2, _, answer = two_hop_tokens(split, facts)
    _, _, _, bridge, said = two_hop_tokens(sources, facts)
    query, other = (keyed_hash("pair", seed, *one.inputs[:, :3].unbind(1)) for one in (split, sources))
    origin = keyed_sample(_MOST_QUERIES, other & POSITIVE)
    best = torch.empty(0, 4, dtype=torch.int64, device=r2.device)  # score, target, source, expected
    for target in torch.split(keyed_sample(_MOST_QUERIES, query & POSITIVE), _AT_ONCE):
        row = facts.find(bridge[origin], r2[target, None])
        expected = torch.where(row >= 0, facts.tail[row.clamp(min=0)], -1)
        valid = (row >= 0) & (expected != answer[target, None]) & (expected != said[origin])
        if composed:
            valid &= facts.composed[row.clamp(min=0)]
        one, two = valid.nonzero().unbind(1)
        score = keyed_hash("both", query[target[one]], other[origin[two]]) & POSITIVE
        found = torch.cat([best, torch.stack([score, target[one], origin[two], expected[one, two]], 1)])
        best = found[keyed_sample(pairs, found[:, 0])]
    if not len(best):
        fix = "no source's bridge has a known fact with a target's r2 and another answer: use more queries"
        raise BadInput(Problem("pairs", pairs, f"{fix}{', or composed=false' if composed else ''}"))
    return Pairs(best[:, 1], best[:, 2], best[:, 3])


@dataclass(frozen=True)
class Semantic:
    """Outcome of every patch.

    Args:
        pairs: which queries were paired (rows of both splits), and what was expected.
        positions: names of the patched positions.
        success: `[Q, S, T]` whether the prediction became the expected answer.
        shuffled: `[Q, S, T]` whether it became the expected answer of another pair: the floor.
        correct: `[Q]` bool, whether the unpatched target is answered right.
        steps: i of the patched states S[i].
    """

    pairs: Pairs
    positions: tuple[str, ...]
    success: Tensor
    shuffled: Tensor
    correct: Tensor
    steps: tuple[int, ...]

    def examples(self, only_correct: bool = False, floor: bool = False) -> Tensor:
        """Success of each patch `[Q, S, T]`; NaN for a pair that does not count."""
        values = self.shuffled if floor else self.success
        return values.masked_fill(~self.correct[:, None, None], torch.nan) if only_correct else values

    def grid(self, only_correct: bool = False) -> Grid:
        """Success rate at every state; its floor is the rate at which the answers expected of other pairs come up.

        Shuffled expectations rather than sources with the target's own bridge: those ask for no change at all, so the
        best model and the worst both give zero there, while a model that says the same few tails to whatever is
        patched in succeeds as often with the shuffled ones.

        The mean and its interval are taken over source queries, each with the mean of its pairs: what is patched in is
        the same state in all pairs of a source, so that they do not count as independent ones. n is the number of
        distinct sources.

        Args:
            only_correct: count only pairs whose unpatched target is answered right.
        """
        axes = {"step": tuple(f"S[{step}]" for step in self.steps), "position": self.positions}
        name = f"semantic/success{'_if_correct' if only_correct else ''}"
        values, floor = (group_means(self.examples(only_correct, floor), self.pairs.source) for floor in (False, True))
        return Grid.of(name, axes, values, floor)


def semantic_patching(
    model: StepModel,
    split: Split,
    facts: AtomicFacts,
    pairs: int = 2000,
    sources: Split | None = None,
    positions: Sequence[str | int] = ("h", "r1", "r2"),
    steps: Sequence[int] | None = None,
    composed: bool = True,
    seed: int = 0,
    batch: int = 2048,
) -> Semantic:
    """Put the source's state S[i, p] in place of the target's: does the target then go on from the source's bridge?

    Cross-query semantic patching of Ye et al. 2025. The source is a two-hop query (h, r1, r2) with bridge b, the target
    another one, (h', r1', r2'); success is that the answer becomes the tail of (b, r2'). A state that succeeds holds
    the bridge in a form that the second hop uses, whichever query it came from. The released code takes (h, r1) as
    its sources and so cannot patch r2; where both can, a causal model's states are the same.

    Args:
        model: any step model with token outputs.
        split: target queries.
        facts: all atomic facts.
        pairs: at most so many, see `semantic_pairs`.
        sources: source queries, perhaps of another split; None means those of `split`.
        positions: patched, each by itself.
        steps: states to patch; None means all.
        composed: only second hops that occur in training compositions.
        seed: selects the pairs.
        batch: most rows of one forward pass; bounds memory.

    Raises:
        BadInput: if the splits are no two-hop queries, no pair is valid, or a state does not exist.
    """
    indices = [position_index(split, position) for position in positions]
    drawn = semantic_pairs(split, facts, sources, pairs, composed, seed)
    targets, inputs = split.take(drawn.target), (split if sources is None else sources).inputs[drawn.source]
    count = len(drawn.expected)
    order = keyed_permutation(torch.arange(count), count, "floor", seed).to(inputs.device)
    tokens = torch.stack([drawn.expected, drawn.expected[order], targets.targets[:, 0]], 1)
    exists = torch.ones(count, dtype=torch.bool, device=inputs.device)
    counterfactuals = [
        Counterfactual(split.positions[index], inputs, (index,), drawn.expected, exists) for index in indices
    ]
    outcome = patch_states(model, targets, counterfactuals, [tokens] * len(indices), steps, batch=batch)
    success, shuffled, _ = _on_top(outcome.patched, tokens).transpose(1, 2).unbind(-1)
    correct = _on_top(outcome.clean, tokens)[:, 0, 2] == 1
    names = tuple(one.name for one in counterfactuals)
    return Semantic(drawn, names, success, shuffled, correct, outcome.steps)


def _on_top(reading: Reading, tokens: Tensor) -> Tensor:
    """Whether each token `[N, M]` is the prediction: `[N, …, M]`; NaN where there is no token.

    By the top token and not by rank 0: where all logits are the same, every token has rank 0.
    """
    looked = tokens.cpu().view(len(tokens), *(1,) * (reading.top.ndim - 2), -1)
    return (reading.top[..., :1] == looked).float().masked_fill(looked < 0, torch.nan)


def _with_shuffled(split: Split, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """A column `[N, M]`, and the same of other queries."""
    tokens = column_of(split, name)
    order = keyed_permutation(torch.arange(len(split)), len(split), "shuffle", seed)
    return tokens, tokens[order.to(tokens.device)]


def immediate_probing(
    model: StepModel,
    split: Split,
    column: str = "bridge",
    positions: Sequence[str | int] = ("r1",),
    steps: Sequence[int] | None = None,
    norm: bool = False,
    batch: int = 1024,
    seed: int = 0,
) -> Grid:
    """How often the read-out of S[i, p] itself puts the column's token on top (Ye et al. 2025), with shuffled truth as
    the floor. They leave out the final norm; `norm=True` gives recall@1 of `logit_lens`.

    Raises:
        BadInput: for ground truth, positions or states that do not exist.
    """
    indices = [position_index(split, position) for position in positions]
    lens = logit_lens(model, split, [column], steps, norm, batch=batch, seed=seed)
    values, floor = (
        _on_top(lens.readings[column], tokens)[:, :, indices].mean(-1) for tokens in _with_shuffled(split, column, seed)
    )
    axes = {**lens.axes, "position": tuple(split.positions[index] for index in indices)}
    return Grid.of(f"immediate/recall@1/{column}", axes, values, floor)


def full_run_probing(
    model: StepModel,
    split: Split,
    host: Split | int = 0,
    column: str = "bridge",
    positions: Sequence[str | int] = ("r1",),
    steps: Sequence[int] | None = None,
    batch: int = 2048,
    seed: int = 0,
) -> Grid:
    """How often the column's token is predicted after S[i, p] went through the rest of the model (Ye et al. 2025).

    The state is written into a fixed other query, the host, at the same position, the remaining steps are run, and the
    prediction *at that position* is read from the last state. S[i] is what step i reads, so the remaining steps are
    i, i + 1, …: the released code, which writes the output of a layer where that layer would read, is off by one.
    Queries whose token is the host's do not count: there, the host could have said it by itself.

    Args:
        model: any step model with token outputs.
        split: source queries.
        host: the fixed query: a split of one query, or a row of `split`.
        column: ground truth looked for, see `grok.circuits.examples.column`.
        positions: whose states are written, each by itself.
        steps: states; None means all.
        batch: most rows of one forward pass; bounds memory.
        seed: selects the shuffle of the floor.

    Raises:
        BadInput: for ground truth, positions, states or a host that do not exist, or if the host leaves no query.
    """
    if isinstance(host, int) and not 0 <= host < len(split):
        raise BadInput(Problem("host", host, f"use a row, 0 to {len(split) - 1}, or a split of one query"))
    one = split.take(slice(host, host + 1)) if isinstance(host, int) else host
    if len(one) != 1 or one.positions != split.positions:
        raise BadInput(Problem("host", f"{len(one)} queries", "use one query with the positions of the split"))
    indices = [position_index(split, position) for position in positions]
    sources = split.take((column_of(split, column) != column_of(one, column)).all(1))
    if not len(sources):
        raise BadInput(Problem("host", column, "every query has the host's: use another host or more queries"))
    hosts = one.take(torch.zeros(len(sources), dtype=torch.int64, device=split.inputs.device))
    truth, shuffled = _with_shuffled(sources, column, seed)
    exists = torch.ones(len(sources), dtype=torch.bool, device=split.inputs.device)

    def patched(index: int) -> Patched:
        written = Counterfactual(split.positions[index], sources.inputs, (index,), truth[:, 0], exists)
        return patch_states(model, hosts, [written], [truth], steps, target_position=index, batch=batch)

    outcomes = [patched(index) for index in indices]
    values, floor = (
        torch.cat([_on_top(outcome.patched, tokens).mean(-1) for outcome in outcomes], 1).transpose(1, 2)
        for tokens in (truth, shuffled)
    )
    axes = {
        "step": tuple(f"S[{step}]" for step in outcomes[0].steps),
        "position": tuple(split.positions[index] for index in indices),
    }
    return Grid.of(f"full_run/recall@1/{column}", axes, values, floor)
