"""Token mixing that computes its hidden values again gives what token mixing that keeps them gives."""

import pytest
import torch

from grok.models import RecursiveTransformer
from grok.models.layers import TokenMixing
from grok.task import Task


@pytest.fixture
def again(monkeypatch):
    monkeypatch.setattr("grok.models.layers._MANY_HIDDEN", 0)
    monkeypatch.setattr("grok.models.layers._PIECE", 7)


def mixing() -> TokenMixing:
    torch.manual_seed(0)
    return TokenMixing(5, 24).double()


X = torch.randn(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def learnt(model, x):
    """Output, and gradients of the input and of the weights."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, *(weight.grad.clone() for weight in model.parameters())]


def test_outputs_and_gradients_are_the_same(request):
    kept = learnt(mixing(), X)
    request.getfixturevalue("again")
    torch.testing.assert_close(learnt(mixing(), X), kept, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(mixing()(X), kept[0], rtol=1e-12, atol=1e-12)


def largest_kept() -> int:
    """Numbers in the largest tensor that the backward pass is given."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mixing()(X.clone().requires_grad_())
    return max(sizes, default=0)


def test_hidden_values_are_not_kept(request):
    assert largest_kept() >= 4 * 6 * 24
    request.getfixturevalue("again")
    assert largest_kept() <= X.numel()


def test_a_whole_model_learns_the_same(request):
    task = Task(positions=5, outputs=11, tokens=11)
    inputs = torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(2))

    def gradients():
        torch.manual_seed(0)
        net = RecursiveTransformer(task, width=16, heads=4, low_cycles=2, multiple=8, prefix=3).double()
        net(inputs).square().sum().backward()
        return [weight.grad for weight in net.parameters() if weight.grad is not None]

    kept = gradients()
    request.getfixturevalue("again")
    torch.testing.assert_close(gradients(), kept, rtol=1e-11, atol=1e-11)


def test_batched_over_the_members_of_an_ensemble_it_keeps_them(again):
    model = mixing()
    many = torch.vmap(model)(torch.stack([X, 2 * X]))
    torch.testing.assert_close(many, torch.stack([model(X), model(2 * X)]), rtol=1e-12, atol=1e-12)
