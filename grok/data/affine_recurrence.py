"""Affine recurrences in context (Bhargav and Gu 2024, arXiv 2410.17438): x → a x + b, a and b new in every sequence.

From the third term on the numbers a and b are determined, and so is every later term. Ranges, lengths and continuous
terms are ours: the paper's are not known to us. More dimensions and polynomials are what it names as future work.

Shape legend: N sequence, T observed term, D width of a term, P degree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.keyed import keyed_generator
from grok.data.split import Split
from grok.data.stream import FreshStream
from grok.errors import Problem, insist
from grok.task import Task

__all__ = ["AffineRecurrence"]

Range = tuple[float, float]
LARGEST = 1_000_000


class AffineRecurrence(RegimeDataModule):
    """Sequences x, f(x), f(f(x)), …; after every term the next one is asked.

    f(x) = b + Σ_p A_p x^p / (D P) over p = 1 … P, powers element by element, each entry of the matrices A_p and of b
    drawn uniformly; with one dimension and degree 1, f(x) = a x + b. Nothing is seen twice. Splits are
    `trained_region` and `held_out_region`, whose coefficients are all from `held_out_coef`.

    `truth` holds `coef` `[N, P, D, D]`, as divided above, and `offset` `[N, D]`. A column is a term, `[N, T, D]`;
    targets are `[N, T]`, or `[N, T, D]` where a term has several values.

    Args:
        coef_range: of the entries of A_p in training, without `held_out_coef` where they overlap.
        offset_range: of the entries of b.
        start_range: of the entries of the first term.
        terms: T + 1, length of a sequence; the last term is only asked.
        dim: D.
        degree: P.
        held_out_coef: of the entries of A_p in the split `held_out_region`.
        test_size: sequences of each evaluation split.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    def __init__(
        self,
        coef_range: Range = (-1.0, 1.0),
        offset_range: Range = (-1.0, 1.0),
        start_range: Range = (-1.0, 1.0),
        terms: int = 13,
        dim: int = 1,
        degree: int = 1,
        held_out_coef: Range = (1.0, 1.2),
        test_size: int = 1000,
        batch: int = 64,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        problems = self.check(
            coef_range, offset_range, start_range, terms, dim, degree, held_out_coef, test_size, batch, evaluation_batch
        )
        insist(problems)
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.coef_range, self.offset_range, self.start_range = coef_range, offset_range, start_range
        self.terms, self.dim, self.degree = terms, dim, degree
        self.held_out_coef, self.test_size = held_out_coef, test_size

    @staticmethod
    def check(
        coef_range: Range = (-1.0, 1.0),
        offset_range: Range = (-1.0, 1.0),
        start_range: Range = (-1.0, 1.0),
        terms: int = 13,
        dim: int = 1,
        degree: int = 1,
        held_out_coef: Range = (1.0, 1.2),
        test_size: int = 1000,
        batch: int = 64,
        evaluation_batch: int = 4096,
    ) -> list[Problem]:
        """All problems with the arguments of the constructor."""
        sizes = {"dim": dim, "degree": degree, "test_size": test_size}
        problems = [Problem(key, value, "give a number, 1 or more") for key, value in sizes.items() if value < 1]
        if terms < 3:
            problems.append(Problem("terms", terms, "use 3 or more: two observed and one asked"))
        ranges = {
            "coef_range": coef_range, "offset_range": offset_range, "start_range": start_range,
            "held_out_coef": held_out_coef,
        }  # fmt: skip
        for key, (low, high) in ranges.items():
            if low >= high:
                problems.append(Problem(key, [low, high], "give the lower end first"))
        if held_out_coef[0] <= coef_range[0] < coef_range[1] <= held_out_coef[1]:
            problems.append(Problem("held_out_coef", list(held_out_coef), "leave a part of coef_range for training"))
        most = {key: max(map(abs, ends)) for key, ends in ranges.items()}
        for key in ("coef_range", "held_out_coef"):
            if most[key] > 1 and (terms - 1) * math.log(most[key]) > math.log(LARGEST):
                fix = f"terms={terms} may grow by more than {LARGEST:,}: use smaller coefficients or fewer terms"
                problems.append(Problem(key, list(ranges[key]), fix))
            if degree > 1 and (most[key] + most["offset_range"] > 1 or most["start_range"] > 1):
                fix = f"with degree={degree} terms run away: keep start_range, and it + offset_range, within [-1, 1]"
                problems.append(Problem(key, list(ranges[key]), fix))
        return problems + RegimeDataModule.check_common(batch=batch, evaluation_batch=evaluation_batch)

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return Task(positions=self.terms - 1, outputs=self.dim, features=self.dim, answers_shown=True)

    @property
    def determined(self) -> int:
        """Number of observed terms from which the next one is determined: 3 for x → a x + b."""
        return self.dim * self.degree + 2

    def powers(self, x: Tensor) -> Tensor:
        """Powers 1 … P of terms `[…, D]`: `[…, P, D]`."""
        return x[..., None, :] ** torch.arange(1, self.degree + 1, device=x.device)[:, None]

    def queries(self, size: int, region: Range, without: Range | None, *key: int | str) -> Split:
        """`size` sequences with coefficients from `region`, and not from `without`, selected by `key`."""
        generator, width, degree = keyed_generator(*key), self.dim, self.degree
        coef = _uniform(region, without, generator, size, degree, width, width) / (width * degree)
        offset = _uniform(self.offset_range, None, generator, size, width)
        terms = [_uniform(self.start_range, None, generator, size, width)]
        for _ in range(self.terms - 1):
            terms.append(offset + torch.einsum("npde,npe->nd", coef, self.powers(terms[-1])))
        sequence = torch.stack(terms, 1)  # [N, T + 1, D]
        observed = self.terms - 1
        return Split(
            inputs=sequence[:, :-1].contiguous(),
            at=torch.arange(observed).expand(size, observed),
            targets=sequence[:, 1:, 0] if width == 1 else sequence[:, 1:],
            mask=torch.ones(size, observed, dtype=torch.bool),
            positions=tuple(f"x{term + 1}" for term in range(observed)),
            truth={"coef": coef, "offset": offset},
        )

    def groups(self, split: Split) -> Mapping[str, Tensor]:
        """The current term, the one before it, and all earlier ones, for each slot: `[N, T, T]` bool each."""
        back = torch.arange(self.terms - 1)[:, None] - torch.arange(self.terms - 1)
        named = {"self": back == 0, "previous": back == 1, "earlier": back > 1}
        return {name: group.expand(len(split), -1, -1) for name, group in named.items()}

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        size, held_out = self.batch, self.held_out_coef

        def make(step: int) -> Split:
            return self.queries(size, self.coef_range, held_out, "train", self.order_seed, step)

        splits = {
            "trained_region": self.queries(self.test_size, self.coef_range, held_out, "trained_region", self.seed),
            "held_out_region": self.queries(self.test_size, held_out, None, "held_out_region", self.seed),
        }
        return Generated(FreshStream(make, size), splits)


def _uniform(region: Range, without: Range | None, generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform numbers of `region`, of which `without` is left out where they overlap."""
    low, high = region
    cut, end = (high, high) if without is None else (min(max(edge, low), high) for edge in without)
    drawn = low + (high - low - (end - cut)) * torch.rand(shape, generator=generator)
    return torch.where(drawn < cut, drawn, drawn + (end - cut))
