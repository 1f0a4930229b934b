"""The tools of other people compute what a model here computes, under the same names, and patch what we patch."""

import sys

import pytest
import torch
from torch.testing import assert_close

from grok.errors import BadInput
from grok.models import LoopedTransformer, RecursiveTransformer, to_transformer_lens
from grok.models.exchange import as_gpt2
from grok.task import Task

TASK = Task(positions=6, outputs=11, tokens=11)
TOKENS = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(1))
USE, AT = 2, 3  # of the first block for the second time, and a position to patch
ROTATED = ("hook_q", "hook_k")


def make(task=TASK, **options):
    """A model none of whose weights is trivial, in float64, and what it computes."""
    torch.manual_seed(0)
    model = LoopedTransformer(task, **{"width": 16, "layers": 2, "loops": 2, "heads": 2, "init_std": 0.3, **options})
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float("norm" in name and name.endswith("weight")), 0.3)
    return model.double().eval()


def patched(model):
    """Logits if a state of the others stands in for the one after application `USE` at position `AT`."""
    source = model.run_with_cache(TOKENS.flip(0))[1][f"blocks.{USE}.hook_resid_post"][:, AT]

    def tap(name, value):
        if name == f"steps.{USE}.hook_resid_post":
            value = value.clone()
            value[:, AT] = source
        return value

    return source, model(TOKENS, tap=tap)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loops": 1, "layers": 3, "activation": "gelu", "dropout": 0.1},
        {"mlp": "none", "causal": False},
        {"mlp": "swiglu", "norm": "rms", "bias": False, "hidden": 24},
        {"positions": "none", "activation": "relu", "bias": False},
        {"positions": "rope", "norm": "none"},
        {"tied": False, "task": Task(positions=6, outputs=7, tokens=11)},
    ],
    ids=str,
)
def test_transformer_lens_sees_and_patches_the_same(options):
    pytest.importorskip("transformer_lens")
    model = make(**options)
    before = torch.get_rng_state()
    bridge = to_transformer_lens(model)
    assert torch.equal(torch.get_rng_state(), before)
    close = {"atol": 1e-5, "rtol": 0} if options.get("norm") == "rms" else {"atol": 1e-12, "rtol": 0}
    (ours, seen), (theirs, cache) = (each.run_with_cache(TOKENS) for each in (model, bridge))
    assert_close(theirs, ours, **close)
    rotary = options.get("positions") == "rope"
    compared = [name for name in seen if not (rotary and name.endswith(ROTATED))]
    assert {name.split(".")[1] for name in compared} == {str(i) for i in range(len(model.steps))}
    for name in compared:
        assert_close(cache[name], seen[name], **close, msg=name)
    if len(model.steps) > USE + 1:
        source, wanted = patched(model)

        def overwrite(value, hook):
            value[:, AT] = source
            return value

        assert not torch.allclose(wanted, ours)
        given = bridge.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.{USE}.hook_resid_post", overwrite)])
        assert_close(given, wanted, **close)


@pytest.mark.slow
def test_what_transformer_lens_does_to_weights_reaches_neither_other_uses_nor_the_model():
    pytest.importorskip("transformer_lens")
    model = make()
    logits = model(TOKENS)
    bridge = to_transformer_lens(model)
    bridge.enable_compatibility_mode()  # folds norms, centres what is written
    assert_close(bridge(TOKENS).log_softmax(-1), logits.log_softmax(-1), atol=1e-5, rtol=0)
    assert torch.equal(model(TOKENS), logits)


def test_what_transformer_lens_has_not_is_refused_option_by_option():
    options = {"sees_itself": False, "scaled": False, "residual": False, "re_embed": True, "projections": "no_output"}
    with pytest.raises(BadInput) as told:
        to_transformer_lens(make(activation="identity", **options))
    for key, value in {**options, "activation": "identity"}.items():
        assert f"{key}={value!r}: TransformerLens has " in str(told.value)
    assert "loops" not in str(told.value)
    for model, what in {
        make(mlp="swiglu"): "bias=True: TransformerLens has none with mlp=swiglu",
        make(Task(positions=5, outputs=2, features=3)): "task.tokens=None: TransformerLens embeds tokens",
        RecursiveTransformer(TASK, width=16, heads=2): "RecursiveTransformer: TransformerLens has no such model",
    }.items():
        with pytest.raises(BadInput, match=what):
            to_transformer_lens(model)


def test_a_model_without_output_projection_is_no_gpt2():
    with pytest.raises(BadInput, match="projections='no_output': GPT-2 has all"):
        as_gpt2(make(loops=1, projections="no_output"))


def test_a_missing_transformer_lens_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    with pytest.raises(
        BadInput, match=r"transformer_lens.* is missing; pip install 'grok-circuits\[interpretability\]'"
    ):
        to_transformer_lens(make())


@pytest.mark.slow
def test_nnsight_reads_and_patches_one_use_of_a_block_that_is_used_twice():
    nnsight = pytest.importorskip("nnsight")
    model = make()
    logits, seen = model.run_with_cache(TOKENS)
    source, wanted = patched(model)
    traced = nnsight.NNsight(model)
    with traced.trace(TOKENS) as tracer:
        uses = nnsight.save([])
        for _ in tracer.iter[:2]:
            uses.append(traced.blocks[0].output)
        given = traced.output.save()
    assert torch.equal(given, logits)
    for index, use in zip((0, 2), uses, strict=True):
        assert_close(use, seen[f"blocks.{index}.hook_resid_post"])
    with traced.trace(TOKENS) as tracer:
        for _ in tracer.iter[1]:
            traced.blocks[0].output[:, AT] = source
        given = traced.output.save()
    assert_close(given, wanted)
    assert not torch.allclose(given, logits)
