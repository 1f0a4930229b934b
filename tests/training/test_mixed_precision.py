"""fp16 with its scaler, bf16 without a stale cast: on the CPU, through Lightning's own plugins."""

from functools import partial

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny import RATE, assert_same, make_module, train, weights

from grok.errors import BadInput


def half(**scaler) -> MixedPrecision:
    options = {"init_scale": 1024.0, **scaler}
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **options))


def total_norm(module) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in module.net.parameters()]))


def test_the_scaler_scales_and_clipping_sees_unscaled_gradients(tmp_path):
    norms = {}
    for precision in ("half", "full"):
        module, before, after = make_module(clip=0.05), [], []
        clip = module.on_before_optimizer_step

        def watched(optimizer, clip=clip, module=module, before=before, after=after):
            before.append(total_norm(module))
            clip(optimizer)
            after.append(total_norm(module))

        scaled = []
        backward = module.manual_backward

        def watch_backward(loss, backward=backward, module=module, scaled=scaled):
            backward(loss)
            scaled.append(total_norm(module))

        module.on_before_optimizer_step, module.manual_backward = watched, watch_backward
        plugin = half(growth_interval=2)
        train(tmp_path / precision, module, steps=3, plugins=[plugin] if precision == "half" else None)
        assert after == pytest.approx([0.05] * 3, rel=1e-3)
        norms[precision] = before, scaled
        if precision == "half":
            assert plugin.scaler.get_scale() == 2048.0  # grown once, after two good steps
            assert [s / b for s, b in zip(scaled, before, strict=True)] == pytest.approx([1024, 1024, 2048], rel=1e-3)
    assert norms["half"][0][0] == pytest.approx(norms["full"][0][0], rel=0.02)


def test_a_step_that_overflows_is_skipped_and_the_scale_falls(tmp_path):
    module, plugin = make_module(block=2), half(init_scale=2.0**80)
    before = weights(module)
    trainer = train(tmp_path, module, steps=2, plugins=[plugin])
    assert_same(weights(module), before)
    assert plugin.scaler.get_scale() == 2.0**78
    assert trainer.global_step == 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_low_precision_trains_the_same_with_every_block(tmp_path, precision):
    results = []
    for block in (1, 50):
        module = make_module(block=block)
        options = {"precision": precision} if precision == "bf16-mixed" else {"plugins": [half()]}
        before = weights(module)
        train(tmp_path / str(block), module, steps=12, **options)
        results.append(weights(module))
        assert all(not torch.equal(before[name], weight) for name, weight in results[-1].items())
    assert_same(*results)


def test_bf16_follows_float32(tmp_path):
    """Weights cast once per block would stand still inside it."""
    results = {}
    for precision in ("32-true", "bf16-mixed"):
        module = make_module(block=50)
        train(tmp_path / precision, module, steps=50, precision=precision)
        results[precision] = module.pop_training_loss()
    assert results["bf16-mixed"] == pytest.approx(results["32-true"], rel=0.03)


def test_clipping_with_a_fused_optimizer_under_fp16_is_refused(tmp_path):
    fused = partial(torch.optim.AdamW, lr=RATE, fused=True)
    with pytest.raises(BadInput, match=r"clip=1\.0: .*fused"):
        train(tmp_path, make_module(optimizer=fused), steps=1, plugins=[half()])
    train(tmp_path, make_module(optimizer=fused, clip=None), steps=1, plugins=[half()])
    train(tmp_path, make_module(optimizer=fused), steps=1, precision="bf16-mixed")
