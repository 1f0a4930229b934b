"""Run directories: half written, foreign, read-only, led astray; and commands that are given something else."""

import json
import os
import shutil
from pathlib import Path

import pytest

from grok import files


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made.run, tmp_path / "run")
    shutil.copy(made.config, tmp_path / "small.yaml")
    return tmp_path / "run"


def written(name, content):
    return lambda run: (run / name).write_bytes(content)


def removed(*names):
    def broken(run):
        for name in names:
            (run / name).unlink()

    return broken


def directory(name):
    def broken(run):
        (run / name).unlink()
        (run / name).mkdir()

    return broken


def loop(name):
    def broken(run):
        (run / name).unlink()
        (run / name).symlink_to(name)

    return broken


def terabyte(name):
    return lambda run: os.truncate(run / name, 2**40)


def summary(**values):
    def broken(run):
        content = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(content | values))

    return broken


def unfinished(*more):
    def broken(run):
        summary(finished=False)(run)
        for one in more:
            one(run)

    return broken


def no_series(run):
    shutil.rmtree(run / "series")


NO_SUMMARY = ["summary.json", "not a summary", "--fresh"]

# What is done to a finished run, and what `grok fit` must say when it is asked to go on there.
RUNS = {
    "no configuration": (removed("config.yaml"), ["run_dir='run'", "holds other files"]),
    "an empty configuration": (written("config.yaml", b""), ["config.yaml", "empty", "--fresh"]),
    "half a configuration": (written("config.yaml", b"trainer: {max_steps: 4\n"), ["config.yaml", "restore it"]),
    "a configuration of zeros": (written("config.yaml", bytes(512)), ["config.yaml", "restore it"]),
    "a configuration that is no text": (written("config.yaml", b"\xff\xfe\0"), ["config.yaml", "restore it"]),
    "a configuration that is a list": (written("config.yaml", b"- 1\n"), ["config.yaml", "restore it"]),
    "a configuration that is a directory": (directory("config.yaml"), ["config.yaml", "directory"]),
    "a configuration that runs programs": (written("config.yaml", b"!!python/name:os.system\n"), ["config.yaml"]),
    "a configuration of another run": (
        written("config.yaml", b"seed_everything: 8\n"),
        ["another configuration", "seed_everything: 8 in the run, 3 now", "--fresh"],
    ),
    "half a summary": (written("summary.json", b'{"step": 4'), NO_SUMMARY),
    "a summary that is a directory": (directory("summary.json"), ["summary.json"]),
    "a summary of a terabyte": (terabyte("summary.json"), NO_SUMMARY),
    "a record that is no text": (
        unfinished(removed("last.ckpt", "previous.ckpt"), no_series, written("metrics.jsonl", b"\xff\xfe\0")),
        ["metrics.jsonl", "UTF-8"],
    ),
    "two damaged checkpoints": (
        unfinished(written("last.ckpt", b"x"), written("previous.ckpt", b"x")),
        ["last.ckpt", "previous.ckpt", "--fresh"],
    ),
    "a checkpoint that is a directory": (unfinished(directory("last.ckpt")), ["last.ckpt"]),
    "checkpoints of garbage that nothing tells": (
        unfinished(removed("saved.json"), written("last.ckpt", b"x")),
        ["last.ckpt", "damaged"],
    ),
}


@pytest.mark.parametrize(("broken", "told"), RUNS.values(), ids=RUNS.keys())
def test_a_run_that_is_to_go_on(refused, run, broken, told):
    broken(run)
    refused("fit", "--config", "small.yaml", "--run_dir", "run", told=told)


# What `grok test`, `validate` or `predict` is given, and what it must say.
EXAMINED = {
    "nothing": (lambda run: shutil.rmtree(run), ["run: not a run directory", "config.yaml"]),
    "an empty directory": (lambda run: (shutil.rmtree(run), run.mkdir()), ["run: not a run directory"]),
    "a file": (lambda run: (shutil.rmtree(run), run.write_text("")), ["run: not a run directory"]),
    "a link to itself": (lambda run: (shutil.rmtree(run), run.symlink_to("run")), ["run: not a run directory"]),
    "a configuration that is a link to itself": (loop("config.yaml"), ["run: not a run directory"]),
    "a configuration that is a directory": (directory("config.yaml"), ["config.yaml", "directory"]),
    "an empty configuration": (written("config.yaml", b""), ["config.yaml", "empty"]),
    "a configuration of another version": (
        lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text() + "rotation: {every: 3}\n"),
        ["rotation", "no such key"],
    ),
    "no checkpoint": (removed("last.ckpt", "previous.ckpt"), ["last.ckpt", "no trained weights", "--ckpt_path"]),
    "a damaged checkpoint": (written("last.ckpt", b"x"), ["last.ckpt", "--ckpt_path", "previous.ckpt"]),
    "a checkpoint that is a directory": (directory("last.ckpt"), "last.ckpt"),
    "a checkpoint that is a link to nothing": (
        lambda run: (removed("last.ckpt", "previous.ckpt")(run), (run / "last.ckpt").symlink_to("nothing")),
        ["last.ckpt", "no trained weights"],
    ),
    "another checksum": (
        written("saved.json", json.dumps([{"step": 4, "sha256": "0" * 64}]).encode()),
        ["last.ckpt", "damaged or replaced"],
    ),
}


@pytest.mark.parametrize(("broken", "told"), EXAMINED.values(), ids=EXAMINED.keys())
def test_a_run_that_is_examined(refused, run, broken, told):
    broken(run)
    refused("predict", "run", told=told)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="torn"),
        pytest.param(b"7", id="a number"),
        pytest.param(b'[{"step": 4}]', id="without checksums"),
        pytest.param(b"\xff\xfe\0", id="no text"),
        pytest.param(b"[" * 100_000, id="nested too deep"),
    ],
)
def test_without_checksums_a_checkpoint_speaks_for_itself(grok, run, content):
    (run / "saved.json").write_bytes(content)
    status, _, errors = grok("verify", "run")
    assert (status, errors) == (0, "")


# Whole command lines, and what must be said about them.
COMMANDS = {
    "a command that is none": (["tset", "run"], ["tset", "did you mean test?"]),
    "an option for a command": (["--config", "small.yaml"], ["subcommand", "fit"]),
    "test of nothing": (["test"], ["data", "required"]),
    "test of nowhere": (["test", "nope"], ["nope: not a run directory", "config.yaml"]),
    "validate of nowhere": (["validate", "nope"], ["nope: not a run directory"]),
    "predict of a file": (["predict", "small.yaml"], ["small.yaml: not a run directory"]),
    "predict of a name of 300 letters": (["predict", "r" * 300], "too long"),
    "test of another model": (["test", "run", "--model.net.width", 16], "of another model"),
    "test of two runs": (["test", "run", "run"], ["run"]),
    "test with a key that is none": (["test", "run", "--trainer.devcies", 1], "trainer.devcies: no such key"),
    "test with a value that is none": (["test", "run", "--data.evaluation_batch", 0], "evaluation_batch=0"),
    "verify of nothing": (["verify"], "usage: grok verify RUN"),
    "verify of two": (["verify", "run", "run"], "usage: grok verify RUN"),
    "verify of nowhere": (["verify", "nope"], ["nope/series/manifest.json", "not there"]),
    "verify of a file": (["verify", "small.yaml"], ["small.yaml/series/manifest.json", "not there"]),
    "verify with a key": (["verify", "--fast"], "usage: grok verify RUN"),
    "trace of nothing": (["trace"], "usage: grok trace RUN"),
    "trace of nowhere": (["trace", "nope"], ["nope: not a run directory"]),
    "trace without an analysis": (["trace", "run"], ["no analysis is enabled", "lens"]),
    "trace of another model": (
        ["trace", "run", "--lens.enabled", "true", "--model.net.loops", 3],
        ["trained with another configuration", "model.net.init_args.loops: 2 in the run, 3 now"],
    ),
    "trace of one checkpoint": (["trace", "run", "--ckpt_path", "run/last.ckpt"], ["ckpt_path", "grok test"]),
    "trace of a split that is none": (
        ["trace", "run", "--lens.enabled", "true", "--lens.splits", "[nope]"],
        ["lens.splits='nope'", "test_inferred_iid"],
    ),
    "trace of a key that is none": (["trace", "run", "--lens.evry", 2], "lens.evry: no such key"),
    "trace of no examples": (["trace", "run", "--lens.enabled", "true", "--lens.examples", 0], "lens.examples=0"),
    "verdict of nothing": (["verdict"], ["EXPERIMENT", "grok verdict --help"]),
    "verdict of nowhere": (["verdict", "nope"], ["nope", "no finished run"]),
    "verdict of a file": (["verdict", "small.yaml"], ["small.yaml", "no finished run"]),
    "verdict of a model that is none": (
        ["verdict", "run", "--model", "large"],
        ["model='large'", "1 blocks × 2 loops"],
    ),
    "verdict with a key that is none": (["verdict", "run", "--modle", "x"], ["--modle", "--help"]),
    "a start that was never reached": (
        ["fit", "--config", "small.yaml", "--start.run", "run", "--start.step", "grokked"],
        ["start.step='grokked'", "never got there"],
    ),
    "a start at a step that was not saved": (
        ["fit", "--config", "small.yaml", "--start.run", "run", "--start.step", 3],
        ["start.step=3", "the nearest saved steps are 2 and 4"],
    ),
    "a start on another graph": (
        ["fit", "--config", "small.yaml", "--start.run", "run", "--data.entities", 15],
        ["start.run: data.entities is 14", "15"],
    ),
    "a start from a run and a checkpoint": (
        ["fit", "--config", "small.yaml", "--start.run", "run", "--ckpt_path", "run/last.ckpt"],
        ["ckpt_path='run/last.ckpt'", "keep one"],
    ),
    "another model in the same place": (
        ["fit", "--config", "small.yaml", "--run_dir", "run", "--model.net.loops", 3],
        ["run holds a run with another configuration", "loops: 2 in the run, 3 now", "--fresh"],
    ),
}


@pytest.mark.parametrize(("arguments", "told"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command(refused, run, arguments, told):
    refused(*arguments, told=told)


# ------------------------------------------------------------------ places that refuse


@pytest.mark.parametrize(
    ("error", "told"),
    [(13, "Permission denied"), (30, "Read-only"), (28, "No space"), (116, "Stale"), (5, "Input/output")],
    ids=["not ours", "read-only", "full", "a network disk that has gone", "broken"],
)
def test_a_disk_that_refuses(refused, run, monkeypatch, error, told):
    """Simulated: nothing is forbidden to root."""

    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("grok.callbacks.predictions._lines", refuse)
    refused("predict", "run", told=["predictions.jsonl", told, "the same command continues"], status=74)


def test_a_directory_that_cannot_be_written_to(refused, tiny, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    refused("fit", "--config", tiny, "--run_dir", "new", told=["run_dir='new'", "can be written to"])


def test_a_directory_of_somebody_else(refused, tiny, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    (tmp_path / "theirs").mkdir(mode=0o555)
    refused("fit", "--config", tiny, "--run_dir", "theirs/new", told=["run_dir='theirs/new'", "can be written to"])


def test_a_run_that_another_process_trains(refused, run):
    held = files.lock(run)
    try:
        summary(finished=False)(run)
        refused("fit", "--config", "small.yaml", "--run_dir", "run", told=["run: another process", "--fresh"])
    finally:
        held.close()


def test_a_directory_with_other_files_is_not_taken_over(refused, tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    refused("fit", "--config", tiny, "--run_dir", "mine", told=["run_dir='mine'", "holds other files and no run"])


def test_a_loop_of_directories(refused, tiny, tmp_path):
    Path(tmp_path / "a").symlink_to("b")
    Path(tmp_path / "b").symlink_to("a")
    refused("fit", "--config", tiny, "--run_dir", "a/run", told=["a", "symbolic links"])
