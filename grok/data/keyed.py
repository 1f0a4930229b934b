"""Randomness as a pure function: keyed hashes and permutations in integer tensor operations.

The same on CPU and GPU, on any number of workers, and O(1) per element, so that no order is ever stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POSITIVE", "keyed_generator", "keyed_hash", "keyed_permutation", "keyed_share", "keyed_uniform"]

# Constants of SplitMix64 (Steele, Lea and Flood 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
POSITIVE = (1 << 63) - 1
"""`keyed_hash(…) & POSITIVE` is not negative, so that -1 can stand for none."""


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # >> on int64 copies the sign bit; a hash needs zeros


def _mix(x: Tensor) -> Tensor:
    # In place from the second operation on: half of the time went into memory for intermediate results.
    x = (x ^ _shift(x, 30)).mul_(_MIX_1)
    x = x.bitwise_xor_(_shift(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift(x, 31))


def keyed_hash(*parts: Tensor | int | str) -> Tensor:
    """A 64-bit hash of all `parts`, broadcast together: int64 tensor, any sign.

    Strings name the purpose (`"order"`), so that two uses of one seed are independent.
    """
    tensors = [part for part in parts if isinstance(part, Tensor)]
    x = torch.zeros((), dtype=torch.int64, device=tensors[0].device if tensors else None)
    for part in parts:
        value = int.from_bytes(part.encode()[:7], "little") if isinstance(part, str) else part
        x = _mix(x + _GOLDEN + value)
    return x


def keyed_uniform(bound: Tensor | int, *parts: Tensor | int | str) -> Tensor:
    """An integer in `[0, bound)` for every element of the broadcast `parts`; the bias is below `bound` / 2⁶³."""
    return (keyed_hash(*parts) & POSITIVE) % bound


def keyed_generator(*key: int | str) -> torch.Generator:
    """A generator on the CPU that is selected by `key`."""
    # It looks at 32 bits of its seed only, so they must depend on the whole key.
    return torch.Generator().manual_seed(int(keyed_uniform(1 << 32, *key)))


def keyed_share(share: float, *parts: Tensor | int | str) -> Tensor:
    """True for a `share` of all possible `parts`, decided for each by itself: a Bernoulli draw without a generator."""
    # At most 2⁶³ - 1, not below 2⁶³: that number does not fit, and a share of 1 would silently mean none.
    return (keyed_hash(*parts) & POSITIVE) <= int(share * (1 << 62)) * 2 - 1


def keyed_permutation(
    index: Tensor, size: int, *key: Tensor | int | str, which: Tensor | None = None, rounds: int = 32
) -> Tensor:
    """Image of `index` under a pseudorandom permutation of `0 … size - 1`, one per `key`.

    The swap-or-not shuffle (Hoang, Morris and Rogaway 2012): each round pairs x with K - x and swaps the pair or not by
    a hash bit, so it is a permutation of *any* size by construction, without rejection and so without waiting for
    the device.

    Args:
        index: int64 tensor of positions, any shape.
        size: number of elements permuted, at least 1.
        key: what selects the permutation; tensor parts broadcast with `index` (a different permutation per element).
        which: of the shape of `index`, for few permutations of many elements: element i takes key `which[i]`, and the
            parts of `key` have one entry per permutation.
        rounds: swap rounds; 32 mixes a million rows well.
    """
    keyed = _mix(keyed_hash(*key).to(index.device) + _GOLDEN)  # what hashes of (key, …) have in common
    x = index
    for round_ in range(rounds):
        offset = (_mix(keyed + _GOLDEN + 2 * round_) & POSITIVE) % size
        salt = _mix(keyed + _GOLDEN + (2 * round_ + 1)) + _GOLDEN
        if which is not None:
            offset, salt = offset[which], salt[which]
        partner = offset - x
        partner = torch.where(partner < 0, partner + size, partner)
        swap = _mix(salt + torch.maximum(x, partner)) & 1
        x = torch.where(swap.bool(), partner, x)
    return x
