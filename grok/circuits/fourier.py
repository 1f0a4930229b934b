"""The Fourier circuit of modular arithmetic: key frequencies, restricted and excluded loss (Nanda et al. 2023, arXiv
2301.05217, sections 4 and 5).

A model that adds by rotations has logits that are sums of cos(w(a + b)) and sin(w(a + b)), w = 2πk / p, for a few *key
frequencies* k. The same holds of a - b, and of the product of numbers that are not zero, whose logarithms to the base
of a primitive root add modulo p - 1.

Shape legend: N pair, M size of the group (p, or p - 1 for products), K frequency 1 … M // 2, V output, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from grok.circuits.examples import analysing
from grok.circuits.grid import Grid
from grok.data.keyed import keyed_hash
from grok.data.modular_arithmetic import ModularArithmetic
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel

__all__ = ["Fourier", "discrete_logarithms", "fourier_analysis"]

LARGEST_MODULUS = 199  # p³ logits, and a thousand resamples of p² pairs: about a gigabyte
_DRAWS = 8  # sets of random frequencies, whose mean is the floor


@dataclass(frozen=True)
class Fourier:
    """What the logits over all pairs are made of.

    Args:
        frequencies: the key frequencies k, the one with the largest share first.
        shares: `[K]` share of the logits' variance that cos(w(a ∘ b)) and sin(w(a ∘ b)) hold, for k = 1, 2, …
        embedding: `[K]` norm of the embedding's cos and sin components, for k = 1, 2, …
        loss: `full` logits, `restricted` to the constant and the key frequencies, and with the key frequencies
            `excluded`; over `all` pairs, those in `train`ing, and the `test` pairs. The floor is the loss with as many
            random other frequencies instead; NaN if fewer others are left.
        accuracy: the same of the accuracy.
    """

    frequencies: tuple[int, ...]
    shares: Tensor
    embedding: Tensor
    loss: Grid
    accuracy: Grid

    @property
    def held(self) -> float:
        """Share of the logits' variance that the key frequencies hold."""
        return float(self.shares[[k - 1 for k in self.frequencies]].sum())


def fourier_analysis(
    model: StepModel,
    regime: ModularArithmetic,
    share: float = 0.9,
    most: int = 5,
    batch: int = 4096,
    seed: int = 0,
) -> Fourier:
    """Fourier transform of the logits over all p² pairs, along the result.

    The key frequencies are the fewest whose components hold `share` of the variance of the logits, at most `most`. For
    each pair the mean over outputs is taken off before, as it is of no consequence; outputs are the p numbers only. As
    a ∘ b takes each value equally often, the part of the logits that is a function of a ∘ b is their mean over the
    pairs with that result, and its components are the discrete Fourier transform of that mean.

    Args:
        model: any step model for the regime.
        regime: says the operation, the modulus, and which pairs are trained.
        share: of the variance, that the key frequencies should hold.
        most: key frequencies at most (Nanda et al. find five).
        batch: most pairs of one forward pass; p³ logits are kept.
        seed: selects the random frequencies of the floor.

    Raises:
        BadInput: for a modulus above 199, or products modulo a number that is not prime or is 2.
    """
    if not 0 < share <= 1 or most < 1:
        key, value = ("most", most) if most < 1 else ("share", share)
        raise BadInput(Problem(key, value, "use 1 or more" if most < 1 else "use a share above 0, at most 1"))
    numbers = _numbers(regime)
    size = len(numbers)
    one, two = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
    result = (one - two if regime.operation == "subtract" else one + two) % size
    split = regime.encode(numbers[one], numbers[two])
    logits = _logits(model, split, batch)
    spectrum, shares = _spectrum(logits, result, size)
    keys = _smallest_set(shares, share, most)
    loss, accuracy = _measured(logits, spectrum, result, numbers[result], keys, seed)
    trained = regime.membership()[numbers[one] * regime.modulus + numbers[two]]
    return Fourier(
        frequencies=tuple(keys),
        shares=shares,
        embedding=_embedding_norms(model, split.take(two == 0)),
        loss=_grid("fourier/loss", loss, trained),
        accuracy=_grid("fourier/accuracy", accuracy, trained),
    )


def discrete_logarithms(modulus: int) -> Tensor:
    """Powers g⁰, g¹, … of the smallest primitive root g of a prime: `[modulus - 1]`, every number but 0 once.

    Raises:
        BadInput: if the modulus is not prime.
    """
    for root in range(1, modulus):
        powers = [pow(root, exponent, modulus) for exponent in range(modulus - 1)]
        if len(set(powers)) == modulus - 1 and 0 not in powers:
            return torch.tensor(powers)
    raise BadInput(Problem("modulus", modulus, "products have logarithms modulo a prime only: use one, such as 97"))


def _numbers(regime: ModularArithmetic) -> Tensor:
    """The numbers, ordered so that the operation adds (or subtracts) their places: `[M]`."""
    if regime.modulus > LARGEST_MODULUS:
        raise BadInput(Problem("modulus", regime.modulus, f"use at most {LARGEST_MODULUS} for this analysis"))
    multiply = regime.operation == "multiply"
    numbers = discrete_logarithms(regime.modulus) if multiply else torch.arange(regime.modulus)
    if len(numbers) < 2:
        raise BadInput(Problem("modulus", regime.modulus, "too small to have a frequency: use 3 or more"))
    return numbers


def _logits(model: StepModel, split: Split, batch: int) -> Tensor:
    """Logits of the answers `[N, V]` in float64, with mean 0 over the V possible answers."""
    parts = []
    with analysing(model) as device:
        for piece in split.chunks(batch):
            here = piece.to(device)
            logits = model(here.inputs, at=here.at[:, :1], position_ids=here.position_ids)[:, 0]
            parts.append((logits if here.labels is None else logits[:, here.labels]).cpu().double())
    whole = torch.cat(parts)
    return whole - whole.mean(1, keepdim=True)


def _spectrum(logits: Tensor, result: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Fourier coefficients `[1 + K, V]` of the logits along the result, and the variance share `[K]` of each."""
    mean = torch.zeros(size, logits.shape[1], dtype=logits.dtype).index_add_(0, result, logits) / size
    spectrum = torch.fft.rfft(mean, dim=0)
    twice = torch.full((len(spectrum),), 2.0, dtype=logits.dtype)  # a frequency and its negative
    twice[0] = 1
    if size % 2 == 0:
        twice[-1] = 1
    power = twice * spectrum.abs().square().sum(1) / size**2
    variance = (logits - logits.mean(0)).square().sum(1).mean()
    return spectrum, (power[1:] / variance).nan_to_num(0.0)


def _smallest_set(shares: Tensor, share: float, most: int) -> list[int]:
    ordered = shares.sort(descending=True, stable=True)
    enough = int((ordered.values.cumsum(0) < share - 1e-9).sum()) + 1
    return [int(place) + 1 for place in ordered.indices[: min(enough, most)]]


def _component(spectrum: Tensor, frequencies: Sequence[int], result: Tensor, size: int) -> Tensor:
    """The part of the logits `[N, V]` at some frequencies (0 is the constant)."""
    kept = torch.zeros_like(spectrum)
    kept[list(frequencies)] = spectrum[list(frequencies)]
    by_result: Tensor = torch.fft.irfft(kept, n=size, dim=0)
    return by_result[result]


def _measured(
    logits: Tensor, spectrum: Tensor, result: Tensor, answer: Tensor, keys: Sequence[int], seed: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Loss and accuracy, each `[N, 3]` of the full, restricted and excluded logits, and with random frequencies."""
    size = int(result.max()) + 1

    def measure(frequencies: Sequence[int]) -> tuple[Tensor, Tensor]:
        kept = _component(spectrum, frequencies, result, size)
        constant = _component(spectrum, [0], result, size)
        three = torch.stack([logits, constant + kept, logits - kept], 1)
        loss = F.cross_entropy(three.flatten(0, 1), answer.repeat_interleave(3), reduction="none").view(-1, 3)
        return loss, (three.argmax(-1) == answer[:, None]).double()

    loss, accuracy = measure(keys)
    others = torch.tensor([k for k in range(1, len(spectrum)) if k not in keys], dtype=torch.int64)
    if len(others) < len(keys):  # fewer frequencies hold less, whichever they are
        return (loss, torch.full_like(loss, torch.nan)), (accuracy, torch.full_like(accuracy, torch.nan))
    draws = [keyed_hash("random", seed, draw, others).argsort()[: len(keys)] for draw in range(_DRAWS)]
    random = [measure(others[draw].tolist()) for draw in draws]
    floors = [torch.stack(one).mean(0) for one in zip(*random, strict=True)]
    return (loss, floors[0]), (accuracy, floors[1])


def _grid(name: str, values: tuple[Tensor, Tensor], trained: Tensor) -> Grid:
    axes = {"logits": ("full", "restricted", "excluded"), "pairs": ("all", "train", "test")}
    counted = torch.stack([torch.ones_like(trained), trained, ~trained], 1)
    whole, floor = (one[..., None].masked_fill(~counted[:, None], torch.nan) for one in values)
    floor[:, 0] = torch.nan  # the full logits know no frequencies
    return Grid.of(name, axes, whole, floor)


def _embedding_norms(model: StepModel, split: Split) -> Tensor:
    """Norms `[K]` of the components of S[0, a] over a `[M, D]` along the cosines and sines, taken to unit length."""
    with analysing(model) as device:
        here = split.to(device)
        ids = here.position_ids
        state, only = model.embed(here.inputs, ids), model.streams if len(model.streams) == 1 else None
    # Where the embedding is beside several streams, those that start as constants add no frequency.
    parts = [stream[:, 0] for name, stream in state.items() if only is None or name in only]
    embedded = torch.cat(parts, 1).cpu().double()
    spectrum = torch.fft.rfft(embedded, dim=0, norm="ortho")[1:].abs().square().sum(1)
    twice = torch.full_like(spectrum, 2.0)
    if len(embedded) % 2 == 0:
        twice[-1] = 1
    norms: Tensor = (twice * spectrum).sqrt()
    return norms
