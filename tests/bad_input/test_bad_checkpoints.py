"""Checkpoints and files of a series: damaged, foreign, hostile."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made.run, tmp_path / "run")
    return tmp_path / "run"


class Evil:
    """What it would do when it is loaded shows as a file in the directory of the test."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def changed(change):
    """Breaks a checkpoint by what `change` makes of its content."""

    def broken(path):
        content = torch.load(path, weights_only=True)
        content = change(content) or content
        torch.save(content, path)

    return broken


def without(*keys):
    return changed(lambda content: {key: value for key, value in content.items() if key not in keys})


def with_values(**values):
    return changed(lambda content: content | values)


def cut(share):
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def bytes_of(content):
    return lambda path: path.write_bytes(content)


def of_weights(change):
    """Breaks the weights of a checkpoint."""

    def changed_weights(content):
        change(content["state_dict"])

    return changed(changed_weights)


def wider(weights):
    for name, weight in weights.items():
        weights[name] = torch.cat([weight, weight])


def evil_zip(path):
    torch.save({"state_dict": Evil()}, path)


def evil_pickle(path):
    path.write_bytes(pickle.dumps(Evil()))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


# What is done to a checkpoint, and what must be said about it.
CHECKPOINTS = {
    "empty": (bytes_of(b""), "damaged"),
    "garbage": (bytes_of(b"garbage"), "damaged"),
    "zeros": (bytes_of(bytes(4096)), "another one"),
    "a text": (bytes_of(b"weights go here\n"), "damaged"),
    "half of it": (cut(0.5), "damaged"),
    "all but the end": (cut(0.99), "damaged"),
    "a flipped byte": (flipped, "another one"),
    "a program in a zip": (evil_zip, "would run"),
    "a program in a pickle": (evil_pickle, "not a checkpoint of plain data"),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "another one"),
    "a list": (lambda path: torch.save([1, 2], path), "another one"),
    "null": (lambda path: torch.save(None, path), "another one"),
    "an empty mapping": (lambda path: torch.save({}, path), "another one"),
    "no weights": (without("state_dict"), "state_dict"),
    "weights that are a list": (with_values(state_dict=[1]), "another one"),
    "no version": (without("pytorch-lightning_version"), "pytorch-lightning_version"),
    "a version that is none": (with_values(**{"pytorch-lightning_version": "soon"}), "soon"),
    "a version that is a number": (with_values(**{"pytorch-lightning_version": 2}), "another one"),
    "weights of another width": (of_weights(wider), "another model"),
    "a weight too few": (of_weights(lambda weights: weights.popitem()), "another model"),
    "a weight too many": (of_weights(lambda weights: weights.update(extra=torch.zeros(1))), "another model"),
    "other names": (of_weights(lambda weights: weights.update({"x": weights.popitem()[1]})), "another model"),
}


@pytest.mark.parametrize(("broken", "told"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_a_checkpoint_that_is_tested(refused, run, tmp_path, broken, told):
    shutil.copy(run / "last.ckpt", tmp_path / "other.ckpt")
    broken(tmp_path / "other.ckpt")
    refused("test", run, "--ckpt_path", "other.ckpt", told=["other.ckpt: ", told])
    assert not (tmp_path / "pwned").exists()


RESUMED = {
    "no loops": (without("loops"), "loops"),
    "loops that are a list": (with_values(loops=[]), "another one"),
    "no optimizer": (without("optimizer_states"), "optimizer"),
    "an optimizer of another model": (
        with_values(optimizer_states=[{"state": {}, "param_groups": []}]),
        "optimizer_states",
    ),
    "optimizers that are a number": (with_values(optimizer_states=3), "another one"),
    "no step": (without("global_step", "loops"), "another one"),
    "a program": (evil_zip, "would run"),
    "half of it": (cut(0.5), "damaged"),
    "weights of another width": (of_weights(wider), "another model"),
    "callbacks that are a list": (with_values(callbacks=[1]), "another one"),
    "generators that are words": (with_values(rng=["x"]), "another one"),
}


@pytest.mark.parametrize(("broken", "told"), RESUMED.values(), ids=RESUMED.keys())
def test_a_checkpoint_that_a_new_run_would_go_on_from(refused, made, run, tmp_path, broken, told):
    shutil.copy(run / "previous.ckpt", tmp_path / "other.ckpt")
    broken(tmp_path / "other.ckpt")
    told = ["other.ckpt: ", told]
    refused("fit", "--config", made.config, "--run_dir", "new", "--ckpt_path", "other.ckpt", told=told)
    assert not (tmp_path / "pwned").exists()


def remove(path):
    path.unlink()


def as_directory(path):
    path.unlink()
    path.mkdir()


def as_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def as_terabyte(path):
    os.truncate(path, 2**40)


# What `--ckpt_path` names, and what must be said about it.
NAMES = {
    "nothing": ("nope.ckpt", ["ckpt_path='nope.ckpt'", "RUN/last.ckpt"]),
    "a directory": ("run", ["ckpt_path='run'", "RUN/last.ckpt"]),
    "a configuration": ("run/config.yaml", ["ckpt_path='run/config.yaml'", "RUN/last.ckpt"]),
    "a file of the series": ("run/series/step_000000004.safetensors", ["ckpt_path=", "grok trace", "RUN/last.ckpt"]),
    "a file of the series under another name": ("renamed.ckpt", ["renamed.ckpt", "another one"]),
    "a link to itself": ("loop.ckpt", ["ckpt_path='loop.ckpt'"]),
    "a name of 300 letters": ("c" * 300 + ".ckpt", "too long"),
    "an empty name": ("", ["ckpt_path=''"]),
}


@pytest.mark.parametrize(("name", "told"), NAMES.values(), ids=NAMES.keys())
def test_what_is_no_checkpoint(refused, run, tmp_path, name, told):
    shutil.copy(run / "series/step_000000004.safetensors", tmp_path / "renamed.ckpt")
    (tmp_path / "loop.ckpt").symlink_to("loop.ckpt")
    refused("test", "run", f"--ckpt_path={name}", told=told)


# ------------------------------------------------------------------ the series


def entry(**values):
    def broken(series):
        path = series / "manifest.json"
        entries = json.loads(path.read_text())
        path.write_text(json.dumps([entries[0] | values, *entries[1:]]))

    return broken


def manifest(content):
    return lambda series: (series / "manifest.json").write_bytes(content)


def first(change):
    return lambda series: change(sorted(series.glob("*.safetensors"))[0])


MANIFESTS = {
    "no manifest": (lambda series: (series / "manifest.json").unlink(), ["manifest.json", "not there"]),
    "a manifest that is a directory": (lambda series: as_directory(series / "manifest.json"), "manifest.json"),
    "a manifest that is a link to itself": (lambda series: as_loop(series / "manifest.json"), "manifest.json"),
    "a manifest that is empty": (manifest(b""), ["manifest.json", "not a manifest"]),
    "a manifest that is torn": (manifest(b'[{"step": 0,'), ["manifest.json", "not a manifest"]),
    "a manifest that is no text": (manifest(b"\xff\xfe\0"), ["manifest.json", "not a manifest"]),
    "a manifest of one object": (manifest(b'{"step": 0}'), ["manifest.json", "not a manifest"]),
    "a manifest of numbers": (manifest(b"[1, 2]"), ["manifest.json", "not a manifest"]),
    "a manifest that is a number": (manifest(b"7"), ["manifest.json", "not a manifest"]),
    "a manifest that is null": (manifest(b"null"), ["manifest.json", "not a manifest"]),
    "a manifest that is nested too deep": (manifest(b"[" * 100_000), ["manifest.json", "not a manifest"]),
    "a step that is not a number": (entry(step="zero"), ["manifest.json", "'zero'"]),
    "a step that is NaN": (entry(step=float("nan")), ["manifest.json", "nan"]),
    "a negative step": (entry(step=-1), ["manifest.json", "-1"]),
    "a step listed twice": (entry(step=2), ["manifest.json", "step 2", "twice"]),
    "a file with path parts": (entry(file="../../secret.safetensors"), ["manifest.json", "../../secret"]),
    "a file from the root": (entry(file="/etc/passwd"), ["manifest.json", "/etc/passwd"]),
    "a file of another kind": (entry(file="last.ckpt"), ["manifest.json", "last.ckpt"]),
    "a file that is a list": (entry(file=["x"]), ["manifest.json", "['x']"]),
    "a checksum that is a number": (entry(sha256=7), ["manifest.json", "7"]),
    "another checksum": (entry(sha256="0" * 64), ["step_000000000.safetensors", "content differs"]),
    "a file that is missing": (first(remove), ["step_000000000.safetensors", "missing"]),
    "a file that is a directory": (first(as_directory), ["step_000000000.safetensors", "missing"]),
    "a file that is a link to itself": (first(as_loop), ["step_000000000.safetensors", "missing"]),
    "a file that is cut": (first(cut(0.5)), ["step_000000000.safetensors", "content differs"]),
    "a file with a flipped byte": (first(flipped), ["step_000000000.safetensors", "content differs"]),
}


@pytest.mark.parametrize(("broken", "told"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_series_that_is_verified(refused, run, broken, told):
    broken(run / "series")
    refused("verify", "run", told=told)


@pytest.mark.parametrize("name", ["another checksum", "a file with path parts", "a file that is missing"])
def test_a_series_that_is_traced(refused, run, name):
    broken, told = MANIFESTS[name]
    broken(run / "series")
    refused("trace", "run", "--lens.enabled", "true", told=told)


def rewritten(change):
    """Breaks the weights of the last file, with its checksum made to fit: only its content can tell."""

    def broken(series):
        path = sorted(series.glob("*.safetensors"))[-1]
        change(path)
        entries = json.loads((series / "manifest.json").read_text())
        from grok.files import sha256

        entries[-1]["sha256"] = sha256(path)
        (series / "manifest.json").write_text(json.dumps(entries))

    return broken


def safe(change):
    def broken(path):
        weights = load_file(path)
        change(weights)
        save_file(weights, path)

    return rewritten(broken)


WEIGHTS = {
    "empty": (rewritten(bytes_of(b"")), "damaged"),
    "cut": (rewritten(cut(0.5)), "damaged"),
    "a header of 2^63 bytes": (rewritten(bytes_of(b"\xff" * 8 + b"{}")), "damaged"),
    "a header that is no JSON": (rewritten(bytes_of((4).to_bytes(8, "little") + b"nope")), "damaged"),
    "a checkpoint": (rewritten(lambda path: shutil.copy(path.parents[1] / "last.ckpt", path)), "damaged"),
    "of another width": (safe(wider), "another model"),
    "a weight too few": (safe(lambda weights: weights.popitem()), "another model"),
    "a weight too many": (safe(lambda weights: weights.update(extra=torch.zeros(1))), "another model"),
}


@pytest.mark.parametrize(("broken", "told"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_a_run_would_start_from(refused, made, run, broken, told):
    broken(run / "series")
    arguments = ("--config", made.config, "--run_dir", "new", "--start.run", "run")
    refused("fit", *arguments, told=["step_000000004.safetensors", told])
