"""Measures of affine recurrences, on models whose heads are known: one copies, one subtracts."""

import pytest
import torch

from grok.circuits import measures
from grok.data import AffineRecurrence
from grok.models import LoopedTransformer


@pytest.fixture(scope="module")
def regime():
    return AffineRecurrence(terms=8, test_size=200)


def planted(regime, *signs):
    """Two layers of one head each: uniform attention, values are the stream times the sign; read-out as is."""
    model = LoopedTransformer(
        regime.task, width=None, heads=1, layers=2, mlp="none", norm="none", positions="none", projections="no_output",
        bias=False, read_in="fixed", read_out="fixed", init="identity", init_std=0.0,
    )  # fmt: skip
    for block, sign in zip(model.blocks, signs, strict=True):
        block.attn.qkv.weight.data[2] = sign
    return model


def test_error_by_observed_terms(regime):
    split = regime.splits["trained_region"]
    error, correlation, coefficient, _ = measures(regime, planted(regime, 0.0, 0.0), "trained_region", split)
    assert tuple(error.axes["terms"]) == tuple("1234567")
    torch.testing.assert_close(error.values[0], error.values[1])  # without attention the model repeats the term
    copied = (split.inputs[..., 0] - split.targets).square().mean(0)
    torch.testing.assert_close(error.values[1], copied)
    assert error["least_squares", "2"] > 0.01
    assert error["least_squares", "3"] < 1e-3 * error["copy", "3"]
    for state in ("S[0]", "S[2]"):  # the stream is the current term
        assert correlation[state, "current"] == pytest.approx(1)
        assert correlation[state, "next"] < 0.99
        told = [coefficient[state, term] for term in ("current", "previous", "next")]
        assert told == pytest.approx([1, 0, 0], abs=1e-4)


def test_a_head_that_copies_and_one_that_subtracts(regime):
    split = regime.splits["trained_region"]
    told = measures(regime, planted(regime, 1.0, -0.1), "trained_region", split)[3]
    assert told["gain", "0.head0"] == pytest.approx(1, abs=1e-5)
    assert told["gain", "1.head0"] < -0.9
    # Weights are the same on all terms of a place: what is left is that later places have smaller ones.
    assert abs(told["similarity", "0.head0"]) < 0.3
