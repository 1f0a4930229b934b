"""Muon, Grokfast, and schedules: each is its formula, and survives a resume to the bit."""

from functools import partial

import pytest
import torch
from tiny import assert_same, make_data, make_module, train, weights
from torch.optim import AdamW, Muon

from grok.callbacks import LastCheckpoint
from grok.errors import BadInput
from grok.training import GrokfastAdamW, MuonAdamW, Warmup, parameter_groups

OPTIMIZERS = {
    "muon": partial(MuonAdamW, lr=3e-3, weight_decay=0.5),
    "grokfast": partial(GrokfastAdamW, lr=3e-3, weight_decay=0.5, alpha=0.9, lamb=1.0),
}


def nets(count=2):
    return [make_module(seed=3).net for _ in range(count)]


def learn(net, *optimizers, steps=5, change=lambda net: None):
    """Weights after a few steps on the loss of tiny data."""
    module = make_module()
    module.net = net
    for batch in make_data().generated.train.batches(0, steps):
        module.loss(batch).backward()
        change(net)
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad()
    return net.state_dict()


def test_muon_updates_the_matrices_of_blocks_and_adamw_the_rest():
    ours, net = nets()
    optimizer = MuonAdamW(parameter_groups(ours, "matrices"), lr=3e-3, weight_decay=0.5, momentum=0.9)
    hidden = [weight for name, weight in net.named_parameters() if name.startswith("blocks.") and weight.ndim == 2]
    muon = Muon(hidden, lr=3e-3, weight_decay=0.5, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    tables = [weight for name, weight in net.named_parameters() if "blocks" not in name and weight.ndim == 2]
    vectors = {"params": [weight for weight in net.parameters() if weight.ndim == 1], "weight_decay": 0.0}
    adam = AdamW([{"params": tables}, vectors], lr=3e-3, weight_decay=0.5, betas=(0.9, 0.95))
    assert len(hidden) == 4
    assert_same(dict(learn(ours, optimizer)), dict(learn(net, muon, adam)))
    names = [(group["muon"], name) for group in optimizer.param_groups for name in group["param_names"]]
    assert (True, "blocks.0.mlp.up.weight") in names
    assert (False, "embedding.weight") in names


def test_muon_wants_names():
    with pytest.raises(ValueError, match="needs named weights"):
        MuonAdamW(nets()[0].parameters())


def test_grokfast_adds_the_slow_part_of_the_gradient():
    ours, net = nets()
    slow: dict[str, torch.Tensor] = {}

    def amplify(net):
        for name, weight in net.named_parameters():
            old = slow.get(name, weight.grad)
            slow[name] = 0.9 * old + 0.1 * weight.grad
            weight.grad += 2.0 * slow[name]

    optimizer = GrokfastAdamW(parameter_groups(ours, "all"), lr=1e-3, alpha=0.9, lamb=2.0)
    got = learn(ours, optimizer)
    wanted = learn(net, AdamW(net.parameters(), lr=1e-3), change=amplify)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_grokfast_without_amplification_is_adamw_to_the_bit():
    ours, net = nets()
    got = learn(ours, GrokfastAdamW(ours.parameters(), lamb=0.0))
    assert_same(dict(got), dict(learn(net, AdamW(net.parameters()))))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, optimizer):
    options = {"optimizer": optimizer, "schedule": partial(Warmup, warmup=5, weight_decay=(2.0, 0.0), decay_to=40)}
    whole = make_module(**options)
    train(tmp_path / "whole", whole, steps=40)
    train(tmp_path / "cut", make_module(**options), LastCheckpoint(10), steps=20)
    rest = make_module(**options)
    train(tmp_path / "rest", rest, steps=40, resume=tmp_path / "cut/last.ckpt")
    assert_same(weights(rest), weights(whole))


@pytest.mark.parametrize(
    ("optimizer", "wrong"),
    [
        (GrokfastAdamW, {"alpha": 1.0}),
        (GrokfastAdamW, {"lamb": -1.0}),
        (MuonAdamW, {"lr": -1.0}),
        (MuonAdamW, {"betas": (0.9, 1.5)}),
        (MuonAdamW, {"weight_decay": -3.0}),
        (MuonAdamW, {"momentum": 7.0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(optimizer, wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        optimizer(parameter_groups(nets()[0], "all"), **wrong)


def scheduled(**options) -> list[tuple[float, float]]:
    """Rate and weight decay of each of the first 11 updates."""
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0, weight_decay=0.1)
    schedule = Warmup(optimizer, **options)
    used = []
    for _ in range(11):
        used.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))
        optimizer.step()
        schedule.step()
    return used


def test_a_cosine_falls_to_zero_by_half_a_wave():
    rates = [rate for rate, _ in scheduled(warmup=2, decay_from=4, decay_to=8, shape="cosine")]
    assert rates[:4] == [0.5, 1.0, 1.0, 1.0]
    assert rates[4:8] == pytest.approx([(2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0.0])
    assert rates[8:] == [0.0] * 3


def test_weight_decay_goes_in_a_line_from_its_first_factor_to_its_last():
    decays = [decay for _, decay in scheduled(warmup=0, decay_to=5, weight_decay=(2.0, 0.0))]
    assert decays == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0] + [0.0] * 6)
    assert {rate for rate, _ in scheduled(warmup=0, decay_to=5, weight_decay=(2.0, 0.0))} == {1.0}


def test_negative_factors_of_weight_decay_are_refused():
    with pytest.raises(BadInput, match="weight_decay"):
        scheduled(weight_decay=(1.0, -1.0))
    with pytest.raises(BadInput, match="decay_to"):
        scheduled(weight_decay=(1.0, 0.0), decay_to=-5)
    with pytest.raises(BadInput, match="Rprop has no weight decay"):
        Warmup(torch.optim.Rprop([torch.zeros(1, requires_grad=True)]), weight_decay=(1.0, 0.0))
