"""Retrieval and copying through the command line: trained on short contexts, measured on longer ones."""

from pathlib import Path

import pytest
from seeds import SEEDS

from grok.records import RunRecord

CONFIGS = Path(__file__).resolve().parents[2] / "configs/jobanputra2025"
QUIET = ("--trainer.logger", "false", "--figures.enabled", "false", "--series.enabled", "false")
EDGES = {"previous_token", "anti_induction", "induction"}


def trained(grok, run, config, *options):
    """The record of a run."""
    status, _, errors = grok("fit", "--config", CONFIGS / f"{config}.yaml", "--run_dir", run, *QUIET, *options)
    assert (status, errors) == (0, "")
    return RunRecord(run)


def test_short_contexts_are_learned_and_everything_is_recorded(grok, tmp_path):
    sizes = ("--data.train_length", 5, "--data.test_size", 100, "--data.symbols", 3, "--measures.examples", 100)
    steps = ("--trainer.max_steps", 120, "--model.schedule.warmup", 10, "--model.schedule.decay_from", 10)
    record = trained(grok, tmp_path / "run", "retrieval_small", *sizes, *steps)
    accuracy = record.summary()["accuracy"]
    assert list(accuracy) == ["length_1x", "length_2x", "length_3x"]
    assert accuracy["length_1x"] > 0.8 > accuracy["length_3x"]  # the floor is 1 / 2
    last = {(row["split"], row["name"]): row for row in record.rows() if row["step"] == 120}
    for split, lengths in (("length_1x", range(4, 6)), ("length_3x", range(11, 16))):
        cells = [last[split, f"measures/accuracy_by_length/{length}"] for length in lengths]
        right = sum(cell["value"] * cell["n"] for cell in cells) / 100
        assert right == pytest.approx(accuracy[split])
        assert last[split, "measures/accuracy_without/nothing"]["value"] == pytest.approx(accuracy[split])
        heads = {f"measures/attention/{step}.head{head}/{e}" for step in range(2) for head in range(4) for e in EDGES}
        assert heads <= {name for where, name in last if where == split}
    assert last["length_1x", "groups/mass/1.head0/induction"]["floor"] == pytest.approx(1 / 7.5, abs=0.02)


def test_a_copying_run_scores_whole_strings(grok, tmp_path):
    sizes = ("--data.train_length", 3, "--data.test_size", 20, "--data.batch", 16, "--data.task", "NB")
    steps = ("--trainer.max_steps", 4, "--model.schedule.warmup", 2, "--model.schedule.decay_from", 2)
    examples = ("--groups.examples", 20, "--measures.examples", 20)
    record = trained(grok, tmp_path / "run", "copy_small", *sizes, *steps, *examples)
    rows = {row["name"]: row["value"] for row in record.rows() if row["split"] == "length_3x" and row["step"] == 4}
    assert {f"measures/accuracy_by_slot/{slot}" for slot in range(10)} <= set(rows)
    slots = [rows[f"measures/accuracy_by_slot/{slot}"] for slot in range(10)]
    assert record.summary()["accuracy"]["length_3x"] <= min(slots[:8])  # every string has these slots


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_first_and_unique_generalise_in_length_last_does_not_and_sides_are_equal(grok, tmp_path, seed):
    ends, without = {}, {}
    few = ("--groups.enabled", "false", "--measures.splits", "[length_1x]", "--measures.examples", 200)
    for task in ("NRFirst", "NRLast", "UR", "UL"):
        options = ("--seed_everything", seed, "--data.task", task, "--evaluation.every", 3000, *few)
        record = trained(grok, tmp_path / task, "retrieval_small", *options)
        ends[task] = record.summary()["accuracy"]
        without[task] = {edge: record.rows(f"measures/accuracy_without/{edge}")[-1]["value"] for edge in EDGES}
    for task in ("NRFirst", "UR", "UL"):
        assert ends[task]["length_3x"] - ends["NRLast"]["length_3x"] >= 0.3
        needed, other = ("anti_induction", "induction") if task == "UL" else ("induction", "anti_induction")
        assert max(without[task][needed], without[task]["previous_token"]) < 0.6
        assert without[task][other] > 0.8
    for split in ("length_1x", "length_2x", "length_3x"):
        assert abs(ends["UR"][split] - ends["UL"][split]) <= 0.1
