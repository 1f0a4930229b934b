"""Means, intervals and floors of grids."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grok.circuits import Grid, bootstrap, choose_examples
from grok.circuits.grid import group_means
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


def by_hand_wilson(right, n, z=1.96):
    """The roots of (share - x)² = z² x (1 - x) / n, what the interval is defined by."""
    share = right / n
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@given(st.integers(1, 60), st.integers(0, 60), st.booleans())
def test_shares_have_the_interval_of_wilson(n, right, gaps):
    right = min(right, n)
    values = torch.tensor([1.0] * right + [0.0] * (n - right) + [math.nan] * 5 * gaps)
    other = torch.linspace(-1, 2, len(values))
    grid = Grid.of("x", {"cell": ("share", "other")}, torch.stack([values, other], 1))
    low, high = by_hand_wilson(right, n)
    assert float(grid.low[0]) == pytest.approx(low, abs=1e-6)
    assert float(grid.high[0]) == pytest.approx(high, abs=1e-6)
    assert grid.low[0] <= grid.values[0] <= grid.high[0]  # to the bit, where all examples agree
    expected = bootstrap(other[:, None])
    assert (float(grid.low[1]), float(grid.high[1])) == pytest.approx((float(expected[0]), float(expected[1])))


def test_intervals_of_few_shares_cover_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    for share in (0.05, 0.5, 0.95):
        samples = (torch.rand(15, 2000, generator=generator) < share).float()
        grid = Grid.of("x", {"cell": tuple(map(str, range(2000)))}, samples)
        assert ((grid.low <= share) & (grid.high >= share)).float().mean() > 0.92
        low, high = bootstrap(samples)
        if share != 0.5:  # what it is for
            assert ((low <= share) & (high >= share)).float().mean() < 0.6


def test_a_floor_of_other_examples_that_is_as_low_is_not_exceeded():
    grid = Grid.of("x", {"cell": ("a", "b")}, torch.tensor([[0.0, 1.0]]).repeat(20, 1), torch.zeros(3, 2))
    assert grid.above_floor.tolist() == [False, True]
    paired = Grid.of("x", {"cell": ("a",)}, torch.tensor([[1.0], [0.0]] * 4), torch.tensor([[0.0], [0.0]] * 4))
    assert paired.above_floor.tolist() == [True]


@pytest.mark.parametrize("cells", [1, 4096, 4097, 9000])
def test_any_number_of_cells_is_resampled_in_pieces(cells, monkeypatch):
    values = torch.randn(6, cells, generator=torch.Generator().manual_seed(0))
    whole, seen = torch.nanquantile, []
    monkeypatch.setattr(
        torch, "nanquantile", lambda x, *rest, **named: seen.append(x.shape) or whole(x, *rest, **named)
    )
    low, high = bootstrap(values, resamples=50)
    assert max(shape[1] for shape in seen) <= 4096
    assert low.shape == high.shape == (cells,)
    last = bootstrap(values[:, -1:], resamples=50)
    assert (float(low[-1]), float(high[-1])) == pytest.approx((float(last[0]), float(last[1])))


def test_a_ratio_is_resampled_together():
    base = (torch.rand(40, 1, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    axes = {"cell": ("a", "b")}
    grid = Grid.of("x", axes, torch.cat([base, 2 * base], 1), torch.cat([base, base], 1), base=base)
    for end in (grid.values, grid.low, grid.high):
        assert end.tolist() == [1, 2]  # in every resample
    assert grid.floor.tolist() == [1, 1]
    assert grid.above_floor.tolist() == [False, True]
    none = Grid.of("x", axes, torch.ones(40, 2), base=torch.zeros(40, 1))
    assert all(end.isnan().all() for end in (none.values, none.low, none.high))


def test_the_interval_of_a_ratio_is_that_of_the_delta_method():
    generator = torch.Generator().manual_seed(0)
    base = 2 + torch.randn(400, 1, generator=generator).double()
    values = base / 2 + torch.randn(400, 1, generator=generator).double() / 4
    low, high = bootstrap(values, base=base, resamples=20_000)
    ratio = values.mean() / base.mean()
    half = 1.96 * float((values - ratio * base).std() / base.mean() / 20)
    assert float(high - low) / 2 == pytest.approx(half, rel=0.05)
    assert float(high + low) / 2 == pytest.approx(float(ratio), abs=half / 5)


def test_group_means_leave_out_what_has_no_value():
    values = torch.tensor([[1.0, math.nan], [3.0, math.nan], [math.nan, 4.0], [5.0, 6.0]])
    means = group_means(values, torch.tensor([9, 9, 9, 2]))
    assert means[:, 0].tolist() == [5, 2]
    assert means[:, 1].tolist() == [6, 4]
    assert group_means(values[:2, 1:], torch.tensor([0, 0])).isnan().all()


def test_no_examples_give_no_interval():
    grid = Grid.of("x", AXES, torch.zeros(0, 2, 2), torch.zeros(0, 2, 2))
    assert grid.n.eq(0).all()
    assert all(one.isnan().all() for one in (grid.values, grid.low, grid.high, grid.floor))
