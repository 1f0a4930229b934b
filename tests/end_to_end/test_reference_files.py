"""Trained on a directory of the reference repositories, from the command line."""

from pathlib import Path

import pytest

from grok.records import RunRecord

DATA = Path(__file__).parents[1] / "data/fixtures/composition_json"
NATURAL = DATA / "composition.60.12.4.0_factaug_h1ratio0.0_h1k0_h2ratio0.0_h2k0"


@pytest.mark.slow
def test_fit_on_reference_files_reaches_full_training_accuracy_and_reports_every_split(grok, tmp_path):
    status, output, _ = grok(
        "fit", "--data", "grok.data.ReferenceJSON", "--data.path", NATURAL, "--data.batch", 512,
        "--model.net", "grok.models.LoopedTransformer", "--model.net.width", 64, "--model.net.layers", 1,
        "--model.net.heads", 4, "--model.net.activation", "relu",
        "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", 4e-3, "--model.optimizer.weight_decay", 0.01,
        "--model.schedule", "grok.training.Warmup", "--model.schedule.warmup", 20, "--model.schedule.decay_from", 300,
        "--trainer.max_steps", 450, "--trainer.accelerator", "cpu", "--trainer.logger", "false",
        "--evaluation.every", 150, "--figures.enabled", "false", "--run_dir", tmp_path / "run",
    )  # fmt: skip
    assert status == 0
    accuracy = RunRecord(tmp_path / "run").summary()["accuracy"]
    assert set(accuracy) == {
        "id_atomic", "ood_atomic", "train_inferred", "test_inferred_iid", "test_inferred_ood",
    }  # fmt: skip
    for split in ("id_atomic", "ood_atomic", "train_inferred"):
        assert accuracy[split] == 1.0
    for split in accuracy:
        assert split in output
