"""The step interface, and that every shortcut computes what the long way computes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from grok.errors import BadInput
from grok.models import LoopedTransformer
from grok.models.steps import pick
from grok.task import Task

TASK = Task(positions=5, outputs=11, tokens=11)


def make(**options) -> LoopedTransformer:
    torch.manual_seed(0)
    return LoopedTransformer(**{"task": TASK, "width": 16, "layers": 2, "loops": 2, "heads": 2, **options}).double()


VARIANTS = [
    {},
    {"loops": 1, "layers": 3},
    {"layers": 1, "loops": 4, "init_depth": "effective"},
    {"mlp": "none"},
    {"mlp": "swiglu", "norm": "rms", "bias": False},
    {"positions": "none", "activation": "relu"},
    {"positions": "rope", "norm": "none"},
    {"re_embed": True, "re_embed_temperature": 0.5},
    {"causal": False},
    {"tied": False},
]
TOKENS = torch.randint(11, (7, 5), generator=torch.Generator().manual_seed(1))
AT = torch.tensor([[4, 2]] * 3 + [[1, 0]] * 4)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("few_keys", [8, 0], ids=["elementwise", "fused"])
def test_last_block_and_head_at_the_answer_only_give_the_same_loss_and_gradients(options, few_keys, monkeypatch):
    monkeypatch.setattr("grok.models.layers._FEW_KEYS", few_keys)
    model = make(**options)
    targets = torch.randint(11, AT.shape)
    gradients = []
    for logits in (model(TOKENS, at=AT), pick(model(TOKENS), AT)):
        model.zero_grad()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for short, full in zip(*gradients, strict=True):
        torch.testing.assert_close(short, full, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_states_resume_from_any_step(options):
    model = make(**options)
    states = model.states(TOKENS)
    assert len(states) == len(model.steps) + 1
    for step, state in enumerate(states):
        torch.testing.assert_close(model.readout(model.run(state, start=step)), model(TOKENS))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_tap_that_only_looks_changes_nothing_and_sees_every_application(options):
    model, seen = make(**options), {}
    torch.testing.assert_close(model(TOKENS, tap=lambda name, x: seen.setdefault(name, x)), model(TOKENS))
    for index, (before, after) in enumerate(itertools.pairwise(model.states(TOKENS))):
        pre = seen[f"steps.{index}.hook_resid_pre"]
        if "re_embed" not in options:
            assert torch.equal(pre, before["resid"])
        torch.testing.assert_close(seen[f"steps.{index}.hook_resid_post"], after["resid"])
        pattern = seen[f"steps.{index}.attn.hook_pattern"]  # [B, H, T, T]
        torch.testing.assert_close(pattern.sum(-1), torch.ones(7, 2, 5).double())
        assert seen[f"steps.{index}.attn.hook_z"].shape == (7, 5, 2, 8)


def test_a_tap_that_patches_replaces_the_value():
    model = make()
    other = model.states(TOKENS.flip(0))[2]["resid"]
    patched = model(TOKENS, tap=lambda name, x: other if name == "steps.2.hook_resid_pre" else x)
    torch.testing.assert_close(patched, model(TOKENS.flip(0)))


def test_causal_models_do_not_look_ahead_and_others_do():
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    for causal in (True, False):
        model = make(causal=causal)
        same = torch.equal(model(TOKENS)[:, :-1], model(changed)[:, :-1])
        assert same is causal


def test_re_embedding_adds_the_expected_embedding_between_loops_only():
    model = make(re_embed=True, layers=1)
    first = model.run(model.embed(TOKENS), 0, 1)
    expected = first["resid"] + model.readout(first).softmax(-1) @ model.embedding.weight
    torch.testing.assert_close(model.states(TOKENS)[2]["resid"], model.blocks[0](expected))


def test_shared_blocks_are_stored_once():
    count = {loops: sum(p.numel() for p in make(loops=loops).parameters()) for loops in (1, 2, 5)}
    assert len(set(count.values())) == 1


def test_parameter_count_of_the_8_layer_model_of_wang_2024():
    with torch.device("meta"):
        vocabulary = Task(positions=1024, outputs=52_464, tokens=52_464)
        model = LoopedTransformer(vocabulary, width=768, layers=8, heads=12)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == 52_464 * 768 + 1024 * 768 + 8 * 7_087_872 + 1536  # 97.78 M
    with torch.device("meta"):
        shared = LoopedTransformer(vocabulary, width=768, layers=4, loops=2, heads=12)
    assert sum(p.numel() for p in shared.parameters()) == 69_431_808


@pytest.mark.parametrize(("init_depth", "depth"), [("stored", 4), ("effective", 8)])
def test_initial_weights_are_scaled_as_in_gpt2(init_depth, depth):
    torch.manual_seed(0)
    model = LoopedTransformer(TASK, width=128, layers=4, loops=2, heads=2, init_depth=init_depth)
    block = model.blocks[3]
    assert block.mlp.out.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.02)
    assert block.attn.out.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.02)
    assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(p.eq(0).all() for n, p in model.named_parameters() if n.endswith("bias"))


def test_rotary_positions_depend_on_distance_only():
    model = make(positions="rope", re_embed=False)
    shifted = torch.arange(5).expand(7, 5) + 3
    torch.testing.assert_close(model(TOKENS, position_ids=shifted), model(TOKENS))


def test_explicit_position_ids_select_learned_positions():
    model = make()
    ids = torch.arange(5).expand(7, 5)
    torch.testing.assert_close(model(TOKENS, position_ids=ids), model(TOKENS))
    assert not torch.allclose(model(TOKENS, position_ids=ids.flip(1)), model(TOKENS))


def test_continuous_columns_are_projected_in_and_values_out():
    model = LoopedTransformer(Task(positions=5, outputs=1, features=3), width=16, layers=1, heads=2)
    assert model(torch.randn(4, 5, 3)).shape == (4, 5, 1)
    assert model(torch.randn(4, 5, 3), at=torch.tensor([[4]] * 4)).shape == (4, 1, 1)


def test_generate_continues_prompts_of_different_lengths_greedily():
    model = make()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 9]])
    rollout = model.generate(prompt, torch.tensor([3, 2]), count=2)
    for row, length in ((0, 3), (1, 2)):
        tokens = prompt[row, :length].tolist()
        for _ in range(2):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        assert rollout[row].tolist() == tokens[length:]
    with pytest.raises(ValueError, match="7 positions needed"):
        model.generate(prompt, torch.tensor([3, 2]), count=5)
    with pytest.raises(ValueError, match="causal"):
        make(causal=False).generate(prompt, torch.tensor([3, 2]), count=1)


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    assert not torch.equal(model(TOKENS), model(TOKENS))
    model.eval()
    assert torch.equal(model(TOKENS), model(TOKENS))


def test_all_problems_of_the_sizes_are_told_at_once():
    with pytest.raises(BadInput) as error:
        make(width=0, layers=-1, dropout=1.5)
    assert [problem.key for problem in error.value.problems] == ["width", "layers", "dropout"]
    with pytest.raises(BadInput, match="heads=3: use a divisor of width=16"):
        make(heads=3)
