"""The fast forms of the training step learn what the plain one learns, and leave the same checkpoints."""

from functools import partial

import lightning as L
import pytest
import torch
from tiny import ADAM, DEMANDING, Spoilt, Sums, assert_same, make_data, make_module, train, weights
from torch.optim.lr_scheduler import OneCycleLR

from grok.callbacks import (
    CheckpointSeries,
    CostMeter,
    Evaluation,
    GrokkingMonitor,
    LastCheckpoint,
    RunRecorder,
    verify_series,
)
from grok.data import ModularArithmetic
from grok.errors import NotFinite
from grok.models import LoopedTransformer, RecursiveTransformer
from grok.records import RunRecord
from grok.training import GrokModule, SquaredError, Warmup
from grok.training import fast as forms
from grok.training.fast import FastSteps, Plan, WorkingCopy, plan
from grok.training.graph import WARM_UP, GraphedSteps

FUSED = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.1, fused=True)


def small_world():
    return make_data(batch=64)


def learnt(tmp_path, *callbacks, steps=200, data=None, chosen=None, monkeypatch=None, **options):
    """Weights after training in float64, through the Trainer; `chosen` is forced on a module that is fast."""
    if chosen is not None:
        monkeypatch.setattr("grok.training.module.plan", lambda *_: chosen)
    data = data or small_world()
    module = make_module(data, fast=chosen is not None or options.pop("fast", False), **options)
    train(tmp_path, module, *callbacks, steps=steps, data=data, precision="64-true")
    return weights(module)


def test_shared_prefixes_learn_the_same_in_200_steps_in_float64(tmp_path, capsys):
    plain = learnt(tmp_path, **DEMANDING)
    assert "fast:" not in capsys.readouterr().out
    fast = learnt(tmp_path, fast=True, **DEMANDING)
    assert "distinct prefixes are computed instead of 192 positions" in capsys.readouterr().out
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(fast[name], plain[name]) for name in plain)  # it did go another way


def test_blocks_and_stops_do_not_change_the_bits_of_the_fast_path(tmp_path):
    whole = make_module(small_world(), fast=True, block=50)
    train(tmp_path / "whole", whole, steps=30, data=small_world())
    train(
        tmp_path / "cut",
        make_module(small_world(), fast=True, block=7),
        LastCheckpoint(10),
        steps=20,
        data=small_world(),
    )
    rest = make_module(small_world(), fast=True, block=7)
    train(tmp_path / "rest", rest, steps=30, data=small_world(), resume=tmp_path / "cut/last.ckpt")
    assert_same(weights(rest), weights(whole))


# Not with rotary positions: their cosines are float32 in any precision, and compiled code rounds those otherwise.
@pytest.mark.slow
@pytest.mark.parametrize("net", [{}, {"loops": 2, "layers": 2, "mlp": "swiglu", "norm": "rms"}], ids=str)
def test_compiled_blocks_learn_the_same_in_200_steps_in_float64(tmp_path, monkeypatch, net):
    plain = learnt(tmp_path, net=net, **DEMANDING)
    fast = learnt(tmp_path, net=net, chosen=Plan(compiled=True), monkeypatch=monkeypatch, **DEMANDING)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert fast.keys() == plain.keys()


@pytest.mark.parametrize("net", [{"layers": 2}, {"tied": False, "mlp": "swiglu", "bias": False}], ids=str)
def test_one_cast_a_step_gives_the_bits_of_a_cast_at_every_use(tmp_path, monkeypatch, net):
    results = []
    for chosen in (Plan(), Plan(cast=True)):
        monkeypatch.setattr("grok.training.module.plan", lambda *_, chosen=chosen: chosen)
        module = make_module(net=net, fast=True, **DEMANDING)
        train(tmp_path, module, steps=20, precision="bf16-mixed")
        results.append(weights(module))
    assert_same(results[1], results[0])


def test_gradients_of_weights_used_twice_agree_within_bfloat16_when_cast_once():
    data = make_data()
    module, batch = make_module(data, net={"loops": 2}), data.generated.train.batch(0)
    gradients = []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for net in (module.net, WorkingCopy(module.net, cast=True).refreshed()):
            module.zero_grad()
            module.loss(batch, net=net).backward()
            gradients.append(torch.cat([weight.grad.flatten() for weight in module.net.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[0].norm()
    assert gradients[0].dtype == gradients[1].dtype == torch.float32


def test_a_model_with_bfloat16_activations_of_its_own_takes_the_casts_too():
    data = make_data()
    net = partial(RecursiveTransformer, width=16, multiple=8, prefix=0, low_cycles=2, activations="bfloat16", heads=2)
    module, batch = GrokModule(data.task, net=net), data.generated.train.batch(0)
    copy = WorkingCopy(module.net, cast=True)
    losses = [module.loss(batch), module.loss(batch, net=copy.refreshed())]
    assert torch.equal(losses[0], losses[1])
    assert copy.net.blocks[0].mlp.out.weight.dtype == torch.bfloat16
    assert module.net.blocks[0].mlp.out.weight.dtype == torch.float32
    losses[1].backward()
    assert module.net.blocks[0].mlp.out.weight.grad.dtype == torch.float32


def test_a_weight_without_gradient_stays_without_and_does_not_decay():
    used, unused = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    halves = forms._CastTogether.apply(used, unused)
    halves[0].sum().backward()
    assert used.grad is not None
    assert unused.grad is None


class Replayed:
    """Stands for a CUDA graph where there is none: recording has no effect, replaying does the work again."""

    made = 0

    def __init__(self, module):
        self.module, Replayed.made = module, Replayed.made + 1

    def warm_up(self, work):
        work()

    def record(self, work):
        module, optimizer = self.module, self.module.optimizers(use_pl_optimizer=False)
        kept = [*module.parameters(), *(one for state in optimizer.state.values() for one in state.values())]
        before = [tensor.detach().clone() for tensor in kept]
        work()
        with torch.no_grad():
            for tensor, old in zip(kept, before, strict=True):
                tensor.copy_(old)
        self.work, self.gradients = work, [weight.grad for weight in module.net.parameters()]

    def replay(self):
        self.work()
        for weight, kept in zip(self.module.net.parameters(), self.gradients, strict=True):
            kept.copy_(weight.grad)
            weight.grad = kept


@pytest.fixture
def graphed(monkeypatch):
    """Makes the steps of fast modules graphed ones."""
    Replayed.made = 0
    monkeypatch.setattr("grok.training.module.plan", lambda *_: Plan(graph=True))
    monkeypatch.setattr(
        forms, "GraphedSteps", lambda module, loss: GraphedSteps(module, loss, lambda: Replayed(module))
    )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [FUSED, partial(torch.optim.SGD, lr=0.1, momentum=0.9)], ids=["whole", "half"])
def test_recorded_steps_learn_the_same_in_200_steps_in_float64(tmp_path, graphed, optimizer):
    evaluation = Evaluation(every=30)  # Lightning drops gradients before it evaluates
    options = {"optimizer": optimizer, "data": None, **DEMANDING}
    plain = learnt(tmp_path, Evaluation(every=30), **options)
    fast = learnt(tmp_path, evaluation, fast=True, **options)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert Replayed.made == 1


def test_recorded_steps_are_counted_and_leave_a_checkpoint_that_any_form_continues(tmp_path, graphed):
    options = {**DEMANDING, "optimizer": FUSED, "schedule": partial(Warmup, warmup=5)}
    module = make_module(small_world(), fast=True, **options)
    trainer = train(tmp_path / "fast", module, LastCheckpoint(10), steps=20, data=small_world())
    assert trainer.global_step == 20
    saved = torch.load(tmp_path / "fast/last.ckpt", weights_only=True)
    rates = [group["lr"] for state in saved["optimizer_states"] for group in state["param_groups"]]
    assert all(type(rate) is float for rate in rates)
    assert not any(group["capturable"] for state in saved["optimizer_states"] for group in state["param_groups"])
    plain = make_module(small_world(), **options)
    train(tmp_path / "plain", plain, LastCheckpoint(10), steps=20, data=small_world())
    other = torch.load(tmp_path / "plain/last.ckpt", weights_only=True)
    assert other["state_dict"].keys() == saved["state_dict"].keys()
    assert other["lr_schedulers"][0].keys() == saved["lr_schedulers"][0].keys()
    assert other["lr_schedulers"][0]["_last_lr"] == pytest.approx(saved["lr_schedulers"][0]["_last_lr"])
    for fast in (False, True):
        continued = make_module(small_world(), fast=fast, **options)
        train(tmp_path / str(fast), continued, steps=30, data=small_world(), resume=tmp_path / "fast/last.ckpt")
        whole = make_module(small_world(), **options)
        train(tmp_path / f"{fast} whole", whole, steps=30, data=small_world())
        torch.testing.assert_close(weights(continued), weights(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", [FUSED, partial(torch.optim.SGD, lr=0.01)], ids=["whole", "half"])
def test_a_recorded_step_that_is_not_finite_is_found(tmp_path, graphed, optimizer):
    data = Spoilt(batch=2, order_seed=1)
    first = next(step for step, rows in enumerate(data.generated.train.order(0, 16), 1) if data.row in rows)
    assert first > WARM_UP + 1
    module = make_module(data, fast=True, optimizer=optimizer, objective=SquaredError())
    with pytest.raises(NotFinite, match=rf"the loss is nan at optimizer step {first}$"):
        train(tmp_path, module, steps=40, data=data)
    assert Replayed.made == 1


def test_a_schedule_of_more_than_the_rate_leaves_the_optimizer_out_of_the_graph(tmp_path, graphed):
    options = {"optimizer": FUSED, "schedule": partial(OneCycleLR, max_lr=3e-3, total_steps=60)}  # moves betas, too
    plain = learnt(tmp_path, steps=40, **options)
    fast = learnt(tmp_path, fast=True, steps=40, **options)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert Replayed.made == 2


def test_batches_of_another_shape_are_done_one_operation_at_a_time(tmp_path, graphed, monkeypatch):
    data, other = small_world(), make_data(batch=32).generated.train.batch(0)
    module = make_module(data, fast=True, optimizer=FUSED)
    train(tmp_path, module, steps=WARM_UP + 1, data=data)
    expected = torch.autograd.grad(module.loss(other), list(module.net.parameters()))
    seen = []
    monkeypatch.setattr(
        module, "on_before_optimizer_step", lambda _: seen.extend(w.grad.clone() for w in module.net.parameters())
    )
    module._steps.step(other)
    torch.testing.assert_close(seen, list(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the backward pass"])
def test_a_step_that_cannot_be_recorded_is_done_without_a_graph_and_said(tmp_path, monkeypatch, graphed, capsys, late):
    record = Replayed.record

    def refuse(self, work):
        if late:
            record(self, work)
            for weight in self.module.net.parameters():
                weight.grad.fill_(7.0)  # memory of a graph that never ran
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain = learnt(tmp_path, steps=20, optimizer=FUSED)
    monkeypatch.setattr(Replayed, "record", refuse)
    fast = learnt(tmp_path, fast=True, steps=20, optimizer=FUSED)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    said = [line for line in capsys.readouterr().out.splitlines() if "CUDA graph" in line]
    assert said == [
        "fast: no CUDA graph, torch cannot record this step: operation not permitted when stream is capturing"
    ]


def test_a_graphed_run_leaves_the_record_of_a_plain_one(tmp_path, graphed):
    for name, fast in (("plain", False), ("fast", True)):
        module = make_module(small_world(), fast=fast, optimizer=FUSED, **DEMANDING)
        watching = [Evaluation(every=10), GrokkingMonitor(), CostMeter(), CheckpointSeries(every=10), RunRecorder()]
        train(tmp_path / name, module, *watching, LastCheckpoint(10), steps=30, data=small_world())
    rates = [RunRecord(tmp_path / name).rows("learning_rate") for name in ("plain", "fast")]
    assert [row["step"] for row in rates[1]] == [10, 20, 30]
    assert [row["value"] for row in rates[1]] == pytest.approx([row["value"] for row in rates[0]])
    assert verify_series(tmp_path / "fast") == verify_series(tmp_path / "plain") > 3


@pytest.mark.gpu
def test_on_a_gpu_a_run_with_everything_that_watches_it_goes_through(tmp_path):
    module = make_module(small_world(), net={"width": 64, "dropout": 0.1}, fast=True, optimizer=FUSED, **DEMANDING)
    watching = [Evaluation(every=10), GrokkingMonitor(), CostMeter(), CheckpointSeries(every=10), RunRecorder()]
    options = {"accelerator": "gpu", "precision": "bf16-mixed", "data": small_world()}
    train(tmp_path, module, *watching, LastCheckpoint(10), steps=30, **options)
    assert [row["step"] for row in RunRecord(tmp_path).rows("learning_rate")] == [10, 20, 30]
    assert module._steps._graphed._recorded


class ActsWithin(L.Callback):
    def on_after_backward(self, *_):
        pass


def test_what_acts_within_a_step_is_found_and_keeps_the_graph_away(tmp_path):
    module = make_module()
    train(tmp_path, module, Evaluation(every=10), LastCheckpoint(10), steps=1)
    assert forms._hooks_of_a_step(module) is None
    train(tmp_path, module, ActsWithin(), steps=1)
    assert forms._hooks_of_a_step(module) == "ActsWithin"


def test_blocks_that_cannot_be_compiled_are_not_and_it_is_said(tmp_path, monkeypatch, capsys):
    def refuse(self, **_):
        self.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("no C compiler\nmore"))

    plain = learnt(tmp_path, steps=10)
    monkeypatch.setattr(torch.nn.Module, "compile", refuse)
    fast = learnt(tmp_path, steps=10, chosen=Plan(compiled=True), monkeypatch=monkeypatch)
    assert "fast: blocks are not compiled: no C compiler\n" in capsys.readouterr().out
    assert_same(fast, plain)


def line_of(module, data) -> str:
    chosen = plan(module, data.generated.train.batch(0))
    assert chosen == Plan(line=chosen.line)
    return chosen.line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"net": {"dropout": 0.1}}, "this model does not share prefixes"),
        ({"net": {"causal": False}}, "this model does not share prefixes"),
        ({"read_out": "everywhere"}, "prefixes are shared with read_out=supervised"),
    ],
    ids=str,
)
def test_a_line_says_why_the_plain_path_is_taken(options, reason):
    data = small_world()
    assert reason in line_of(make_module(data, **options), data)


def test_the_plain_path_is_taken_where_queries_share_few_prefixes_or_hold_no_tokens():
    data = make_data(batch=4)
    assert "share few prefixes" in line_of(make_module(data), data)
    data = Sums(batch=8)
    assert "this model does not share" in line_of(make_module(data, objective=SquaredError()), data)


def test_a_task_with_a_handful_of_tokens_is_fast_too(tmp_path):
    data = ModularArithmetic(modulus=7, batch=32)
    results = []
    for fast in (False, True):
        net = partial(LoopedTransformer, width=16, heads=2, layers=2)
        module = GrokModule(data.task, net=net, optimizer=ADAM, fast=fast)
        train(tmp_path, module, steps=50, data=data, precision="64-true")
        results.append(weights(module))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_on_a_gpu_graphed_compiled_steps_learn_what_plain_ones_learn(tmp_path, precision):
    # In float32 sums in another order move a weight by about the learning rate x steps x 1e-3; bfloat16 keeps 8 bits.
    band = {"32-true": 1e-3, "bf16-mixed": 3e-2}[precision]
    results = []
    for fast in (False, True):
        module = make_module(small_world(), net={"width": 64, "layers": 2}, fast=fast, optimizer=FUSED, **DEMANDING)
        trainer = train(tmp_path, module, steps=60, data=small_world(), accelerator="gpu", precision=precision)
        assert trainer.global_step == 60
        results.append(torch.cat([weight.flatten().cpu() for weight in weights(module).values()]))
    assert (results[0] - results[1]).norm() < band * results[0].norm()


@pytest.mark.gpu
def test_on_a_gpu_no_step_waits_for_the_device(tmp_path):
    data = small_world()
    module = make_module(data, net={"width": 64}, fast=True, optimizer=FUSED, **DEMANDING)
    train(tmp_path, module, steps=10, data=data, accelerator="gpu", precision="bf16-mixed")
    batches = list(data.generated.train.to("cuda").batches(10, 15))
    assert isinstance(module._steps, FastSteps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            module._steps.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
