"""Keyed hashes and permutations: pure functions, alike everywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data.keyed import keyed_hash, keyed_permutation, keyed_share, keyed_uniform


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 10))
def test_permutation_of_any_size(size, seed, epoch):
    image = keyed_permutation(torch.arange(size), size, "order", seed, epoch)
    assert sorted(image.tolist()) == list(range(size))


def test_one_permutation_per_key():
    rows = keyed_permutation(torch.arange(50).expand(3, 50), 50, "order", 0, torch.arange(3)[:, None])
    for epoch in range(3):
        assert torch.equal(rows[epoch], keyed_permutation(torch.arange(50), 50, "order", 0, epoch))
    assert not torch.equal(rows[0], rows[1])


def test_an_element_of_a_permutation_needs_no_other_element():
    whole = keyed_permutation(torch.arange(1000), 1000, "order", 7)
    assert torch.equal(keyed_permutation(torch.tensor([999, 3]), 1000, "order", 7), whole[[999, 3]])


def test_permutation_mixes():
    image = keyed_permutation(torch.arange(10_000), 10_000, "order", 1).double()
    correlation = torch.corrcoef(torch.stack([torch.arange(10_000).double(), image]))[0, 1]
    assert abs(correlation) < 0.05
    assert (image == torch.arange(10_000)).sum() < 10  # a random permutation has one fixed point on average


def test_purposes_and_seeds_are_independent():
    x = torch.arange(1000)
    hashes = [keyed_hash(purpose, seed, x) for purpose in ("iid", "phi") for seed in (0, 1)]
    assert len(torch.cat(hashes).unique()) == 4000


def splitmix(*parts):
    """The hash again, in integers without bounds."""
    x = 0
    for part in parts:
        x = (x + 0x9E3779B97F4A7C15 + part) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


def test_the_hash_is_splitmix64():
    expected = [splitmix(int.from_bytes(b"order", "little"), 5, value) for value in (0, 1, 10**12)]
    assert keyed_hash("order", 5, torch.tensor([0, 1, 10**12])).tolist() == expected


@pytest.mark.parametrize("share", [0.0, 0.005, 0.3, 0.999, 1.0])
def test_share(share):
    drawn = keyed_share(share, "iid", 3, torch.arange(100_000)).double().mean().item()
    assert drawn == share if share in (0, 1) else abs(drawn - share) < 5 * (share * (1 - share) / 100_000) ** 0.5


def test_uniform():
    counts = torch.bincount(keyed_uniform(10, "tail", 0, torch.arange(100_000)), minlength=10)
    assert len(counts) == 10
    assert (counts - 10_000).abs().max() < 500


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    x = torch.arange(10_000)
    assert torch.equal(keyed_hash("phi", 1, x.cuda()).cpu(), keyed_hash("phi", 1, x))
    assert torch.equal(keyed_uniform(77, "phi", 1, x.cuda()).cpu(), keyed_uniform(77, "phi", 1, x))
    assert torch.equal(keyed_permutation(x.cuda(), 10_000, "order", 1).cpu(), keyed_permutation(x, 10_000, "order", 1))
