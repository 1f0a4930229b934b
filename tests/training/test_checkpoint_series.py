"""The light checkpoints: which steps, what they hold, and that damage is noticed."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_data, make_module, train, weights

from grok.callbacks import CheckpointSeries, LastCheckpoint, load_series, verify_series
from grok.errors import BadInput


@pytest.mark.parametrize("block", [1, 50])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 10}, [0, 1, 2, 4, 8, 10, 16, 20, 25]),
        ({"every": 10, "powers_of_two": False}, [0, 10, 20, 25]),
        ({"every": 2, "until": 6, "then": 9, "powers_of_two": False}, [0, 2, 4, 6, 15, 24, 25]),
        ({"every": 25, "powers_of_two": False}, [0, 25]),
    ],
    ids=str,
)
def test_steps_are_the_start_the_schedule_and_the_end(tmp_path, block, options, expected):
    train(tmp_path, make_module(block=block), CheckpointSeries(**options), steps=25)
    assert list(load_series(tmp_path)) == expected
    assert verify_series(tmp_path) == len(expected)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_files_hold_the_weights_that_are_evaluated(tmp_path, ema_decay):
    module, fresh = make_module(ema_decay=ema_decay), make_module(seed=5).net
    start = {name: weight.clone() for name, weight in module.net.state_dict().items()}
    train(tmp_path, module, CheckpointSeries(10), steps=10)
    series = load_series(tmp_path)
    assert all(torch.equal(weight, start[name]) for name, weight in load_file(series[0]).items())
    fresh.load_state_dict(load_file(series[10]))
    inputs = make_data().splits["id_atomic"].inputs
    with torch.no_grad():
        assert torch.equal(fresh(inputs), module.evaluated(inputs))
        assert torch.equal(fresh(inputs), module.net(inputs)) is (ema_decay is None)


def test_the_manifest_gives_the_sha256_of_each_file(tmp_path):
    train(tmp_path, make_module(), CheckpointSeries(10), steps=10)
    for entry in json.loads((tmp_path / "series/manifest.json").read_text()):
        content = (tmp_path / "series" / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]


def test_verify_names_what_is_missing_and_what_has_changed(tmp_path):
    train(tmp_path, make_module(), CheckpointSeries(10), steps=10)
    series = load_series(tmp_path)
    series[4].unlink()
    content = bytearray(series[8].read_bytes())
    content[-1] ^= 1
    series[8].write_bytes(content)
    with pytest.raises(BadInput) as told:
        verify_series(tmp_path)
    missing, changed = str(told.value).splitlines()
    assert f"{series[4]}: missing" in missing
    assert f"{series[8]}: content differs" in changed


def test_no_manifest_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"manifest\.json: not there"):
        verify_series(tmp_path)
    (tmp_path / "series").mkdir()
    (tmp_path / "series/manifest.json").write_text('[{"step": 1}]')
    with pytest.raises(BadInput, match=r"manifest\.json: not a manifest"):
        verify_series(tmp_path)


def test_a_resumed_run_saves_again_what_lies_ahead(tmp_path):
    class Keep(LastCheckpoint):
        def _save(self, trainer):
            super()._save(trainer)
            if trainer.global_step == 6:
                shutil.copy(tmp_path / "last.ckpt", tmp_path / "cut.ckpt")

    train(tmp_path, make_module(), CheckpointSeries(4), Keep(6), steps=12)
    before = (tmp_path / "series/manifest.json").read_text()
    load_series(tmp_path)[8].write_bytes(b"half of a run that was cut")
    module = make_module(seed=3)
    train(tmp_path, module, CheckpointSeries(4), Keep(6), steps=12, resume=tmp_path / "cut.ckpt")
    assert (tmp_path / "series/manifest.json").read_text() == before
    assert verify_series(tmp_path) == 6
    last = load_file(load_series(tmp_path)[12])
    assert all(torch.equal(last[name.removeprefix("net.")], weight) for name, weight in weights(module).items())


def test_a_series_that_is_switched_off_saves_nothing(tmp_path):
    train(tmp_path, make_module(), CheckpointSeries(enabled=False), steps=2)
    assert not (tmp_path / "series").exists()
