"""Nonlinear regression in context (Li, Duan and Liang 2025, arXiv 2507.20443): columns (x | y) of one random function.

Inputs come from a finite set of feature vectors, so that the query's feature stands in the prompt too: the answer can
be looked up there, whatever the function is. Sizes and families of functions are ours: the paper's are not known to us.

Shape legend: N query, T column (C of the context, then the query), K feature vector, D width of an x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.keyed import keyed_generator
from grok.data.split import Split
from grok.data.stream import FreshStream
from grok.errors import Problem, insist
from grok.task import Field, Task

__all__ = ["NonlinearRegression"]

Family = Literal["sine", "piecewise_linear", "quadratic", "linear"]
# None is steeper than 1. The first two have period 2.
SHAPES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sine": lambda u: torch.sin(math.pi * u) / math.pi,
    "piecewise_linear": lambda u: (u % 2 - 1).abs() - 0.5,
    "quadratic": lambda u: u.clamp(-1, 1).square() / 2,
    "linear": lambda u: u,
}


class NonlinearRegression(RegimeDataModule):
    """Columns (x₁, y₁), …, (x_C, y_C), (x, 0) with y = f(x); f(x) of the last x is asked.

    Every query has its own f(x) = L / ν · shape(ν w · x + b), w a random direction, b uniform in [-1, 1], so that
    no function is steeper than L, at any frequency ν: L alone scales the labels; L and ν together leave their scale and
    make functions vary faster. Every x is one of K unit vectors, the same in all queries, plus noise. Nothing is seen
    twice. Splits are `trained_family` and `held_out_family`, functions of another shape with the same L.

    `truth` holds `feature` `[N, T]`, which vector each x is.

    Args:
        features: K, number of feature vectors.
        dim: D, width of an x; a column has D + 1 features.
        context: C, pairs shown before the query; at least K, so that features recur.
        noise: standard deviation of what is added to each coordinate of a feature vector; it vanishes in the theory.
        family: shape of the trained functions: `sine`, `piecewise_linear` (a triangle wave), `quadratic` (constant
            beyond distance 1), or `linear`.
        held_out_family: shape of those that are tested only.
        lipschitz: L.
        frequency: ν.
        feature_gram: `orthonormal` feature vectors, or `random` unit vectors, which need not be orthogonal.
        feature_probs: how often each feature vector is drawn, K numbers; None means all alike.
        test_size: queries of each evaluation split.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    def __init__(
        self,
        features: int = 10,
        dim: int = 20,
        context: int = 60,
        noise: float = 0.02,
        family: Family = "sine",
        held_out_family: Family = "piecewise_linear",
        lipschitz: float = 2.0,
        frequency: float = 1.0,
        feature_gram: Literal["orthonormal", "random"] = "orthonormal",
        feature_probs: Sequence[float] | None = None,
        test_size: int = 1000,
        batch: int = 128,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        problems = self.check(
            features, dim, context, noise, family, held_out_family, lipschitz, frequency, feature_gram, feature_probs,
            test_size, batch, evaluation_batch,
        )  # fmt: skip
        insist(problems)
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.features, self.dim, self.context, self.noise = features, dim, context, noise
        self.family, self.held_out_family, self.lipschitz = family, held_out_family, lipschitz
        self.frequency, self.feature_gram, self.test_size = frequency, feature_gram, test_size
        self.feature_probs = torch.tensor(feature_probs or [1 / features] * features)
        self.vectors = self._vectors()

    @staticmethod
    def check(
        features: int = 10,
        dim: int = 20,
        context: int = 60,
        noise: float = 0.02,
        family: str = "sine",
        held_out_family: str = "piecewise_linear",
        lipschitz: float = 2.0,
        frequency: float = 1.0,
        feature_gram: str = "orthonormal",
        feature_probs: Sequence[float] | None = None,
        test_size: int = 1000,
        batch: int = 128,
        evaluation_batch: int = 4096,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        sizes = {"features": features, "dim": dim, "context": context, "test_size": test_size}
        problems = [Problem(key, value, "give a number, 1 or more") for key, value in sizes.items() if value < 1]
        known = get_args(Family)
        for key, value in (("family", family), ("held_out_family", held_out_family)):
            if value not in known:
                problems.append(Problem(key, value, f"use {', '.join(known)}"))
        if family == held_out_family:
            problems.append(Problem("held_out_family", held_out_family, "use another than the trained family"))
        if noise < 0:
            problems.append(Problem("noise", noise, "use 0 or more"))
        for key, number in (("lipschitz", lipschitz), ("frequency", frequency)):
            if number <= 0:
                problems.append(Problem(key, number, "use a positive number"))
        if feature_gram not in ("orthonormal", "random"):
            problems.append(Problem("feature_gram", feature_gram, "use orthonormal or random"))
        elif feature_gram == "orthonormal" and features > dim >= 1:
            problems.append(Problem("features", features, f"at most dim={dim} vectors are orthonormal; or use random"))
        if context < features:
            problems.append(Problem("context", context, f"features must recur: use features={features} or more"))
        if feature_probs is not None and (
            len(feature_probs) != features or min(feature_probs) <= 0 or abs(sum(feature_probs) - 1) > 1e-6
        ):
            fix = f"give features={features} positive numbers that add up to 1"
            problems.append(Problem("feature_probs", list(feature_probs), fix))
        return problems + RegimeDataModule.check_common(batch=batch, evaluation_batch=evaluation_batch)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`; the label, unknown in the query, is not compared."""
        fields = (Field("x", self.dim), Field("y", 1, matched=False))
        return Task(self.context + 1, outputs=1, features=self.dim + 1, fields=fields, answer=self.dim)

    def _vectors(self) -> Tensor:
        """The feature vectors `[K, D]`, of length 1."""
        shape = (self.dim, self.dim if self.feature_gram == "orthonormal" else self.features)
        drawn = torch.randn(shape, generator=keyed_generator("feature vectors", self.seed))
        unit: Tensor = torch.linalg.qr(drawn).Q if self.feature_gram == "orthonormal" else drawn / drawn.norm(dim=0)
        return unit.T[: self.features].contiguous()

    def queries(self, family: str, size: int, *key: int | str) -> Split:
        """`size` queries about functions of `family`, selected by `key`."""
        generator, length = keyed_generator(*key), self.context + 1
        feature = torch.multinomial(self.feature_probs, size * length, replacement=True, generator=generator)
        feature = feature.view(size, length)
        x = self.vectors[feature] + self.noise * torch.randn(size, length, self.dim, generator=generator)
        w = torch.randn(size, self.dim, 1, generator=generator)
        b = 2 * torch.rand(size, 1, generator=generator) - 1
        along = (x @ (w / w.norm(dim=1, keepdim=True))).squeeze(-1)  # [N, T]
        y = self.lipschitz / self.frequency * SHAPES[family](self.frequency * along + b)
        shown = y.clone()
        shown[:, -1] = 0
        return Split(
            inputs=torch.cat([x, shown[..., None]], -1),
            at=torch.full((size, 1), self.context),
            targets=y[:, -1:],
            mask=torch.ones(size, 1, dtype=torch.bool),
            positions=(*(f"xy{i + 1}" for i in range(self.context)), "x"),
            truth={"feature": feature},
        )

    def groups(self, split: Split) -> Mapping[str, Tensor]:
        """Columns of the context with the query's feature, and all others: `[N, 1, T]` bool each."""
        same = split.truth["feature"] == split.truth["feature"][:, -1:]
        context = torch.arange(self.context + 1, device=same.device) < self.context
        return {"query_feature": (same & context)[:, None], "other_features": (~same & context)[:, None]}

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        size, seed = self.batch, self.order_seed
        stream = FreshStream(lambda step: self.queries(self.family, size, "train", seed, step), size)
        families = {"trained_family": self.family, "held_out_family": self.held_out_family}
        splits = {name: self.queries(family, self.test_size, name, self.seed) for name, family in families.items()}
        return Generated(stream, splits)
