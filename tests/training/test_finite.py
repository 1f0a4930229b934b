"""A loss or a gradient that is not finite stops training before anything of it is saved, or is left out and counted."""

import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from tiny import DEMANDING, Spoilt, SquaredError, Sums, assert_same, make_module, train, weights

from grok.callbacks import CheckpointSeries, Evaluation, LastCheckpoint, RunRecorder, load_series
from grok.callbacks.last import saved_checkpoints
from grok.errors import NotFinite
from grok.records import RunRecord
from grok.training import Objective


def spoilt_steps(data, steps) -> list[int]:
    """Optimizer steps, counted from 1, whose batch has the spoilt row."""
    return [step + 1 for step, rows in enumerate(data.generated.train.order(0, steps)) if data.row in rows]


class SpoilGradient(L.Callback):
    """Makes one gradient infinite, in a step whose loss is fine."""

    def __init__(self, steps):
        self.steps = steps

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step + 1 in self.steps:
            next(pl_module.net.parameters()).grad.view(-1)[0] = math.inf


def make(data=None, **options):
    return make_module(data or Spoilt(batch=8), objective=SquaredError(), **options)


@pytest.mark.parametrize("block", [1, 10, 50])
def test_the_first_step_whose_loss_is_not_a_number_stops_training_and_nothing_of_its_block_is_saved(tmp_path, block):
    data = Spoilt(batch=2, order_seed=9)
    first = spoilt_steps(data, 40)[0]
    assert 10 < first < 20
    callbacks = [CheckpointSeries(every=1000), LastCheckpoint(every=10), RunRecorder()]
    with pytest.raises(NotFinite, match=f"the loss is nan at optimizer step {first}$"):
        train(tmp_path, make(block=block), *callbacks, data=data)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 10
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())
    for path in load_series(tmp_path).values():
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_infinite_stops_training_though_its_loss_is_fine(tmp_path, clip):
    with pytest.raises(NotFinite, match="the norm of the gradient is inf at optimizer step 13"):
        train(tmp_path, make_module(clip=clip, block=10), SpoilGradient([13]))


def test_updates_are_left_out_and_counted_and_a_resumed_run_is_the_same(tmp_path):
    data, again = Spoilt(batch=8, order_seed=1), Spoilt(batch=8, order_seed=1)
    options = {"clip": 0.3, "ema_decay": 0.9, "nonfinite": "skip"}
    evaluation = Evaluation(every=10)
    whole = make(**options)
    trainer = train(tmp_path / "whole", whole, evaluation, LastCheckpoint(10), RunRecorder(), steps=40, data=data)
    wanted = len(spoilt_steps(data, 40))
    assert wanted > 3
    assert (whole.finite.skipped, trainer.global_step) == (wanted, 40)
    assert all(tensor.isfinite().all() for tensor in weights(whole).values())
    assert RunRecord(tmp_path / "whole").summary()["skipped_steps"] == wanted
    rows = RunRecord(tmp_path / "whole").rows("skipped_steps")
    assert [row["value"] for row in rows] == [len(spoilt_steps(data, step)) for step in (10, 20, 30, 40)]
    train(
        tmp_path / "cut", make(**options), evaluation, LastCheckpoint(10), steps=20, data=Spoilt(batch=8, order_seed=1)
    )
    rest = make(**options)
    train(tmp_path / "rest", rest, steps=40, data=again, resume=tmp_path / "cut/last.ckpt")
    assert rest.finite.skipped == wanted
    assert_same(weights(rest), weights(whole))


def test_an_update_that_is_left_out_leaves_weights_averages_and_optimizer_alone(tmp_path):
    seen = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            moments = [s["exp_avg"].clone() for s in trainer.optimizers[0].state.values()]
            seen[trainer.global_step] = (weights(pl_module), moments)

    module = make_module(block=1, nonfinite="skip", ema_decay=0.9)
    train(tmp_path, module, SpoilGradient([7]), Look(), steps=9)
    assert_same(seen[7], seen[6])
    assert not torch.equal(seen[8][0]["net.embedding.weight"], seen[7][0]["net.embedding.weight"])


def test_the_first_updates_left_out_are_told_and_not_more(tmp_path, capsys):
    train(tmp_path, make_module(nonfinite="skip"), SpoilGradient(range(3, 20)), steps=30)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(">>>")]
    assert len(told) == 10
    assert told[0] == ">>> the norm of the gradient is inf at optimizer step 3: no update (1 so far)"


def test_a_hundred_in_a_row_are_enough(tmp_path):
    with pytest.raises(NotFinite, match="step 105, as in each of the 100 steps before it"):
        train(tmp_path, make_module(nonfinite="skip"), SpoilGradient(range(5, 1000)), steps=200)


def test_while_updates_are_left_out_the_checkpoints_of_before_are_kept(tmp_path):
    with pytest.raises(NotFinite):
        train(
            tmp_path,
            make_module(nonfinite="skip", block=5),
            SpoilGradient(range(32, 1000)),
            LastCheckpoint(10),
            steps=200,
        )
    assert [entry["step"] for entry in saved_checkpoints(tmp_path)] == [30, 20, 10]


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_scaler_that_leaves_out_every_gradient_stops_training(tmp_path, nonfinite):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.raises(NotFinite, match="the scaler left out every one"):
        train(tmp_path, make_module(nonfinite=nonfinite), SpoilGradient(range(9, 1000)), steps=200, plugins=[plugin])


def test_watching_changes_no_bit(tmp_path):
    results = []
    for nonfinite in ("stop", "skip"):
        module = make_module(nonfinite=nonfinite, **DEMANDING)
        train(tmp_path / nonfinite, module, steps=30)
        results.append(weights(module))
    assert_same(*results)


class Overflowing(Objective):
    """A loss beyond the largest float32 whose gradient is fine: only the loss tells."""

    exact = False

    def forward(self, outputs, targets):
        values = (outputs.squeeze(-1) - targets) ** 2
        return values + torch.where(values > values.median(), math.inf, 0.0)

    def correct(self, outputs, targets):
        raise AssertionError


def test_an_infinite_loss_with_a_finite_gradient_stops_training(tmp_path):
    with pytest.raises(NotFinite, match=r"the loss is inf at optimizer step 1$"):
        train(tmp_path, make_module(Sums(batch=8), objective=Overflowing()), data=Sums(batch=8))


DIVERGING = (
    "--model.optimizer=torch.optim.AdamW",
    "--model.optimizer.lr=1e30",
    "--model.schedule=null",
    "--last.every=1",
)


def test_the_command_line_names_step_batch_checkpoint_and_remedy(grok, tiny_config, tmp_path):
    status, _, errors = grok(
        "fit", "--config", tiny_config, "--run_dir", tmp_path / "run", *DIVERGING, "--last.every=1"
    )
    assert status == 1
    lines = errors.splitlines()
    assert len(lines) <= 10
    assert "Traceback" not in errors
    step = int(lines[0].rpartition(" ")[2])
    assert lines[0].startswith("error: the ")
    assert f"data.generated.train.batch({step - 1}) of {tmp_path / 'run/config.yaml'}" in errors
    assert f"{tmp_path / 'run/last.ckpt'}, of step {step - 1}" in errors
    assert "--model.nonfinite skip" in errors
    saved = json.loads((tmp_path / "run/saved.json").read_text())
    assert saved[0]["step"] == step - 1
    summary = RunRecord(tmp_path / "run").summary()
    assert summary is None or not summary["finished"]
    assert grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "run", *DIVERGING)[0] == 1


def test_a_wrong_word_is_refused(grok, tiny_config):
    status, _, errors = grok("fit", "--config", tiny_config, "--model.nonfinite", "ignore")
    assert status == 2
    assert "model.nonfinite" in errors
