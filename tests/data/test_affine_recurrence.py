"""Affine recurrences: terms follow from the truth, regions are kept apart, and three terms determine the next."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.circuits.affine_recurrence import least_squares
from grok.data import AffineRecurrence
from grok.errors import BadInput

few = settings(deadline=None, max_examples=15)
TAME = {"coef_range": (-0.5, 0.5), "offset_range": (-0.4, 0.4), "held_out_coef": (0.5, 0.6)}

regimes = st.builds(
    lambda dim, degree, terms, seed: AffineRecurrence(
        terms=terms, dim=dim, degree=degree, seed=seed, test_size=30, **(TAME if degree > 1 else {})
    ),
    dim=st.integers(1, 3), degree=st.integers(1, 3), terms=st.integers(3, 14), seed=st.integers(0, 10**6),
)  # fmt: skip


@few
@given(regimes)
def test_every_term_follows_from_the_one_before(regime):
    for split in regime.splits.values():
        x = split.inputs.double()
        assert x.shape == (30, regime.task.positions, regime.task.features)
        wanted = split.targets.view_as(x)
        torch.testing.assert_close(wanted[:, :-1], x[:, 1:], check_dtype=False)
        coef, offset = split.truth["coef"].double(), split.truth["offset"].double()
        after = offset[:, None].expand_as(x)
        for power in range(regime.degree):
            after = after + torch.einsum("nde,nte->ntd", coef[:, power], x ** (power + 1))
        torch.testing.assert_close(after, wanted.double(), atol=1e-4, rtol=1e-4)
        assert split.mask.all()
        assert (split.at == torch.arange(regime.terms - 1)).all()


@few
@given(regimes)
def test_terms_stay_bounded(regime):
    assert regime.splits["trained_region"].inputs.abs().max() < (2 * regime.terms if regime.degree == 1 else 1.01)


@few
@given(regimes)
def test_each_slot_sees_itself_the_previous_and_the_earlier_terms(regime):
    split = regime.splits["trained_region"]
    groups = torch.stack(list(regime.groups(split).values())).sum(0)
    length = regime.terms - 1
    assert torch.equal(groups, torch.ones(length, length).tril().long().expand(len(split), -1, -1))


@pytest.mark.parametrize(("trained", "held_out"), [((-1, 1), (1.0, 1.2)), ((-1, 1), (-0.2, 0.3)), ((0, 1), (0.5, 2))])
def test_regions_do_not_overlap(trained, held_out):
    regime = AffineRecurrence(coef_range=trained, held_out_coef=held_out, terms=5)
    batch = regime.generated.train.batch(0).queries
    for split in (regime.splits["trained_region"], batch):
        coef = split.truth["coef"]
        assert ((coef >= trained[0]) & (coef <= trained[1])).all()
        assert ((coef <= held_out[0]) | (coef >= held_out[1])).all()
    coef = regime.splits["trained_region"].truth["coef"]
    assert coef.min() < trained[0] + 0.05  # both ends of what is left are drawn
    assert coef.max() > min(trained[1], held_out[0] if held_out[1] >= trained[1] else trained[1]) - 0.05
    outside = regime.splits["held_out_region"].truth["coef"]
    assert ((outside >= held_out[0]) & (outside <= held_out[1])).all()


@pytest.mark.parametrize(("dim", "degree"), [(1, 1), (2, 1), (1, 2)])
def test_the_fit_is_right_once_the_next_term_is_determined_and_not_before(dim, degree):
    regime = AffineRecurrence(dim=dim, degree=degree, terms=8, test_size=300, **(TAME if degree > 1 else {}))
    split = regime.splits["trained_region"]
    off = (least_squares(regime, split.inputs) - split.targets.view_as(split.inputs)).square().sum(-1)
    assert regime.determined == dim * degree + 2
    before, after = off[:, : regime.determined - 1].mean(0), off[:, regime.determined - 1 :].median(0).values
    assert (before > 1e-5).all()
    assert (after < 1e-8).all()


def test_batches_are_a_pure_function_of_seed_and_step():
    stream, again, other = (AffineRecurrence(seed=seed).generated.train for seed in (3, 3, 4))
    assert torch.equal(stream.batch(7).queries.inputs, again.batch(7).queries.inputs)
    assert not torch.equal(stream.batch(7).queries.inputs, stream.batch(8).queries.inputs)
    assert not torch.equal(stream.batch(7).queries.inputs, other.batch(7).queries.inputs)


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        AffineRecurrence(coef_range=(1, -1), start_range=(2, 2), terms=2, dim=0, degree=0, test_size=0, batch=0)
    keys = ["dim", "degree", "test_size", "terms", "coef_range", "start_range", "batch"]
    assert [problem.key for problem in error.value.problems] == keys
    with pytest.raises(BadInput, match="coef_range=\\[-5, 5\\]: terms=13 may grow by more than 1,000,000"):
        AffineRecurrence(coef_range=(-5, 5))
    with pytest.raises(BadInput, match="with degree=2 terms run away"):
        AffineRecurrence(degree=2)
    with pytest.raises(BadInput, match="leave a part of coef_range for training"):
        AffineRecurrence(held_out_coef=(-1, 1))
