"""Prompts of `PatternComposition` as columns: which pattern stands where, and the vectors for it.

Shape legend: N query, L example, K step, T column (K per example and query), D width of a pattern, M pattern.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from grok.data.split import Split
from grok.data.step_transitions import StepTransitions

__all__ = ["as_columns", "draw_paths", "shortened", "without_steps"]


def draw_paths(
    size: int,
    examples: int,
    patterns: int,
    alpha: float,
    transitions: StepTransitions,
    generator: torch.Generator,
    first: Tensor | None = None,
) -> Tensor:
    """Patterns of all examples and, last, the right ones of the query: `[N, L + 1, K + 1]`.

    Args:
        size: N.
        examples: L.
        patterns: M; they form M / S groups of the S states of `transitions`, within which examples err.
        alpha: probability that an example begins as the query does; the others begin with any other pattern.
        transitions: of the examples.
        generator: what is drawn from.
        first: states in which a query may begin; None means any.
    """
    states = transitions.states
    first = torch.arange(states) if first is None else first
    asked = first[torch.randint(len(first), (size, 1), generator=generator)]
    asked = asked + states * torch.randint(patterns // states, (size, 1), generator=generator)
    other = (asked + torch.randint(1, patterns, (size, examples), generator=generator)) % patterns
    start = torch.where(torch.rand(size, examples, generator=generator) < alpha, asked, other)
    begun = torch.cat([start, asked], 1)
    path = torch.cat([transitions.follow(start % states, generator), transitions.right(asked % states)], 1)
    path = path + (begun - begun % states)[..., None]
    # A task is a new name for every state at every step, and so a one-to-one map at each.
    names = torch.rand(size, path.shape[2], patterns, generator=generator).argsort(2)
    return names.gather(2, path.transpose(1, 2)).transpose(1, 2)


def as_columns(
    paths: Tensor, vectors: Tensor, step_vectors: Tensor, generator: torch.Generator, noise: float = 0.0
) -> Split:
    """CoT prompts: columns (input + c_k | output), the query at a random step, after which its columns are empty.

    Args:
        paths: `[N, L + 1, K + 1]` patterns, the query's last.
        vectors: `[M, D]` of the patterns.
        step_vectors: `[K, D]`, the c_k.
        generator: what noise and steps are drawn from.
        noise: length of what is added to every pattern in the prompt.
    """
    size, examples, steps = len(paths), paths.shape[1] - 1, len(step_vectors)
    shown = vectors[paths]
    if noise:
        shown = shown + noise * F.normalize(torch.randn(shown.shape, generator=generator), dim=-1)
    columns = torch.cat([shown[:, :, :-1] + step_vectors, shown[:, :, 1:]], -1)  # [N, L + 1, K, 2 D]
    step = torch.randint(steps, (size, 1), generator=generator)
    later = torch.arange(steps) - step
    width = vectors.shape[1]
    columns[:, -1, :, :width] *= (later <= 0)[..., None]
    columns[:, -1, :, width:] *= (later < 0)[..., None]
    pattern = paths[:, :, :-1].clone()
    pattern[:, -1].masked_fill_(later > 0, -1)
    chain = paths[:, -1].clone()
    return Split(
        inputs=columns.flatten(1, 2),
        at=examples * steps + step,
        targets=vectors[chain.gather(1, step + 1)],
        mask=torch.ones_like(step, dtype=torch.bool),
        positions=_names(examples, steps),
        truth={"pattern": pattern.flatten(1), "chain": chain},
        codes=(vectors,),
    )


def _names(examples: int, steps: int) -> tuple[str, ...]:
    rows = [f"e{example + 1}" for example in range(examples)] + ["q"]
    return tuple(f"{row}.{step + 1}" for row in rows for step in range(steps))


def without_steps(split: Split, step_vectors: Tensor) -> Split:
    """The ICL prompts of CoT prompts: of each example (first input + c_0 | last output), (c_1 | 0), …; the query's last
    output is asked at its first column."""
    steps, width = step_vectors.shape
    columns = split.inputs.view(len(split), -1, steps, 2 * width)  # [N, L + 1, K, 2 D]
    shown = F.pad(step_vectors.to(columns.device), (0, width)).expand_as(columns).clone()
    shown[:, :, 0, :width] = columns[:, :, 0, :width]
    shown[:, :-1, 0, width:] = columns[:, :-1, -1, width:]
    shown[:, -1, 1:] = 0
    pattern = torch.full_like(split.truth["pattern"], -1)
    pattern[:, ::steps] = split.truth["pattern"][:, ::steps]
    assert split.codes is not None
    return replace(
        split,
        inputs=shown.flatten(1, 2),
        at=torch.full_like(split.at, len(split.positions) - steps),
        targets=split.codes[0][split.truth["chain"][:, -1:]],
        truth={**split.truth, "pattern": pattern},
    )


def shortened(split: Split, steps: int, examples: int) -> Split:
    """The same queries after the last `examples` of their examples, of `steps` columns each, only."""
    cut = len(split.positions) - (examples + 1) * steps
    return replace(
        split,
        inputs=split.inputs[:, cut:],
        at=split.at - cut,
        positions=split.positions[cut:],
        truth={**split.truth, "pattern": split.truth["pattern"][:, cut:]},
    )
