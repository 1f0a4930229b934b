"""What holds for any recursive transformer."""

import math
from itertools import pairwise

import pytest
import torch

from grok.circuits.patching import Counterfactual, patch_states
from grok.data import FillIn, TwoHopComposition
from grok.errors import BadInput
from grok.models import RecursiveTransformer
from grok.models.steps import keeping
from grok.task import Task

TASK = Task(positions=5, outputs=11, tokens=11)
SMALL = {"width": 16, "heads": 4, "low_cycles": 2, "multiple": 8}
KINDS = [
    {},
    {"prefix": 0},
    {"prefix": 1, "positions": "learned"},
    {"mixing": "attention", "positions": "rope", "prefix": 3},
    {"mixing": "attention", "prefix": 0, "halt": False},
    {"layers": 1, "high_cycles": 1, "tied": True},
]


def make(seed=0, **options) -> RecursiveTransformer:
    torch.manual_seed(seed)
    net = RecursiveTransformer(TASK, **{**SMALL, **options})
    if net.prefix is not None:
        torch.nn.init.normal_(net.prefix)
    if net.halt_head is not None:
        torch.nn.init.normal_(net.halt_head.weight)
    return net.eval()


def queries(count=6):
    return torch.randint(11, (count, 5), generator=torch.Generator().manual_seed(1))


def gradients(net, inputs):
    net.zero_grad()
    net(inputs).square().sum().backward()
    return {name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None}


def test_the_papers_model_has_the_papers_weights():
    with torch.device("meta"):
        net = RecursiveTransformer(Task(positions=5, outputs=2206, tokens=2206))
    sizes = {name: weight.numel() for name, weight in net.named_parameters()}
    assert sizes.pop("prefix") == 1536
    assert sum(sizes.values()) == 44_560_898
    assert len(net.steps) == 14


def test_weights_start_with_the_spread_of_the_released_code():
    net = make(width=256, multiple=256)
    expected = {"embedding.weight": 1 / 16, "head.weight": 1 / 16, "blocks.0.mlp.out.weight": 1 / math.sqrt(768)}
    expected |= {"blocks.1.mix.gate_up.weight": 1 / math.sqrt(21), "start_H": 1.0}
    for name, std in expected.items():
        weight = net.state_dict()[name]
        assert weight.std().item() == pytest.approx(std, rel=0.1)
        assert weight.abs().max().item() <= 2 * std / 0.879626 + 1e-6
    plain = RecursiveTransformer(TASK, **SMALL)
    assert not plain.prefix.any()
    assert not plain.halt_head.weight.any()
    assert (plain.halt_head.bias == -5).all()


@pytest.mark.parametrize("options", KINDS)
def test_a_run_resumed_from_any_state_is_the_run(options):
    net, inputs = make(**options), queries()
    states, outputs = net.states(inputs), net(inputs)
    assert len(states) == len(net.steps) + 1
    for index, state in enumerate(states):
        assert all(state[name].shape == (6, 5, 16) for name in ("z_H", "z_L", "emb"))
        assert torch.equal(net.readout(net.run(state, start=index)), outputs)


@pytest.mark.parametrize("options", KINDS)
def test_chosen_positions_of_the_last_step_are_those_of_all(options):
    net, inputs = make(**options), queries()
    at = torch.tensor([[4, 2]]).expand(6, -1)
    outputs, state = net.forward_with_state(inputs, at)
    everything, whole = net.forward_with_state(inputs)
    torch.testing.assert_close(outputs, everything[:, [4, 2]])
    picked = net.picked(whole, at)
    assert state.keys() == picked.keys()
    for name in state:
        torch.testing.assert_close(state[name], picked[name])
    if net.halt_head is not None:
        torch.testing.assert_close(net.halt_logits(state), net.halt_logits(whole))
    low = net.run(net.embed(inputs), stop=1, at=at)
    torch.testing.assert_close(low["z_L"], net.run(net.embed(inputs), stop=1)["z_L"][:, [4, 2]])


def test_the_lens_follows_the_stream_that_was_written():
    net, inputs = make(), queries()
    assert [net.stream_at(index) for index in range(7)] == ["z_H", "z_L", "z_L", "z_H", "z_L", "z_L", "z_H"]
    states = net.states(inputs)
    for index in range(1, 7):
        written = net.stream_at(index)
        kept = "z_L" if written == "z_H" else "z_H"
        assert torch.equal(states[index][kept], states[index - 1][kept])
        assert not torch.equal(states[index][written], states[index - 1][written])


@pytest.mark.parametrize("options", KINDS)
def test_training_leaves_out_the_gradient_of_all_cycles_but_the_last(options):
    net, inputs = make(**{"high_cycles": 3, **options}), queries()
    full = gradients(net, inputs)
    net.train()
    truncated = gradients(net, inputs)
    net.gradient = "all"
    for name, gradient in gradients(net, inputs).items():
        torch.testing.assert_close(gradient, full[name])
    last = net.cycles[1] + 1
    state = net.eval().run(net.embed(inputs), stop=len(net.steps) - last)
    cut = {name: stream.detach() if name[-2:] in ("_H", "_L") else stream for name, stream in state.items()}
    net.zero_grad()
    net.readout(net.run(cut, start=len(net.steps) - last)).square().sum().backward()
    for name, gradient in truncated.items():
        torch.testing.assert_close(gradient, net.get_parameter(name).grad)
    one_cycle = net.cycles[0] == 1
    assert torch.allclose(truncated["blocks.0.mlp.out.weight"], full["blocks.0.mlp.out.weight"]) == one_cycle


def test_an_outer_autocast_leaves_weights_their_gradients():
    net, inputs = make(width=64, low_cycles=1).train(), queries()
    exact = gradients(net, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(inputs)
    net.zero_grad()
    outputs.float().square().sum().backward()
    for name, gradient in exact.items():
        assert (net.get_parameter(name).grad - gradient).norm() < 0.15 * gradient.norm(), name


@pytest.mark.parametrize("options", KINDS)
def test_bfloat16_activations_are_close_to_float32(options):
    options = {**options, "high_cycles": 2, "low_cycles": 1}
    exact, half = make(**options), make(activations="bfloat16", **options)
    inputs = queries()
    states = exact.states(inputs)
    for index, (before, after) in enumerate(pairwise(states)):  # step by step: small models magnify what came before
        rounded = half.run({name: stream.bfloat16() for name, stream in before.items()}, index, index + 1)
        for name, stream in after.items():
            assert rounded[name].dtype == torch.bfloat16
            assert (rounded[name] - stream).norm() < 0.02 * stream.norm(), (index, name)
    assert half(inputs).dtype == torch.bfloat16
    for name, weight in half.named_parameters():
        assert weight.dtype == torch.float32, name


@pytest.mark.parametrize("mixing", ["tokens", "attention"])
def test_bfloat16_activations_give_the_weights_their_gradients(mixing):
    options = {"mixing": mixing, "width": 64, "low_cycles": 1}
    exact, half = make(**options).train(), make(activations="bfloat16", **options).train()
    found = gradients(half, queries())
    for name, gradient in gradients(exact, queries()).items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() < 0.15 * gradient.norm(), name


def test_norms_of_bfloat16_are_computed_in_float32():
    net = make(activations="bfloat16")
    state = net.states(queries())[-1]["z_H"].double()
    torch.testing.assert_close(state.square().mean(-1), torch.ones(6, 5).double(), atol=4e-3, rtol=0)


@pytest.mark.parametrize("options", KINDS)
def test_queries_of_a_batch_do_not_meet(options):
    net, inputs = make(**options), queries()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(net(inputs[order]), net(inputs)[order])
    torch.testing.assert_close(net(inputs[:1]), net(inputs)[:1])


@pytest.mark.parametrize("options", KINDS)
def test_every_position_sees_every_other(options):
    net, inputs = make(**options), queries(1)
    for position in (0, 4):
        other = inputs.clone()
        other[:, position] = (other[:, position] + 1) % 11
        assert not torch.isclose(net(inputs), net(other)).all(-1).any()


def test_positions_may_be_given_where_they_matter():
    net, inputs = make(mixing="attention", positions="rope", prefix=3), queries()
    ids = torch.arange(5).expand(6, -1)
    torch.testing.assert_close(net(inputs, position_ids=ids), net(inputs))
    assert not torch.allclose(net(inputs, position_ids=ids + ids % 2), net(inputs))
    learned = make(prefix=1, positions="learned")
    torch.testing.assert_close(learned(inputs, position_ids=ids), learned(inputs))
    assert not torch.allclose(learned(inputs, position_ids=ids.flip(1)), learned(inputs))


@pytest.mark.parametrize("options", KINDS)
def test_hooks_fire_once_and_hold_what_is_written(options):
    net, inputs = make(**options), queries()
    names: list[str] = []
    net(inputs, tap=lambda name, value: (names.append(name), value)[1])
    assert len(names) == len(set(names))
    kept: dict[str, torch.Tensor] = {}
    steps = len(net.steps)
    wanted = [f"steps.{index}.hook_{net.stream_at(index + 1)}" for index in range(steps)]
    net(inputs, tap=keeping(kept, wanted))
    assert list(kept) == wanted
    for index, state in enumerate(net.states(inputs)[1:]):
        torch.testing.assert_close(kept[wanted[index]], state[net.stream_at(index + 1)])
    ours = net.blocks[0]
    inner = "attn.hook_pattern" if ours.attends else "mix.hook_post"
    assert {f"steps.{i}.blocks.{j}.{inner}" for i in range(steps) for j in range(len(net.blocks))} <= set(names)


@pytest.mark.parametrize("options", KINDS)
def test_states_are_patched_by_position(options):
    data = TwoHopComposition(entities=12, relations=4, out_degree=4, phi=2.0, iid=0.2, ood=0.2, encoding=FillIn())
    split = data.splits["train_inferred"].take(slice(0, 7))
    torch.manual_seed(0)
    net = RecursiveTransformer(data.task, **{**SMALL, **options}).eval()
    others = data.splits["train_inferred"].take(slice(7, 14)).inputs
    answers = split.targets[:, 0]
    found = patch_states(
        net, split, [Counterfactual("h", others, (0, 2), answers, torch.ones(7).bool())], [answers[:, None]]
    )
    clean, corrupted = net.states(split.inputs), net.states(others)
    for index in range(len(net.steps) + 1):
        state = dict(clean[index])
        for name in ("z_H", "z_L"):
            state[name] = state[name].clone()
            state[name][:, [0, 2]] = corrupted[index][name][:, [0, 2]]
        logits = net.readout(net.run(state, start=index)).gather(
            1, split.at[:, :1, None].expand(-1, -1, data.task.outputs)
        )
        expected = logits[:, 0].gather(1, answers[:, None])
        torch.testing.assert_close(found.patched.logit[:, 0, index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"halt_max_steps": 2}, "halt_max_steps=2: use 1: the paper ran one supervision step"),
        ({"positions": "rope"}, "positions='rope': rotates queries and keys"),
        ({"mixing": "attention", "heads": 5}, "heads=5: use a divisor of width=16"),
        ({"mixing": "attention", "positions": "rope", "heads": 16}, "even head width, not 1"),
        ({"prefix": -1, "layers": 0, "expansion": 0.0}, r"layers=0.*\n.*expansion=0.0.*\n.*prefix=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, named):
    with pytest.raises(BadInput, match=named):
        make(**wrong)


def test_what_a_model_does_not_have_it_says():
    with pytest.raises(ValueError, match="weights for 5 positions, not 4"):
        make()(queries()[:, :4])
    net = make(halt=False)
    with pytest.raises(ValueError, match="halt=False"):
        net.halt_logits(net.states(queries())[-1])
