"""Losses against their formulas; which weights decay; how the learning rate goes."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import DEMANDING, make_data, make_module, train
from torch import nn

from grok.callbacks import Evaluation, RunRecorder
from grok.errors import BadInput
from grok.records import RunRecord
from grok.training import AdamAtan2, CrossEntropy, SquaredError, Stablemax, Warmup, parameter_groups


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


def test_stablemax_in_float32_keeps_the_digits_of_small_losses_and_their_gradients():
    logits, targets = some_logits()
    certain = logits.scatter(-1, targets[..., None], 1e6)
    for outputs in (logits * 10, logits.bfloat16(), certain):
        results = []
        for precision in ("float64", "float32"):
            x = outputs.clone().requires_grad_()
            losses = Stablemax(precision)(x, targets)
            assert losses.dtype == getattr(torch, precision)
            losses.sum().backward()
            results.append((losses.double(), x.grad.double()))
        for exact, close in zip(*results, strict=True):
            torch.testing.assert_close(close, exact, rtol=1e-2 if outputs.dtype == torch.bfloat16 else 1e-6, atol=0)
    assert Stablemax("float32")(logits.double(), targets).dtype == torch.float64


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


@pytest.mark.parametrize("world", [1, 4])
def test_a_loss_may_be_averaged_over_queries(world):
    stream, module = make_data(batch=15).generated.train, make_module(reduction="queries").double()
    whole = stream.batch(3)
    mask = torch.rand(whole.queries.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 0] = True

    def masked(batch, rows):
        return replace(batch, queries=replace(batch.queries, mask=mask[rows]))

    shares = [
        module.loss(masked(stream.batch(3, rank, world), slice(rank, None, world)), world) for rank in range(world)
    ]
    queries = whole.queries
    losses = module.objective(module.net(queries.inputs, at=queries.at), queries.targets)
    expected = torch.stack([row[of].mean() for row, of in zip(losses, mask, strict=True)]).mean()
    torch.testing.assert_close(torch.stack(shares).mean(), expected)


def test_biases_and_norm_gains_do_not_decay_unless_all_do():
    net = make_module().net
    matrices, rest = parameter_groups(net, "matrices")
    assert "weight_decay" not in matrices
    assert rest["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    vectors = {names[id(parameter)] for _, parameter in rest["params"]}
    assert vectors == {name for name, _ in rest["params"]}
    assert vectors == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert len(matrices["params"]) + len(rest["params"]) == len(names)
    (everything,) = parameter_groups(net, "all")
    assert len(everything["params"]) == len(names)
    assert "weight_decay" not in everything


def test_frozen_weights_are_left_out():
    net = make_module().net.requires_grad_(False)
    net.embedding.weight.requires_grad_(True)
    (group,) = parameter_groups(net, "matrices")
    assert [id(parameter) for _, parameter in group["params"]] == [id(net.embedding.weight)]


def test_some_weights_have_options_of_their_own():
    net = make_module().net
    matrices, own, last = parameter_groups(net, "matrices", {"blocks": {"betas": [0, 0]}, "norm": {"lr": 1.0}})
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    grouped = [[names[id(parameter)] for _, parameter in group["params"]] for group in (matrices, own, last)]
    assert grouped[0] == ["embedding.weight", "position.weight"]
    assert grouped[1] == [name for name in names.values() if name.startswith("blocks.")]
    assert grouped[2] == ["norm.weight", "norm.bias"]
    assert (own["betas"], last["lr"]) == ((0, 0), 1.0)


def test_groups_that_name_nothing_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"groups='embeding'.*there are embedding, position"):
        make_module(groups={"embeding": {"lr": 1.0}})
    with pytest.raises(BadInput, match=r"groups\.embedding\.rate=1\.0: AdamW has no such option; it has lr, betas"):
        train(tmp_path, make_module(groups={"embedding": {"rate": 1.0}}), steps=1)


@pytest.mark.parametrize("chosen", [torch.optim.AdamW, AdamAtan2])
def test_without_memory_adam_is_sign_descent(chosen):
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.0, 3.0, 4.0]))
    options = {"eps": 1e-18} if chosen is torch.optim.AdamW else {}
    optimizer = chosen([{"params": [weight], "lr": 0.1, "weight_decay": 1.0, "betas": (0, 0), **options}])
    expected = weight.detach().clone()
    for gradient in ([1.0, -1e-6, 0.0, 1e6, -3.0], [-1e-11, 2.0, 1.0, 0.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        expected = expected * 0.9 - 0.1 * weight.grad.sign()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-5 * 0.1)


def test_adam_atan2_is_its_formula_and_forgets_the_scale_of_gradients():
    weights = [nn.Parameter(torch.tensor([0.5, -0.5], dtype=torch.float64)) for _ in range(2)]
    chosen = [AdamAtan2([weight], lr=0.1, betas=(0.8, 0.9), weight_decay=0.2, scale=1.5) for weight in weights]
    expected, mean, square = weights[0].detach().clone(), 0.0, 0.0
    for step in range(1, 4):
        gradient = torch.tensor([step - 2.5, 0.3 * step], dtype=torch.float64)
        for weight, scale in zip(weights, (1.0, 1e-9), strict=True):
            weight.grad = gradient * scale
        for one in chosen:
            one.step()
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        expected = expected * (1 - 0.1 * 0.2)
        expected -= 0.1 * 1.5 * torch.atan2(mean / (1 - 0.8**step), (square / (1 - 0.9**step)).sqrt())
        for weight in weights:
            torch.testing.assert_close(weight.detach(), expected)
    with pytest.raises(BadInput, match=r"lr=-1.*\n.*betas=\(1, 0\)"):
        AdamAtan2(weights, lr=-1, betas=(1, 0))


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
