"""What all tests share: one thread, and the command line run in process."""

import json
from pathlib import Path

import pytest
import torch

from grok.cli import main

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tiny_config(tmp_path) -> Path:
    """A configuration that trains in about a second: dropout and a schedule, so that a resume has state to restore."""
    path = tmp_path / "tiny.yaml"
    path.write_text("""
seed_everything: 3
trainer: {accelerator: cpu, max_steps: 60, logger: false}
data:
  class_path: grok.data.TwoHopComposition
  init_args: {entities: 12, relations: 4, out_degree: 4, phi: 2, ood: 0.2, iid: 0.2, batch: 16}
model:
  net:
    class_path: grok.models.LoopedTransformer
    init_args: {width: 16, heads: 2, layers: 1, loops: 2, dropout: 0.1}
  schedule: {class_path: grok.training.Warmup, init_args: {warmup: 5, decay_from: 40}}
  ema_decay: 0.9
  block: 7
evaluation: {every: 20}
series: {every: 30}
last: {every: 25}
figures: {enabled: false}
""")
    return path


@pytest.fixture
def grok(monkeypatch, tmp_path, capsys):
    """Run the command line in a directory of its own: `grok("fit", …)` gives (status, standard output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def hashes():
    """Step → SHA-256 of the checkpoint series of a run: equal exactly when the weights are."""
    return lambda run: {e["step"]: e["sha256"] for e in json.loads((Path(run) / "series/manifest.json").read_text())}
