"""The recursive transformer, trained as any model is: halting loss, prefix vector, resume, ensembles."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import ADAM, Sums, assert_same, make_data, train, weights

from grok.callbacks import CostMeter, Evaluation, LastCheckpoint
from grok.data import FillIn
from grok.errors import BadInput
from grok.models import RecursiveTransformer
from grok.training import AdamAtan2, GrokModule, SeedEnsemble, SquaredError, Stablemax, Warmup

PREFIX = {"prefix": {"lr": 0.01, "weight_decay": 1.0, "betas": [0, 0], "eps": 1e-18}}
STEPS = 12


@pytest.fixture
def fill_in():
    return make_data(encoding=FillIn(), batch=15)


def make(data, net=None, **options) -> GrokModule:
    sizes = {"width": 16, "heads": 2, "layers": 1, "low_cycles": 2, "multiple": 8, "prefix": 2, **(net or {})}
    common = {"optimizer": ADAM, "objective": Stablemax(), "reduction": "queries", "clip": None, "decay": "all"}
    return GrokModule(data.task, partial(RecursiveTransformer, **sizes), **{**common, **options})


def lively(module: GrokModule) -> GrokModule:
    """In float64, with a halting head that says something."""
    torch.manual_seed(0)
    torch.nn.init.normal_(module.net.halt_head.weight)
    return module.double()


@pytest.mark.parametrize("reduction", ["slots", "queries"])
def test_the_halting_loss_is_a_mean_over_queries(fill_in, reduction):
    module, batch = lively(make(fill_in, reduction=reduction)), fill_in.generated.train.batch(0)
    queries = batch.queries
    outputs, state = module.net.forward_with_state(queries.inputs)
    answers = outputs.argmax(-1).gather(1, queries.at)
    known = torch.arange(15) % 3 > 0  # of ten queries all answers, of the others all but one
    targets = torch.where(known[:, None], answers, (answers + (queries.at == 2)) % outputs.shape[-1])
    batch = replace(batch, queries=replace(queries, targets=targets))
    halting = F.binary_cross_entropy_with_logits(module.net.halt_logits(state), known.double())
    with_it = module.loss(batch)
    module.net.auxiliary = False
    torch.testing.assert_close(with_it - module.loss(batch), 0.5 * halting)


def test_a_slot_that_a_query_does_not_have_is_not_wrong(fill_in):
    module = make(fill_in)
    queries = fill_in.generated.train.batch(0).queries
    outputs = F.one_hot(queries.targets, fill_in.task.outputs).double()
    assert not queries.mask.all()
    assert module._right(outputs, queries).all()
    wrong = outputs.roll(1, -1)
    assert not module._right(wrong, queries).any()
    some = torch.where(queries.mask[..., None], outputs, wrong)
    assert module._right(some, queries).all()


def test_shares_of_a_batch_add_up_to_its_loss(fill_in):
    stream, module = fill_in.generated.train, lively(make(fill_in))
    shares = [module.loss(stream.batch(3, rank, 4), world=4) for rank in range(4)]
    torch.testing.assert_close(torch.stack(shares).mean(), module.loss(stream.batch(3)))


def test_the_prefix_vector_is_trained_by_the_sign_of_its_gradient(tmp_path, fill_in):
    module = make(fill_in, groups=PREFIX, schedule=partial(Warmup, warmup=4))
    seen = []
    original = module.on_before_optimizer_step
    module.on_before_optimizer_step = lambda optimizer: (
        seen.append(module.net.prefix.grad.sign()),
        original(optimizer),
    )
    trainer = train(tmp_path, module, steps=6, data=fill_in)
    expected = torch.zeros(16)
    for step, sign in enumerate(seen, start=1):
        rate = 0.01 * min(1, step / 4)
        expected = expected * (1 - rate) - rate * sign
    assert len(seen) == trainer.global_step == 6
    torch.testing.assert_close(module.net.prefix.detach(), expected)
    assert expected.abs().sum() > 0


@pytest.mark.parametrize("options", [{"groups": PREFIX}, {"optimizer": partial(AdamAtan2, lr=3e-3)}, {}])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, fill_in, options):
    options = {**options, "ema_decay": 0.9, "schedule": partial(Warmup, warmup=5)}
    whole, cut, resumed = make(fill_in, **options), make(fill_in, **options), make(fill_in, seed=9, **options)
    first = weights(whole)
    train(tmp_path / "whole", whole, Evaluation(6), CostMeter(), data=fill_in, steps=STEPS)
    train(tmp_path / "cut", cut, LastCheckpoint(5), data=fill_in, steps=5)
    train(tmp_path / "cut", resumed, data=fill_in, steps=STEPS, resume=tmp_path / "cut/last.ckpt", seed=7)
    assert_same(weights(resumed), weights(whole))
    reached = weights(whole)
    for name in first:
        fixed = "start_" in name
        assert torch.equal(reached[name], first[name]) == fixed, name
    assert torch.equal(reached["ema.start_H"], reached["net.start_H"])


@pytest.mark.slow
@pytest.mark.parametrize("net", [{}, {"mixing": "attention", "positions": "rope", "prefix": 0}])
def test_training_memorises(tmp_path, net):
    data = make_data(encoding=FillIn(), entities=8, batch=32)
    module = make(data, {**net, "width": 32}, optimizer=partial(torch.optim.AdamW, lr=4e-3, weight_decay=0.0))
    train(tmp_path, module, Evaluation(300), steps=300, data=data)
    assert module.scores["id_atomic"].accuracy > 0.9
    split = data.splits["id_atomic"]
    module.net.eval()
    _, state = module.net.forward_with_state(split.inputs)
    assert (module.net.halt_logits(state) > 0).float().mean() > 0.9


def test_bf16_mixed_precision_trains_all_weights(tmp_path, fill_in):
    module = make(fill_in, optimizer=partial(torch.optim.SGD, lr=0.1))
    first = weights(module)
    train(tmp_path, module, data=fill_in, steps=2, precision="bf16-mixed")
    same = {name for name, weight in weights(module).items() if torch.equal(weight, first[name])}
    assert same == {"net.start_H", "net.start_L"}


def test_what_an_ensemble_cannot_batch_is_told_and_the_rest_agrees(fill_in):
    with pytest.raises(BadInput, match=r"model\.net='RecursiveTransformer': has a loss of its own.*train these singly"):
        SeedEnsemble([make(fill_in), make(fill_in)])
    quiet = {"net": {"halt": False}}
    with pytest.raises(BadInput, match=r"model\.reduction='queries': is not batched; train these singly"):
        SeedEnsemble([make(fill_in, **quiet)] * 2)
    quiet["reduction"] = "slots"
    with pytest.raises(BadInput, match=r"model\.net='start_H': a buffer that differs"):
        SeedEnsemble([make(fill_in, seed=seed, **quiet) for seed in (0, 1)])
    alone, together = ([make(fill_in, **quiet).double() for _ in range(2)] for _ in range(2))
    batches = [fill_in.generated.train.batch(step) for step in (0, 1)]
    losses = SeedEnsemble(together).backward(batches)
    for module, batch, loss in zip(alone, batches, losses, strict=True):
        expected = module.loss(batch)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
    for mine, yours in zip(together, alone, strict=True):
        for name, weight in yours.net.named_parameters():
            torch.testing.assert_close(mine.net.get_parameter(name).grad, weight.grad)


def test_halting_needs_answers_that_are_right_or_wrong(tmp_path):
    data = Sums(batch=8)
    with pytest.raises(BadInput, match=r"objective='SquaredError': .*net\.halt=false"):
        make(data, objective=SquaredError())
    module = make(data, {"halt": False}, objective=SquaredError())
    train(tmp_path, module, Evaluation(5), steps=5, data=data)
    assert module.scores["test"].accuracy is None
