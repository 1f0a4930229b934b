"""Linear regression in context (Garg et al. 2022, arXiv 2208.01066): continuous columns, squared error, fresh queries.

Shape legend: N query, K example, T column, F feature.
"""

import math

import torch
from torch import Tensor

from grok.data import FreshStream, Generated, RegimeDataModule, Split
from grok.data.keyed import keyed_uniform
from grok.errors import Problem, insist
from grok.task import Task


class LinearRegression(RegimeDataModule):
    """Each query has its own weights w ~ N(0, 1): columns (x₁, y₁), …, (x_K, y_K), (x, 0), and y = w · x / √F is asked.

    Example and value share a column (von Oswald et al. 2023, arXiv 2212.07677), so that one layer can learn it.
    The scale makes the variance of y, the loss of the best constant answer, equal to 1. No query is seen twice, so that
    nothing can be memorised.

    Args:
        features: F, width of an x; a column has F + 1 features.
        examples: K, pairs shown before the query.
        test_size: queries of the evaluation split.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    def __init__(
        self,
        features: int = 2,
        examples: int = 5,
        test_size: int = 1000,
        batch: int = 128,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        insist(self.check(features=features, examples=examples, test_size=test_size))
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.features, self.examples, self.test_size = features, examples, test_size

    @staticmethod
    def check(features: int = 2, examples: int = 5, test_size: int = 1000) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        sizes = {"features": features, "examples": examples, "test_size": test_size}
        return [Problem(key, value, "give a number, 1 or more") for key, value in sizes.items() if value < 1]

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return Task(positions=self.examples + 1, outputs=1, features=self.features + 1)

    def queries(self, size: int, *key: int | str) -> Split:
        """`size` queries selected by `key`: columns `[N, T, F]`, one slot at the last column."""
        # torch's CPU generator looks at 32 bits of its seed only, so they must depend on the whole key.
        generator = torch.Generator().manual_seed(int(keyed_uniform(1 << 32, *key)))
        x = torch.randn(size, self.examples + 1, self.features, generator=generator)
        w = torch.randn(size, self.features, 1, generator=generator)
        y: Tensor = (x @ w).squeeze(-1) / math.sqrt(self.features)  # [N, K + 1]
        columns = torch.cat([x, y[..., None]], -1)
        columns[:, -1, -1] = 0
        return Split(
            inputs=columns,
            at=torch.full((size, 1), self.examples),
            targets=y[:, -1:],
            mask=torch.ones(size, 1, dtype=torch.bool),
            positions=(*(f"xy{i + 1}" for i in range(self.examples)), "x"),
            truth={"w": w.squeeze(-1)},
        )

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        stream = FreshStream(lambda step: self.queries(self.batch, "train", self.order_seed, step), self.batch)
        return Generated(stream, {"fresh": self.queries(self.test_size, "test", self.seed)})
