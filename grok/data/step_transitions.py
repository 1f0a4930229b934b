"""How likely each outcome of each step is: the mistakes of worked examples, and which answers are the right ones.

Li et al. 2024 (arXiv 2410.02167) describe faulty examples by a stochastic matrix per step. The right outcome of a step
is its likeliest; tau and rho tell how sure the steps are, tau_o and rho_o the same of first input and last output.

Shape legend: K step, S state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from grok.errors import Problem

__all__ = ["StepTransitions", "faulty", "problems_of_transition"]


class StepTransitions:
    """A chain of K steps over S states.

    Args:
        matrices: `[K, S, S]`; row s of matrix k has the probabilities of each outcome of step k from state s.
    """

    def __init__(self, matrices: Tensor | Sequence[Sequence[Sequence[float]]]) -> None:
        self.matrices = torch.as_tensor(matrices, dtype=torch.float64)
        self.states = self.matrices.shape[1]

    @staticmethod
    def check(matrices: Sequence[Sequence[Sequence[float]]], steps: int) -> list[Problem]:
        """Problems with `matrices` for so many steps."""
        sizes = {len(rows) for rows in matrices} | {len(row) for rows in matrices for row in rows}
        if len(matrices) != steps or len(sizes) != 1 or not all(map(len, matrices)):
            return [Problem("matrices", matrices, f"give {steps} square matrices of one size, one for each step")]
        table = torch.tensor(matrices, dtype=torch.float64)
        if bool((table < 0).any()) or not torch.allclose(table.sum(2), torch.ones((), dtype=torch.float64), atol=1e-6):
            return [Problem("matrices", matrices, "give probabilities: every row adds up to 1")]
        if not bool((_lead(table) > 0).all()):
            return [Problem("matrices", matrices, "give every row one likeliest outcome, which is the right one")]
        return []

    def follow(self, start: Tensor, generator: torch.Generator) -> Tensor:
        """Chains drawn from the states `start` `[…]`, which they begin with: `[…, K + 1]`."""
        path = [start]
        for cumulated in self.matrices.cumsum(2):
            drawn = torch.rand(start.shape, generator=generator)[..., None] >= cumulated[path[-1]]
            path.append(drawn.sum(-1).clamp(max=self.states - 1))
        return torch.stack(path, -1)

    def right(self, start: Tensor) -> Tensor:
        """The right chains from the states `start` `[…]`, by the likeliest outcome of every step: `[…, K + 1]`."""
        path = [start]
        for likeliest in self.matrices.argmax(2):
            path.append(likeliest[path[-1]])
        return torch.stack(path, -1)

    def outcome(self) -> Tensor:
        """Probabilities of the last state from each first one, B = A₁ … A_K: `[S, S]`."""
        product: Tensor = reduce(torch.matmul, self.matrices)
        return product

    def condition_1(self) -> Tensor:
        """Whether the right last state is also the likeliest one, from each first state: `[S]` bool (Condition 1)."""
        return self.outcome().argmax(1) == self.right(torch.arange(self.states))[:, -1]

    def sureness(self) -> dict[str, float]:
        """tau, the probability of the likeliest chain (the smallest over first states); rho, by how much the likeliest
        outcome of a step is likelier than any other (the smallest); tau_o and rho_o the same of `outcome`."""
        likeliest = torch.ones(self.states, dtype=torch.float64)
        for matrix in self.matrices.flip(0):
            likeliest = (matrix * likeliest).amax(1)
        outcome = self.outcome()
        return {
            "tau": float(likeliest.min()),
            "rho": float(_lead(self.matrices).min()),
            "tau_o": float(outcome.amax(1).min()),
            "rho_o": float(_lead(outcome).min()),
        }


def _lead(rows: Tensor) -> Tensor:
    """Largest entry of each row minus the second largest; of a single one, itself."""
    best = rows.topk(min(2, rows.shape[-1]), -1).values
    return best[..., 0] - best[..., 1] if rows.shape[-1] > 1 else best[..., 0]


def faulty(steps: int, states: int, accuracy: float, competitor: float | None = None) -> StepTransitions:
    """Steps that keep the state with probability `accuracy`, and go to each of the others with equal ones.

    Args:
        steps: K.
        states: S.
        accuracy: probability of the right outcome.
        competitor: probability of one of the wrong outcomes, the rest being left to the others (S is at least 3 then);
            None gives all alike.
    """
    rest = (1 - accuracy) / max(1, states - 1)
    matrix = torch.full((states, states), rest, dtype=torch.float64)
    if competitor is not None:
        matrix.fill_((1 - accuracy - competitor) / (states - 2))
        matrix += torch.eye(states, dtype=torch.float64).roll(1, 1) * (competitor - matrix[0, 0])
    matrix.fill_diagonal_(accuracy if states > 1 else 1.0)
    return StepTransitions(matrix.expand(steps, -1, -1))


def problems_of_transition(
    transition: str,
    accuracy: float,
    matrices: Sequence[Sequence[Sequence[float]]] | None,
    patterns: int,
    steps: int,
) -> list[Problem]:
    """Problems with the mistakes that a user wants in examples of so many `patterns`, see `PatternComposition`."""
    if transition not in ("clean", "uniform", "matrix"):
        return [Problem("transition", transition, "use clean, uniform, matrix")]
    if transition == "uniform" and not 1 < accuracy * patterns <= patterns:
        return [Problem("accuracy", accuracy, f"use more than 1/{patterns} (chance), at most 1")]
    if (transition == "matrix") != (matrices is not None):
        return [Problem("matrices", matrices, "give them with transition=matrix, and only then")]
    problems = StepTransitions.check(matrices, steps) if matrices is not None else []
    if matrices is None or problems:
        return problems
    if patterns % len(matrices[0]):
        problems = [Problem("test_patterns", patterns, f"use a multiple of the {len(matrices[0])} states of matrices")]
    if not bool(StepTransitions(matrices).condition_1().any()):
        fix = "from one first state at least the right last state must be the likeliest one (Condition 1)"
        problems.append(Problem("matrices", matrices, fix))
    return problems
