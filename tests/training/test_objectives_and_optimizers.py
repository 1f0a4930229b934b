"""Losses against their formulas; which weights decay; how the learning rate goes."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import DEMANDING, make_data, make_module, train
from torch import nn

from grok.callbacks import Evaluation, RunRecorder
from grok.errors import BadInput
from grok.records import RunRecord
from grok.training import CrossEntropy, SquaredError, Stablemax, Warmup, parameter_groups


def some_logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 2, 7, generator=generator), torch.randint(7, (5, 2), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_smooths_labels(smoothing):
    logits, targets = some_logits()
    logs = logits.log_softmax(-1)
    wanted = F.one_hot(targets, 7) * (1 - smoothing) + smoothing / 7
    torch.testing.assert_close(CrossEntropy(smoothing)(logits, targets), -(wanted * logs).sum(-1))


def test_cross_entropy_of_half_precision_is_computed_in_float32():
    logits, targets = some_logits()
    assert CrossEntropy()(logits.bfloat16(), targets).dtype == torch.float32
    assert CrossEntropy()(logits.double(), targets).dtype == torch.float64


def test_stablemax_is_its_formula_in_float64():
    logits, targets = some_logits()
    logits = logits * 10
    losses = Stablemax()(logits, targets)
    assert losses.dtype == torch.float64
    for row in range(5):
        for slot in range(2):
            x = logits[row, slot].double().tolist()
            scores = [value + 1 if value >= 0 else 1 / (1 - value) for value in x]
            expected = -math.log(scores[targets[row, slot]] / sum(scores))
            assert float(losses[row, slot]) == pytest.approx(expected, rel=1e-12)


def test_stablemax_has_a_finite_gradient_everywhere():
    logits = torch.tensor([[[0.0, 1.0, -1.0, 1e30, -1e30]]], dtype=torch.float64, requires_grad=True)
    for target in range(5):
        (gradient,) = torch.autograd.grad(Stablemax()(logits, torch.tensor([[target]])).sum(), logits)
        assert gradient.isfinite().all()
    small = torch.randn(1, 1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Stablemax()(x, torch.tensor([[2]])), small)


def test_squared_error_is_reported_without_accuracy(tmp_path, sums):
    module = make_module(sums, objective=SquaredError())
    train(tmp_path, module, Evaluation(20), RunRecorder(), steps=40, data=sums)
    score = module.scores["test"]
    assert score.accuracy is None
    split = sums.splits["test"]
    expected = (module.net(split.inputs)[:, -1] - split.targets).square().mean()
    assert score.loss == pytest.approx(expected.item(), rel=1e-5)
    names = {row["name"] for row in RunRecord(tmp_path).rows() if row["split"]}
    assert names == {"loss"}
    assert RunRecord(tmp_path).summary()["accuracy"] == {"test": None}


def test_reading_out_everywhere_gives_the_same_loss_and_gradients():
    data = make_data()
    batch = data.generated.train.batch(0)
    results = []
    for where in ("supervised", "everywhere"):
        module = make_module(net={"layers": 2}, read_out=where).double()
        loss = module.loss(batch)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in module.net.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_shares_of_a_batch_add_up_to_its_loss():
    stream, module = make_data(batch=15).generated.train, make_module().double()
    shares = [module.loss(stream.batch(3, rank, 4), world=4) for rank in range(4)]
    torch.testing.assert_close(torch.stack(shares).mean(), module.loss(stream.batch(3)))


def test_biases_and_norm_gains_do_not_decay_unless_all_do():
    net = make_module().net
    matrices, rest = parameter_groups(net, "matrices")
    assert "weight_decay" not in matrices
    assert rest["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    vectors = {names[id(parameter)] for parameter in rest["params"]}
    assert vectors == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert len(matrices["params"]) + len(rest["params"]) == len(names)
    (everything,) = parameter_groups(net, "all")
    assert len(everything["params"]) == len(names)
    assert "weight_decay" not in everything


def test_frozen_weights_are_left_out():
    net = make_module().net.requires_grad_(False)
    net.embedding.weight.requires_grad_(True)
    (group,) = parameter_groups(net, "matrices")
    assert [id(parameter) for parameter in group["params"]] == [id(net.embedding.weight)]


def optimizer():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def test_warmup_rises_stays_and_falls():
    schedule = Warmup(optimizer(), warmup=4, decay_from=6, decay_to=10)
    factors = [schedule.factor(done) for done in range(11)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert [Warmup(optimizer(), warmup=0).factor(done) for done in (0, 10**6)] == [1, 1]
    assert [Warmup(optimizer(), warmup=2).factor(done) for done in (0, 1, 10**6)] == [0.5, 1, 1]


def test_the_optimizer_gets_the_rates_of_the_schedule():
    rates, chosen = [], optimizer()
    schedule = Warmup(chosen, warmup=3)
    for _ in range(4):
        rates.append(chosen.param_groups[0]["lr"])
        chosen.step()
        schedule.step()
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("decay_from", [0, 7, 10, 12])
def test_the_decay_ends_with_the_run_wherever_it_starts(tmp_path, decay_from):
    options = {**DEMANDING, "schedule": lambda chosen: Warmup(chosen, warmup=0, decay_from=decay_from)}
    trainer = train(tmp_path, make_module(**options), steps=10)
    assert trainer.lr_scheduler_configs[0].scheduler.decay_to == 10
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0 if decay_from <= 10 else 3e-3)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"warmup": -1}, "warmup=-1"),
        ({"decay_to": 5}, "decay_to=5"),
        ({"warmup": 10, "decay_from": 9}, "decay_from=9"),
        ({"warmup": 0, "decay_from": 9, "decay_to": 9}, "decay_to=9"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong, named):
    with pytest.raises(BadInput, match=named):
        Warmup(optimizer(), **wrong)
