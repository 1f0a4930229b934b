"""Nonlinear regression: functions as steep as promised, features that recur, and an answer that can be looked up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import NonlinearRegression
from grok.errors import BadInput

FAMILIES = ["sine", "piecewise_linear", "quadratic", "linear"]
few = settings(deadline=None, max_examples=15)


@st.composite
def regimes(draw, **fixed):
    features = draw(st.integers(1, 6))
    family, held_out = draw(st.permutations(FAMILIES))[:2]
    arguments = {
        "features": features,
        "dim": draw(st.integers(features, 9)),
        "context": draw(st.integers(features, 20)),
        "noise": draw(st.sampled_from([0.0, 0.02, 0.5])),
        "lipschitz": draw(st.sampled_from([0.5, 1.0, 4.0])),
        "frequency": draw(st.sampled_from([0.5, 1.0, 3.0])),
        "feature_gram": draw(st.sampled_from(["orthonormal", "random"])),
        "seed": draw(st.integers(0, 10**6)),
    }
    return NonlinearRegression(family=family, held_out_family=held_out, test_size=40, **arguments | fixed)


@few
@given(regimes())
def test_no_function_is_steeper_than_promised_and_the_label_of_the_query_is_not_shown(regime):
    assert set(regime.splits) == {"trained_family", "held_out_family"}
    for split in regime.splits.values():
        x, y = split.inputs[..., :-1], split.inputs[..., -1].clone()
        assert (y[:, -1] == 0).all()
        y[:, -1] = split.targets[:, 0]
        rise, run = (y[:, :, None] - y[:, None]).abs(), (x[:, :, None] - x[:, None]).norm(dim=-1)
        assert (rise <= regime.lipschitz * run + 1e-4).all()
        assert (split.at == regime.context).all()
        assert split.inputs.shape[1:] == (regime.task.positions, regime.task.features)


@few
@given(regimes(noise=0.0))
def test_without_noise_the_answer_stands_at_every_column_with_the_feature_of_the_query(regime):
    for split in regime.splits.values():
        same = regime.groups(split)["query_feature"][:, 0]
        assert same.any()
        off = (split.inputs[..., -1] - split.targets).abs()
        assert off[same].max() < 1e-4
        torch.testing.assert_close(split.inputs[..., :-1], regime.vectors[split.truth["feature"]])


@few
@given(regimes())
def test_the_groups_share_out_the_context(regime):
    split = regime.splits["trained_family"]
    groups = torch.stack(list(regime.groups(split).values()))
    assert groups.shape == (2, len(split), 1, regime.context + 1)
    assert (groups.sum(0)[..., :-1] == 1).all()
    assert not groups[..., -1].any()


def test_feature_vectors():
    regime = NonlinearRegression(features=4, dim=6)
    torch.testing.assert_close(regime.vectors @ regime.vectors.T, torch.eye(4))
    oblique = NonlinearRegression(features=9, dim=6, feature_gram="random").vectors
    torch.testing.assert_close(oblique.norm(dim=1), torch.ones(9))
    assert (oblique @ oblique.T - torch.eye(9)).abs().max() > 0.1


def test_features_are_drawn_as_often_as_asked():
    wanted = [0.5, 0.3, 0.2]
    regime = NonlinearRegression(features=3, feature_probs=wanted)
    counts = regime.splits["trained_family"].truth["feature"].flatten().bincount()
    torch.testing.assert_close(counts / counts.sum(), torch.tensor(wanted), atol=0.01, rtol=0)


def test_the_constant_alone_scales_the_labels_and_with_the_frequency_it_does_not():
    one, four, faster = (
        NonlinearRegression(lipschitz=constant, frequency=frequency).generated.train.batch(3).queries
        for constant, frequency in ((1, 1), (4, 1), (4, 4))
    )
    torch.testing.assert_close(4 * one.targets, four.targets)
    assert one.targets.std() == pytest.approx(float(faster.targets.std()), rel=0.2)
    # Labels of one prompt differ more: the function varies more from feature to feature.
    within = [split.inputs[:, :-1, -1].var(1).mean() for split in (one, faster)]
    assert within[1] > 1.5 * within[0]


def test_batches_are_a_pure_function_of_seed_and_step():
    stream, again, other = (NonlinearRegression(seed=seed).generated.train for seed in (3, 3, 4))
    assert torch.equal(stream.batch(7).queries.inputs, again.batch(7).queries.inputs)
    assert not torch.equal(stream.batch(7).queries.inputs, stream.batch(8).queries.inputs)
    assert not torch.equal(stream.batch(7).queries.inputs, other.batch(7).queries.inputs)


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        NonlinearRegression(
            dim=5,
            context=8,
            noise=-1,
            family="cubic",
            lipschitz=0,
            frequency=-1,
            feature_probs=[1],
            test_size=0,
            batch=0,
        )
    keys = ["test_size", "family", "noise", "lipschitz", "frequency", "features", "context", "feature_probs", "batch"]
    assert [problem.key for problem in error.value.problems] == keys
    with pytest.raises(BadInput, match="held_out_family='sine': use another than the trained family"):
        NonlinearRegression(held_out_family="sine")
    assert NonlinearRegression(features=30, feature_gram="random").vectors.shape == (30, 20)
