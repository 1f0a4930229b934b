"""Evaluations and checkpoints fall on the optimizer steps they were asked for, whatever the block."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import make_data, make_module, train

from grok.callbacks import Evaluation
from grok.errors import BadInput


class Watch(L.Callback):
    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, _):
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize("block", [1, 7, 50])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every": 10}, [10, 20, 25]),
        ({"every": 5}, [5, 10, 15, 20, 25]),
        ({"every": 100}, [25]),
        ({"every": 20, "powers_of_two": True}, [1, 2, 4, 8, 16, 20, 25]),
        ({"every": 3, "until": 6, "then": 8}, [3, 6, 14, 22, 25]),
    ],
    ids=str,
)
def test_evaluation_happens_at_the_scheduled_steps_and_once_at_the_end(tmp_path, block, schedule, expected):
    watch = Watch()
    trainer = train(tmp_path, make_module(block=block), Evaluation(**schedule), watch, steps=25)
    assert watch.steps == expected
    assert trainer.global_step == 25


@pytest.mark.parametrize("block", [1, 7])
def test_model_checkpoint_saves_at_its_steps_though_the_block_does_not_divide_them(tmp_path, block):
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=6, save_top_k=-1)
    train(tmp_path, make_module(block=block), keep, steps=20, enable_checkpointing=True)
    assert {path.stem for path in (tmp_path / "kept").iterdir()} == {"step=6", "step=12", "step=18"}


def test_dropout_is_off_in_evaluation_and_on_again_afterwards(tmp_path):
    class Modes(L.Callback):
        seen = ()

        def on_validation_batch_start(self, trainer, module, *_):
            assert not module.net.training
            assert not module.ema.training

        def on_train_batch_start(self, trainer, module, *_):
            self.seen += (module.net.training,)

    modes = Modes()
    train(tmp_path, make_module(net={"dropout": 0.5}, ema_decay=0.9, block=5), Evaluation(5), modes, steps=15)
    assert modes.seen == (True, True, True)


def test_scores_are_those_of_a_direct_count(tmp_path):
    data, module = make_data(evaluation_batch=5), make_module()
    train(tmp_path, module, steps=20, data=data)
    module.eval()
    for name, split in data.splits.items():
        logits = module.net(split.inputs, at=split.at)[:, 0]
        right = (logits.argmax(-1) == split.targets[:, 0]).float().mean()
        assert module.scores[name].accuracy == pytest.approx(float(right), abs=1e-6)
        assert module.scores[name].n == len(split)
        losses = -logits.log_softmax(-1).gather(1, split.targets)
        assert module.scores[name].loss == pytest.approx(losses.mean().item(), rel=1e-5)


def test_the_training_loss_is_the_mean_since_the_last_look(tmp_path):
    module, losses = make_module(block=4), []
    backward = module.manual_backward
    module.manual_backward = lambda loss: (losses.append(loss.item()), backward(loss))
    train(tmp_path, module, steps=10)
    assert module.pop_training_loss() == pytest.approx(sum(losses) / 10, rel=1e-6)
    assert module.pop_training_loss() is None


@pytest.mark.parametrize("wrong", [{"clip": 0.0}, {"ema_decay": 1.0}, {"block": 0}], ids=str)
def test_arguments_that_make_no_sense_are_named(wrong):
    with pytest.raises(BadInput, match=f"^{next(iter(wrong))}="):
        make_module(**wrong)
