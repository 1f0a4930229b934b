"""Endless training data do not depend on the precision in which a trainer computes."""

import pytest
import torch

from grok.data import FreshStream, GraphNavigation, PatternComposition, Split, TreePaths


@pytest.fixture
def double():
    """Torch's default during a training step of `--trainer.precision 64-true`."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "regime",
    [
        lambda: TreePaths("forward", depth=2, labels=9, batch=4),
        lambda: PatternComposition(batch=4, test_size=2),
        lambda: GraphNavigation("tree", nodes=15, batch=4),
    ],
)
def test_batches_are_the_same_whatever_the_default_dtype(regime, request):
    stream, again = regime().generated.train, regime().generated.train
    expected = stream.batch(3).queries.inputs
    request.getfixturevalue("double")
    assert torch.equal(again.batch(3).queries.inputs, expected)
    assert torch.get_default_dtype() is torch.float64


def test_the_default_dtype_is_restored_if_a_batch_cannot_be_made(double):
    def fail(step: int) -> Split:
        raise RuntimeError(step)

    with pytest.raises(RuntimeError):
        FreshStream(fail, 1).batch(0)
    assert torch.get_default_dtype() is torch.float64
