"""Measures of nonlinear regression, on the layer of the theory with a key-query matrix that is known."""

import pytest
import torch

from grok.circuits import group_mass, measures
from grok.data import NonlinearRegression
from grok.models import LoopedTransformer

LAYER = {"layers": 1, "heads": 1, "mlp": "none", "norm": "none", "positions": "none", "projections": "key_query"}
LAYER |= {"sees_itself": False, "scaled": False, "residual": False, "read_in": "fixed", "read_out": "fixed"}


@pytest.fixture(scope="module")
def regime():
    return NonlinearRegression(features=4, dim=6, context=40, noise=0.0, test_size=200)


def layer(regime, strength):
    """Scores are `strength` times the inner product of inputs."""
    model = LoopedTransformer(regime.task, width=None, init="zero", **LAYER)
    model.blocks[0].attn.key_query.data[0] = strength * torch.eye(regime.task.features)
    return model


def test_without_scores_it_answers_the_mean_and_with_large_ones_it_looks_up(regime):
    split = regime.splits["trained_family"]
    blind = measures(regime, layer(regime, 0.0), "trained_family", split)[0]
    assert blind.values[0] == pytest.approx(float(blind.values[2]), rel=1e-4)
    sharp, matrix = measures(regime, layer(regime, 12.0), "trained_family", split)
    assert sharp.values[0] < 1e-3
    assert sharp.values[1] < 1e-6
    assert sharp.values[2] > 0.5
    assert matrix["equal", "0.head0"] == pytest.approx(12, rel=1e-4)
    assert matrix["different", "0.head0"] == pytest.approx(0, abs=1e-4)


def test_labels_are_not_compared(regime):
    model = layer(regime, 0.0)
    model.blocks[0].attn.key_query.data[0, -1, -1] = 100.0
    split = regime.splits["held_out_family"]
    mass = group_mass(model, split, regime.groups(split))
    torch.testing.assert_close(mass.values.sum(), torch.tensor(1.0))  # the query does not see itself
    same = regime.groups(split)["query_feature"].float().sum(-1) / regime.context
    assert mass["0.head0", "query_feature"] == pytest.approx(float(same[same > 0].mean()), rel=1e-4)


def test_a_matrix_of_the_model_is_told_once(regime):
    split = regime.splits["held_out_family"]
    assert [grid.name for grid in measures(regime, layer(regime, 1.0), "held_out_family", split)] == ["error"]
