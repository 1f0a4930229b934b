"""What all tests share: one thread, and the command line run in process."""

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny_configuration import TINY, train_tiny

from grok.cli import main

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config, items):
    """What takes minutes may take more of them before it counts as hanging."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("slow", "slurm", "gpu")):
            item.add_marker(pytest.mark.timeout(4 * float(config.getini("timeout"))))


@pytest.fixture
def tiny_config(tmp_path) -> Path:
    """A configuration that trains in about a second: dropout and a schedule, so that a resume has state to restore."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def grok(monkeypatch, tmp_path, capsys):
    """Run the command line in a directory of its own: `grok("fit", …)` gives (status, standard output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    with mock.patch.dict(os.environ):  # a strategy for several processes leaves its port there, for all that come after
        yield run
    if torch.distributed.is_initialized():  # of a strategy for several processes, tried with one
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run of the tiny configuration, made once; for copying only."""
    return train_tiny(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(grok, trained, tmp_path) -> Path:
    """A copy of it, in the directory of the test."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def hashes():
    """Step → SHA-256 of the checkpoint series of a run: equal exactly when the weights are."""
    return lambda run: {e["step"]: e["sha256"] for e in json.loads((Path(run) / "series/manifest.json").read_text())}
