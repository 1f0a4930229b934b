"""FLOPs against a count by hand, and totals over a whole run."""

import shutil

import pytest
import torch
from tiny import assert_same, make_data, make_module, train, weights

from grok.callbacks import CostMeter, Evaluation, LastCheckpoint
from grok.callbacks.cost import flops_per_step


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("read_out", ["supervised", "everywhere"])
def test_flops_are_those_of_a_count_by_hand(layers, read_out):
    data = make_data()
    module = make_module(data, net={"layers": layers}, read_out=read_out)
    batch = data.generated.train.batch(0)
    queries, (width, tokens) = 16, (16, data.task.tokens)
    positions = batch.queries.inputs.shape[1]
    per_position = 12 * width**2  # q, k, v, out and the two matrices of the MLP
    full = layers if read_out == "everywhere" else layers - 1
    products = full * positions * per_position
    if read_out == "supervised":  # the last block: keys and values everywhere, all else at one position
        products += positions * 2 * width**2 + (per_position - 2 * width**2)
    products += (positions if read_out == "everywhere" else 1) * width * tokens
    # Two operations per product; as many again for the gradient of the input, and of the weights.
    assert flops_per_step(module, batch) == 3 * 2 * queries * products


def test_counting_leaves_weights_gradients_and_random_numbers_alone():
    data, module = make_data(), make_module(net={"dropout": 0.1}, ema_decay=0.9)
    before, state = weights(module), torch.get_rng_state()
    flops_per_step(module, data.generated.train.batch(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(weights(module), before)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_watched_run_learns_the_same(tmp_path):
    runs = []
    for watching in ([], [CostMeter()]):
        module = make_module(net={"dropout": 0.1})
        train(tmp_path, module, *watching, steps=5)
        runs.append(weights(module))
    assert_same(*runs)


def assert_totals(meter, steps):
    assert meter.per_step["flops"] > 0
    assert meter.per_step["queries"] == 16
    for name, amount in meter.per_step.items():
        assert meter.summary()[name] == steps * amount
    assert 0 < meter.train_seconds < meter.wall_seconds


@pytest.mark.parametrize("block", [1, 50])
def test_totals_are_steps_times_the_cost_of_a_step(tmp_path, block):
    meter = CostMeter()
    train(tmp_path, make_module(block=block), Evaluation(10), meter, steps=25)
    assert_totals(meter, 25)


def test_totals_go_on_over_a_resume_between_two_evaluations(tmp_path):
    class Keep(LastCheckpoint):
        def _save(self, trainer):
            super()._save(trainer)
            if trainer.global_step == 13:
                shutil.copy(tmp_path / "last.ckpt", tmp_path / "cut.ckpt")

    first, second = CostMeter(), CostMeter()
    train(tmp_path, make_module(), Evaluation(10), first, Keep(13), steps=25)
    kept = torch.load(tmp_path / "cut.ckpt", weights_only=True)["callbacks"]["CostMeter"]
    train(tmp_path, make_module(), Evaluation(10), second, Keep(13), steps=25, resume=tmp_path / "cut.ckpt")
    assert_totals(second, 25)
    assert second.train_seconds > kept["train_seconds"] > 0
