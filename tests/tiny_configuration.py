"""A configuration that trains in about a second: dropout and a schedule, so that a resume has state to restore."""

from pathlib import Path

from grok.cli import main

TINY = """
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
"""


def train_tiny(directory: Path, *options: str) -> Path:
    """Train it in a directory, with options of the command line; the finished run."""
    config, run = directory / "tiny.yaml", directory / "run"
    config.write_text(TINY)
    assert main(["fit", "--config", str(config), "--run_dir", str(run), *options]) == 0
    return run
