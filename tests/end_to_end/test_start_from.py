"""A run that starts from a saved step of another one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_configuration import train_tiny

from grok.callbacks import Evaluation, load_series
from grok.callbacks.start import insist_on_same_task
from grok.errors import BadInput
from grok.records import RunRecord


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A finished run; its lens follows the series."""
    return train_tiny(tmp_path_factory.mktemp("watched"), "--lens.enabled", "true")


@pytest.fixture
def source(grok, watched, tmp_path):
    """A copy of it, in the directory of the test."""
    return shutil.copytree(watched, tmp_path / "source")


@pytest.fixture
def fit(grok, tiny_config):
    """Train 20 steps in `target` from the run `source`."""

    def fit(*options, run="source", to="target"):
        usual = ("--config", tiny_config, "--trainer.max_steps", 20, "--evaluation.every", 10)
        return grok("fit", *usual, "--run_dir", to, "--start.run", run, *options)

    return fit


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_averaged_weights_of_the_step_are_where_training_starts(fit, source):
    status, output, errors = fit("--start.step", 30)
    assert (status, errors) == (0, "")
    assert "starting from source at step 30" in output
    theirs, mine = load_file(load_series(source)[30]), load_series("target")
    start = load_file(mine[0])
    assert all(torch.equal(theirs[name], weight) for name, weight in start.items())
    assert any(not torch.equal(theirs[name], weight) for name, weight in load_file(mine[20]).items())
    spent = RunRecord(source).summary()["flops"]
    expected = {"run": "source", "step": 30, "milestone": None, "flops": spent // 2}
    assert RunRecord("target").summary()["start"] == expected
    assert yaml.safe_load(Path("target/config.yaml").read_text())["start"] == {"run": "source", "step": 30}
    # A run that starts from that one carries the cost of both.
    assert fit(run="target", to="third")[0] == 0
    told = RunRecord("third").summary()["start"]
    assert (told["milestone"], told["step"]) == ("last", 20)
    assert told["flops"] == spent // 2 + RunRecord("target").summary()["flops"]
    assert "start" not in RunRecord(source).summary()


def test_a_milestone_of_the_run_is_looked_up(fit, source):
    rewrite(source / "summary.json", memorised_step=20, grok_step={"test_inferred_iid": 40})
    assert "at step 8 (before_memorised)" in fit("--start.step", "before_memorised", to="a")[1]
    assert "at step 30 (memorised)" in fit("--start.step", "memorised", to="b")[1]
    assert RunRecord("b").summary()["start"]["milestone"] == "memorised"
    where = {"step": 10, "split": "test_inferred_iid", "value": 0.95, "floor": 0.1}
    names = ("lens/mrr/bridge/S[1,r1]", "tracing/changed/S[1,r1]")
    RunRecord(source).append([{**where, "name": name} for name in names])
    assert "at step 16 (bridge)" in fit("--start.step", "bridge", to="c")[1]


@pytest.mark.slow
def test_without_the_other_run_a_resumed_one_goes_on_and_is_tested(fit, grok, source, hashes, monkeypatch):
    class Power(BaseException):
        """Nothing catches this."""

    def cut(self, trainer, *_):
        if trainer.global_step >= 12:
            raise Power
        original(self, trainer, *_)

    assert fit(to="whole")[0] == 0
    original = Evaluation.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "on_train_batch_end", cut)
        with pytest.raises(Power):
            fit("--last.every", 10)
    source.rename("moved")
    status, output, errors = fit("--last.every", 10)
    assert (status, errors, "Resuming" in output, output.count("starting from")) == (0, "", True, 1)  # before the cut
    assert hashes("target") == hashes("whole")
    assert RunRecord("target").summary()["start"] == RunRecord("whole").summary()["start"]
    assert grok("test", "target")[0] == 0
    assert grok("trace", "target", "--attention.enabled", "true")[0] == 0
    assert "nothing to do" in fit(to="whole")[1]


NET = "model.net.init_args"
REFUSED = {
    "no such milestone": (("--start.step", "half"), "start.step='half': use a step of the series, or last"),
    "never reached": (("--start.step", "grokked"), "start.step='grokked' of start.run='source': it never got there"),
    "not saved": (("--start.step", 31), "start.step=31 of start.run='source': not saved; the nearest saved steps"),
    "entities": (("--data.entities", 13), "data.entities is 12 in source/config.yaml, 13 in target"),
    "seed": (("--seed_everything", 4), "data.graph_seed is 3 in source/config.yaml, 4 in target"),
    "split": (("--data.iid", 0.3), "data.iid is 0.2 in source/config.yaml, 0.3 in target"),
    "table": (("--data.phi", 1), "data.phi is 2.0 in source/config.yaml, 1.0 in target"),
    "encoding": (("--data.encoding", "grok.data.NextToken", "--data.encoding.pad", 10), "data.encoding is {"),
    "loops": (("--model.net.loops", 3), "model.net.loops is 2 in source/config.yaml, 3 in target"),
    "two starts": (("--ckpt_path", "source/last.ckpt"), "training starts from start.run; keep one"),
}


@pytest.mark.parametrize(("options", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_started_from_is_refused_before_anything_is_written(fit, source, options, told):
    rewrite(source / "summary.json", memorised_step=20, grok_step={"test_inferred_iid": None})
    status, _, errors = fit(*options)
    assert (status, len(errors.splitlines())) == (2, 1)
    assert told in errors
    assert not Path("target").exists()


def test_data_without_what_the_other_has_is_another_task(fit, source, tmp_path):
    config = yaml.safe_load((source / "config.yaml").read_text())
    there = {"entities": 12, "relations": 4}

    def with_data(data):
        return {**config, "data": {"init_args": data}}

    def told(theirs, mine):
        with pytest.raises(BadInput) as error:
            insist_on_same_task(with_data(theirs), with_data(mine), "a", "b")
        return str(error.value)

    assert "data.path is 'x' in a, nothing in b" in told({"path": "x"}, there)
    assert "data.entities is nothing in a, 12 in b" in told({"modulus": 7}, there)
    assert "data.regime is 'natural' in a, 'both_full' in b" in told(there, {**there, "regime": "both_full", "k": 4})
    same = {**there, "regime": "natural", "k": 4}
    insist_on_same_task(with_data(there), with_data(same), "a", "b")  # nothing is exposed in either


def test_the_same_graph_by_another_spelling_is_accepted(fit, source):
    encoding = ("--data.encoding", "grok.data.NextToken", "--data.graph_seed", 3, "--seed_everything", 9)
    assert fit(*encoding, "--model.net.dropout", 0, "--model.ema_decay", "null")[0] == 0


def test_a_run_that_is_not_there_not_finished_or_not_a_run_is_refused(fit, source):
    assert "start.run='nowhere': not there; a run starts from" in fit(run="nowhere")[2]
    for name, told in (("config.yaml", "not the configuration"), ("series/manifest.json", "not there; a run with")):
        (source / name).rename("kept")
        status, _, errors = fit()
        assert (status, told in errors, len(errors.splitlines())) == (2, True, 1)
        Path("kept").rename(source / name)
    rewrite(source / "summary.json", finished=False)
    assert "start.run='source': not finished; a run starts from" in fit()[2]
    assert not Path("target").exists()


def test_a_run_that_was_begun_before_there_were_starts_goes_on(grok, tiny_config, source):
    config = source / "config.yaml"
    old = yaml.safe_load(config.read_text())
    del old["start"]
    config.write_text(yaml.safe_dump(old))
    again = ("fit", "--config", tiny_config, "--run_dir", "source", "--lens.enabled", "true")
    assert "finished; nothing to do" in grok(*again)[1]
    assert "start.run: None in the run, 'x' now" in grok(*again, "--start.run", "x")[2]
