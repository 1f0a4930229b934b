"""Means, intervals and floors of grids."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grok.circuits import Grid, bootstrap, choose_examples
from grok.data import TwoHopComposition
from grok.errors import BadInput

AXES = {"step": ("S[0]", "S[1]"), "position": ("h", "r1")}


def test_the_interval_covers_the_mean_of_the_population_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    samples = (torch.rand(80, 400, generator=generator) < 0.3).float()  # 400 samples of 80 examples
    low, high = bootstrap(samples)
    covered = ((low <= 0.3) & (high >= 0.3)).float().mean().item()
    assert 0.92 <= covered <= 0.97


def test_the_interval_is_that_of_the_binomial():
    low, high = bootstrap(torch.tensor([1.0] * 60 + [0.0] * 40)[:, None], resamples=20_000)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert float(low) == pytest.approx(0.6 - half, abs=0.015)
    assert float(high) == pytest.approx(0.6 + half, abs=0.015)


def test_the_difference_from_a_paired_floor_is_resampled_together():
    noise = torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    low, high = bootstrap(noise + 0.1, noise)  # every example exceeds its own floor by 0.1
    assert float(low) == pytest.approx(0.1, abs=1e-6)
    assert float(high) == pytest.approx(0.1, abs=1e-6)
    grid = Grid.of("x", {"cell": ("a",)}, noise + 0.1, noise)
    assert grid.above_floor.tolist() == [True]
    assert Grid.of("x", {"cell": ("a",)}, noise, noise).above_floor.tolist() == [False]
    assert grid.low < grid.floor  # unpaired, the noise would hide it


def test_examples_without_a_value_do_not_count():
    values = torch.tensor([[[1.0, 0.0], [math.nan, math.nan]], [[0.0, math.nan], [1.0, math.nan]]])
    grid = Grid.of("x", AXES, values)
    assert grid["S[0]", "h"] == 0.5
    assert grid["S[1]", "h"] == 1.0
    assert grid.n.tolist() == [[2, 1], [1, 0]]
    cells = dict(grid.cells())
    assert cells["S[1]", "r1"] == {"value": None, "low": None, "high": None, "floor": None, "n": 0}
    assert cells["S[0]", "r1"]["value"] == 0.0


@given(st.integers(1, 40), st.integers(0, 100))
def test_intervals_hold_the_mean_and_do_not_depend_on_other_cells(n, seed):
    values = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed))
    grid = Grid.of("x", AXES, values, seed=seed)
    assert (grid.low <= grid.values + 1e-6).all()
    assert (grid.values <= grid.high + 1e-6).all()
    alone = Grid.of("x", {"step": ("S[0]",), "position": ("h",)}, values[:, :1, :1], seed=seed)
    assert torch.equal(alone.low[0, 0], grid.low[0, 0])


def test_a_grid_is_printed_as_a_table():
    grid = Grid.of("tracing/changed", AXES, torch.tensor([[[0.0, 1.0], [0.5, 0.25]]]))
    assert str(grid).splitlines() == [
        "tracing/changed (n = 1)",
        "                h     r1",
        "S[0]         0.00   1.00",
        "S[1]         0.50   0.25",
    ]
    with pytest.raises(ValueError, match="axes of lengths"):
        Grid.of("x", AXES, torch.zeros(3, 2))


def test_examples_are_the_same_for_every_checkpoint_and_nested():
    split = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2).splits["train_inferred"]
    few, more = choose_examples(split, 20), choose_examples(split, 60)
    rows = {tuple(row) for row in more.inputs.tolist()}
    assert len(rows) == 60
    assert {tuple(row) for row in few.inputs.tolist()} < rows
    assert torch.equal(few.inputs, choose_examples(split, 20).inputs)
    assert not torch.equal(few.inputs, choose_examples(split, 20, seed=1).inputs)
    assert len(choose_examples(split)) == len(split) < 300
    with pytest.raises(BadInput, match=r"examples=1000: the split has 1.. queries: use at most as many"):
        choose_examples(split, 1000)
