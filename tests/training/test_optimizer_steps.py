"""The optimizer step is the unit of everything: blocks change nothing, and a bare loop gives the same weights."""

import pytest
import torch
import torch.nn.functional as F
from tiny import DEMANDING, RATE, assert_same, make_data, make_module, train, weights
from torch import nn

from grok.training import parameter_groups

STEPS = 40


def bare_loop(steps: int) -> dict[str, torch.Tensor]:
    """What `DEMANDING` asks for, written out without Lightning."""
    net = make_module(net={"dropout": 0.1}).net
    average = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(net, "matrices"), lr=RATE, weight_decay=0.1)
    torch.manual_seed(0)
    for done, batch in enumerate(make_data().generated.train.batches(0, steps)):
        update = done + 1
        falling = 1 - (update - 20) / (steps - 20) if update > 20 else 1.0
        for group in optimizer.param_groups:
            group["lr"] = RATE * (min(1.0, update / 5) * max(0.0, falling))
        queries = batch.queries
        logits = net(queries.inputs, at=queries.at)
        losses = F.cross_entropy(logits.flatten(0, 1), queries.targets.flatten(), reduction="none")
        (losses.sum() * (1 / len(queries))).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, weight in net.named_parameters():
                average[name].lerp_(weight, 1 - 0.9)
    learnt = {f"net.{name}": weight for name, weight in net.state_dict().items()}
    return learnt | {f"ema.{name}": weight for name, weight in average.items()}


@pytest.fixture(scope="module")
def step_by_step(tmp_path_factory):
    module = make_module(net={"dropout": 0.1}, block=1, **DEMANDING)
    train(tmp_path_factory.mktemp("one"), module, steps=STEPS)
    return weights(module)


@pytest.mark.parametrize("block", [7, 50])
def test_every_block_length_gives_the_same_weights_and_averages_to_the_bit(tmp_path, step_by_step, block):
    module = make_module(net={"dropout": 0.1}, block=block, **DEMANDING)
    train(tmp_path, module, steps=STEPS)
    assert_same(weights(module), step_by_step)


def test_a_bare_loop_gives_the_same_weights_to_the_bit_and_the_same_averages(step_by_step):
    for name, weight in bare_loop(STEPS).items():
        tolerance = 0 if name.startswith("net.") else 1e-6  # torch averages many tensors at once, rounding differently
        torch.testing.assert_close(step_by_step[name], weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("block", [1, 7])
def test_step_schedule_and_optimizer_count_optimizer_steps(tmp_path, block):
    module = make_module(block=block, **DEMANDING)
    trainer = train(tmp_path, module, steps=25)
    assert trainer.global_step == 25
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 25
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {25}


def test_the_average_starts_from_the_initial_weights_and_is_updated_at_every_step(tmp_path):
    module, follower = make_module(ema_decay=0.75, block=3), make_module(block=1)
    initial = {name: weight.clone() for name, weight in module.net.state_dict().items()}
    assert_same(dict(module.ema.state_dict()), initial)
    expected = initial
    step = follower.on_before_optimizer_step

    def average_before_the_next_step(optimizer):
        nonlocal expected, seen
        if seen:
            expected = {n: 0.75 * expected[n] + 0.25 * w for n, w in follower.net.state_dict().items()}
        seen += 1
        step(optimizer)

    seen = 0
    follower.on_before_optimizer_step = average_before_the_next_step
    train(tmp_path, module, steps=8)
    train(tmp_path, follower, steps=8)
    expected = {n: 0.75 * expected[n] + 0.25 * w for n, w in follower.net.state_dict().items()}
    for name, weight in module.ema.state_dict().items():
        torch.testing.assert_close(weight, expected[name])
    assert not any(parameter.requires_grad for parameter in module.ema.parameters())


def test_the_average_is_what_is_evaluated(module):
    assert module.evaluated is module.net
    averaged = make_module(ema_decay=0.9)
    assert averaged.evaluated is averaged.ema


def test_two_runs_with_the_same_seed_are_equal_to_the_bit(tmp_path):
    runs = []
    for _ in range(2):
        module = make_module(net={"dropout": 0.1}, seed=3)
        train(tmp_path, module, steps=10, data=make_data(seed=3))
        runs.append(weights(module))
    assert_same(*runs)


def test_the_seeds_of_weights_and_order_act_separately():
    same, other = make_module(seed=1), make_module(seed=1, init_seed=2)
    assert_same(weights(same), weights(make_module(seed=2, init_seed=1)))
    assert_same(weights(other), weights(make_module(seed=2)))
    assert not torch.equal(same.net.embedding.weight, other.net.embedding.weight)

    def first(**seeds):
        return make_data(**seeds).generated

    assert_same(dict_of(first(seed=1)), dict_of(first(seed=1, order_seed=2)))  # the same graph and splits …
    orders = [first(seed=1, **more).train.order(0, 3) for more in ({}, {"order_seed": 1}, {"order_seed": 2})]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])  # … in another order


def dict_of(generated):
    return {"train": generated.train.table.inputs, **{name: s.inputs for name, s in generated.evaluation.items()}}


def test_making_a_module_leaves_the_random_numbers_of_the_process_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make_module(seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_clipping_bounds_the_global_norm_and_null_does_not_clip(tmp_path):
    norms = {}
    for clip in (0.05, None):
        module, seen = make_module(clip=clip), []
        hook = module.on_before_optimizer_step

        def watched(optimizer, hook=hook, module=module, seen=seen):
            hook(optimizer)
            seen.append(float(nn.utils.get_total_norm([p.grad for p in module.net.parameters()])))

        module.on_before_optimizer_step = watched
        train(tmp_path, module, steps=3)
        norms[clip] = seen
    assert norms[0.05] == pytest.approx([0.05] * 3, rel=1e-4)
    assert min(norms[None]) > 0.06
