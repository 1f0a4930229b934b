"""Members of an ensemble learn what they learn alone."""

from dataclasses import replace

import pytest
import torch
from tiny import make_data, make_module

from grok.errors import BadInput
from grok.training import SeedEnsemble, SquaredError, Stablemax

SETTINGS = {"default": {}, "everywhere": {"read_out": "everywhere"}, "stablemax": {"objective": Stablemax()}}


def members(count=3, dtype=torch.float64, **options):
    return [make_module(seed=seed, **options).to(dtype) for seed in range(count)]


def prepared(**options):
    data = make_data(**options)
    data.setup()
    return data.generated.train


def learn(modules, backward, steps):
    """Plain optimizers with different rates and decays; `backward(step)` leaves gradients and gives losses."""
    optimizers = [
        torch.optim.AdamW(module.net.parameters(), lr=1e-3 * (1 + index), weight_decay=0.5 * index)
        for index, module in enumerate(modules)
    ]
    losses = []
    for step in range(steps):
        losses.append(backward(step))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return torch.stack(losses)


def one_by_one(modules, streams):
    """Leaves the gradients of every module on its own batch."""

    def backward(step):
        losses = [module.loss(stream.batch(step)) for module, stream in zip(modules, streams, strict=True)]
        torch.stack(losses).sum().backward()
        return torch.stack(losses).detach()

    return backward


def insist_on_same_learning(streams, alone, together, steps, tolerance):
    """Losses and weights of an ensemble are those of its members trained alone; returns the losses `[step, member]`."""
    ensemble = SeedEnsemble(together)
    expected = learn(alone, one_by_one(alone, streams), steps)
    got = learn(together, lambda step: ensemble.backward([stream.batch(step) for stream in streams]), steps)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    for mine, yours in zip(together, alone, strict=True):
        for name, weight in yours.net.state_dict().items():
            torch.testing.assert_close(mine.net.state_dict()[name], weight, rtol=tolerance, atol=tolerance)
    return expected


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_member_learns_what_it_learns_alone(options):
    streams = [prepared(seed=1), prepared(seed=2, phi=1.5), prepared(seed=3)]
    losses = insist_on_same_learning(streams, members(**options), members(**options), 50, 1e-9)
    assert (losses[-1] < losses[0]).all()
    assert len(set(losses[-1].tolist())) == 3


def test_in_float32_the_first_ten_steps_agree():
    streams = [prepared(seed=1), prepared(seed=2)]
    insist_on_same_learning(streams, members(2, torch.float32), members(2, torch.float32), 10, 1e-5)


def test_loading_weights_and_dropping_gradients_do_not_part_a_member_from_the_ensemble():
    stream, together = prepared(), members(2)
    ensemble = SeedEnsemble(together)
    first = ensemble.backward([stream.batch(0)] * 2)
    together[0].net.load_state_dict(together[1].net.state_dict())
    together[1].zero_grad()  # sets gradients to None, as Lightning does before an evaluation
    again = ensemble.backward([stream.batch(0)] * 2)
    assert first[0] != first[1]
    assert again[0] == again[1]
    assert together[1].net.embedding.weight.grad.abs().sum() > 0


def test_a_gradient_that_somebody_else_left_does_not_part_a_member_from_the_ensemble():
    stream, together = prepared(), members(2)
    together[1].net.load_state_dict(together[0].net.state_dict())
    ensemble = SeedEnsemble(together)
    ensemble.backward([stream.batch(0)] * 2)
    for module in together:
        module.zero_grad(set_to_none=False)
    together[0].zero_grad()
    together[0].loss(stream.batch(1)).backward()  # a gradient of its own
    together[0].zero_grad(set_to_none=False)
    ensemble.backward([stream.batch(0)] * 2)
    mine, yours = (module.net.embedding.weight.grad for module in together)
    assert yours.abs().sum() > 0
    torch.testing.assert_close(mine, yours)


def test_weights_that_have_no_gradient_alone_have_none_in_an_ensemble():
    """Weight decay acts on whatever has a gradient, be it zero."""
    stream, alone, together = prepared(), members(2), members(2)
    for module in (*alone, *together):
        module.net.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        module.net.embedding.weight.requires_grad_(False)
    ensemble = SeedEnsemble(together)
    learn(alone, one_by_one(alone, [stream] * 2), 3)
    learn(together, lambda step: ensemble.backward([stream.batch(step)] * 2), 3)
    for mine, yours in zip(together, alone, strict=True):
        assert mine.net.unused.grad is None
        assert mine.net.embedding.weight.grad is None
        torch.testing.assert_close(mine.net.state_dict(), yours.net.state_dict(), rtol=1e-9, atol=1e-9)


def test_a_pass_copies_no_weights():
    together = members(2)
    ensemble = SeedEnsemble(together)
    ensemble.backward([prepared().batch(0)] * 2)
    before = [parameter.data_ptr() for module in together for parameter in module.net.parameters()]
    ensemble.backward([prepared().batch(1)] * 2)
    assert [parameter.data_ptr() for module in together for parameter in module.net.parameters()] == before


def test_what_cannot_be_batched_is_told():
    data = make_data()
    for other, told in (
        (make_module(net={"layers": 2}), "model.net"),
        (make_module(net={"loops": 2}), "model.net"),
        (make_module(net={"activation": "relu"}), "model.net"),
        (make_module(objective=Stablemax()), "model.objective"),
        (make_module(objective=SquaredError()), "model.objective"),
        (make_module(read_out="everywhere"), "model.read_out"),
        (make_module().double(), "model.net"),
    ):
        with pytest.raises(BadInput, match=rf"{told}=.*train these singly"):
            SeedEnsemble([make_module(), other])
    with pytest.raises(BadInput, match=r"model\.net\.dropout=0\.1: drawn for all"):
        SeedEnsemble([make_module(data, net={"dropout": 0.1})] * 2)
    shaken, kept = make_module(), [make_module(), make_module()]
    shaken.net.shake = torch.nn.Dropout(0.2)
    with pytest.raises(BadInput, match=r"model\.net\.dropout=0\.2: drawn for all"):
        SeedEnsemble([shaken])
    for value, module in enumerate(kept):
        module.net.register_buffer("features", torch.full((2,), float(value)))
    with pytest.raises(BadInput, match=r"model\.net='features': a buffer that differs"):
        SeedEnsemble(kept)
    with pytest.raises(BadInput, match="give at least one"):
        SeedEnsemble([])
    batch, ids = prepared().batch(0), torch.arange(3).expand(16, 3)
    placed = replace(batch, queries=replace(batch.queries, position_ids=ids))
    with pytest.raises(BadInput, match="position ids in all batches, or in none"):
        SeedEnsemble(members(2)).backward([batch, placed])
    with pytest.raises(BadInput, match=r"batches of one shape; inputs: \(16, 3\) and \(8, 3\)"):
        SeedEnsemble(members(2)).backward([prepared().batch(0), prepared(batch=8).batch(0)])
