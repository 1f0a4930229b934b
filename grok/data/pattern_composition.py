"""Composition of pattern maps, with and without its steps (Li et al. 2024, arXiv 2410.02167, ICLR 2025).

A task maps a pattern to another one, K times over. Worked examples and the steps done so far stand in the prompt, and
the next step is asked: a chain of thought (CoT). With first input and last output of each example only, it is
in-context learning (ICL). Sizes are not published in what we could read: the defaults are second-hand and ours.

Shape legend: N query, L example, K step, T column, D width of a pattern, M pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.keyed import keyed_generator
from grok.data.pattern_prompts import as_columns, draw_paths, without_steps
from grok.data.split import Split
from grok.data.step_transitions import StepTransitions, faulty, problems_of_transition
from grok.data.stream import FreshStream
from grok.errors import Problem, insist
from grok.task import Field, Task

__all__ = ["PatternComposition"]


class PatternComposition(RegimeDataModule):
    """Columns (step input + c_k | step output), K for each of L examples; then the query's, the last (input + c_k | 0).

    Patterns are orthonormal, and so are the vectors c_0 … c_{K - 1} that say which step a column is, orthogonal to all
    patterns. Every query has its own task: K random one-to-one maps. The query stands at a random step, whose outcome
    is asked: a vector that is one of the patterns.

    Splits: `train_patterns`, as in training. Of other patterns, orthonormal combinations of the trained ones, with
    noise and examples that err: `test_cot`; and `test_icl` with the columns (first input + c_0 | last output),
    (c_1 | 0), … of each example, where the last output is asked. `violated_cot` and `violated_icl` hold the queries
    whose right last output is not the likeliest in examples (Condition 1 of the paper), where `matrices` make such.

    `truth` holds `pattern` `[N, T]`, the input of each column (-1: none), and `chain` `[N, K + 1]`, the right patterns
    of the query.

    Args:
        dim: D, at least `train_patterns` + `steps`.
        train_patterns: M.
        test_patterns: M', at most M.
        steps: K.
        examples: L in training prompts.
        alpha: probability that an example has the query's first input, in training.
        transition: of examples in test prompts: `clean` never err; `uniform` are right in a step with probability
            `accuracy`, else anything; `matrix` follow `matrices`.
        accuracy: of `uniform`.
        matrices: of `matrix`: an S × S matrix of probabilities per step, for a divisor S of M'. The test patterns form
            M'/S groups of S states each.
        noise: length of what is added to every pattern in test prompts, in a random direction.
        test_examples: L in test prompts.
        test_alpha: alpha in test prompts.
        test_size: queries of each evaluation split.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    held_out_splits = ("test_cot",)

    def __init__(
        self,
        dim: int = 30,
        train_patterns: int = 20,
        test_patterns: int = 10,
        steps: int = 3,
        examples: int = 20,
        alpha: float = 0.4,
        transition: Literal["clean", "uniform", "matrix"] = "uniform",
        accuracy: float = 0.8,
        matrices: Sequence[Sequence[Sequence[float]]] | None = None,
        noise: float = 0.2,
        test_examples: int = 40,
        test_alpha: float = 0.8,
        test_size: int = 500,
        batch: int = 256,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 1024,
    ) -> None:
        given: dict[str, Any] = {
            "dim": dim, "train_patterns": train_patterns, "test_patterns": test_patterns, "steps": steps,
            "examples": examples, "test_examples": test_examples, "test_size": test_size, "alpha": alpha,
            "test_alpha": test_alpha, "noise": noise, "transition": transition, "accuracy": accuracy,
            "matrices": matrices, "batch": batch, "evaluation_batch": evaluation_batch,
        }  # fmt: skip
        insist(self.check(**given))
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.dim, self.steps, self.examples, self.alpha, self.noise = dim, steps, examples, alpha, noise
        self.test_examples, self.test_alpha, self.test_size = test_examples, test_alpha, test_size
        right = accuracy if transition == "uniform" else 1.0
        self.transitions = StepTransitions(matrices) if matrices else faulty(steps, test_patterns, right)
        generator = keyed_generator("patterns", seed)
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
        mixed = torch.linalg.qr(torch.randn(train_patterns, test_patterns, generator=generator)).Q
        self.train_vectors, self.step_vectors = basis[:train_patterns], basis[train_patterns:][:steps]
        self.test_vectors = mixed.T @ self.train_vectors

    @staticmethod
    def check(
        *,
        dim: int = 30,
        train_patterns: int = 20,
        test_patterns: int = 10,
        steps: int = 3,
        transition: str = "uniform",
        accuracy: float = 0.8,
        matrices: Sequence[Sequence[Sequence[float]]] | None = None,
        **further: Any,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor, or with those given."""
        few = "give a number, 1 or more"
        counts = {key: further.get(key, 1) for key in ("examples", "test_examples", "test_size")} | {"steps": steps}
        problems = [Problem(key, count, few) for key, count in counts.items() if count < 1]
        if train_patterns < 2:
            problems.append(Problem("train_patterns", train_patterns, "use 2 or more"))
        elif not 2 <= test_patterns <= train_patterns:
            problems.append(Problem("test_patterns", test_patterns, f"use 2 to train_patterns={train_patterns}"))
        if dim < train_patterns + steps:
            fix = f"orthogonal patterns and steps need {train_patterns} + {steps} dimensions at least"
            problems.append(Problem("dim", dim, fix))
        shares = {key: further.get(key, 1.0) for key in ("alpha", "test_alpha")}
        problems += [Problem(key, x, "use a share above 0, at most 1") for key, x in shares.items() if not 0 < x <= 1]
        if not 0 <= further.get("noise", 0.0) < float("inf"):
            problems.append(Problem("noise", further["noise"], "use a finite number, 0 or more"))
        problems += problems_of_transition(transition, accuracy, matrices, test_patterns, steps)
        return problems + RegimeDataModule.check_common(**further)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        fields = (Field("input", self.dim), Field("output", self.dim, matched=False))
        positions = (max(self.examples, self.test_examples) + 1) * self.steps
        return Task(positions, outputs=self.dim, features=2 * self.dim, fields=fields, answer=self.dim)

    def floor(self, split: str) -> float:
        """See `RegimeDataModule.floor`."""
        return 1 / len(self.train_vectors if split == "train_patterns" else self.test_vectors)

    def sizes(self) -> dict[str, float]:
        """See `RegimeDataModule.sizes`: how sure the examples of the test splits are (`StepTransitions.sureness`)."""
        return self.transitions.sureness()

    def prompts(
        self, size: int, *key: int | str, alpha: float, transitions: StepTransitions, first: Tensor | None = None
    ) -> Split:
        """`size` prompts of test patterns, selected by `key`, the query at a random step.

        Args:
            size: N.
            key: fixes what is drawn.
            alpha: probability that an example has the query's first input.
            transitions: of the examples.
            first: states in which a query may begin; None means any.
        """
        g = keyed_generator(*key)
        paths = draw_paths(size, self.test_examples, len(self.test_vectors), alpha, transitions, g, first)
        return as_columns(paths, self.test_vectors, self.step_vectors, g, self.noise)

    def _training_prompts(self, size: int, *key: int | str) -> Split:
        g = keyed_generator(*key)
        paths = draw_paths(size, self.examples, len(self.train_vectors), self.alpha, faulty(self.steps, 1, 1.0), g)
        return as_columns(paths, self.train_vectors, self.step_vectors, g)

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        splits = {"train_patterns": self._training_prompts(self.test_size, "test", "train_patterns", self.seed)}
        kept = self.transitions.condition_1()
        for name, first in {"test": kept.nonzero()[:, 0], "violated": (~kept).nonzero()[:, 0]}.items():
            if len(first):
                key, alpha = ("test", name, self.seed), self.test_alpha
                cot = self.prompts(self.test_size, *key, alpha=alpha, transitions=self.transitions, first=first)
                splits |= {f"{name}_cot": cot, f"{name}_icl": without_steps(cot, self.step_vectors)}

        def make(step: int) -> Split:
            return self._training_prompts(self.batch, "train", self.order_seed, step)

        return Generated(FreshStream(make, self.batch), splits)

    def groups(self, split: Split) -> Mapping[str, Tensor]:
        """Columns before the query's, by whether input and step are the query's: `[N, A, T]` bool each."""
        pattern, at = split.truth["pattern"], split.at[..., None]
        place = torch.arange(pattern.shape[1], device=at.device)
        known = (pattern >= 0)[:, None] & (place < at)
        same_pattern = pattern[:, None] == pattern.gather(1, split.at)[..., None]
        same_step = place % self.steps == at % self.steps
        return {
            "same_pattern_same_step": known & same_pattern & same_step,
            "same_pattern_other_step": known & same_pattern & ~same_step,
            "other_pattern_same_step": known & ~same_pattern & same_step,
            "other_pattern_other_step": known & ~same_pattern & ~same_step,
        }
