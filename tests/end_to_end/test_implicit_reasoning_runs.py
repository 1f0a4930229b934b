"""The regimes of Ye et al. 2025 through the command line: phases in the record and resumed, analyses, refusals."""

from contextlib import suppress

import pytest
import yaml
from tiny_configuration import TINY

from grok.callbacks import Evaluation
from grok.records import RunRecord

SIZES = {"entities": 12, "relations": 4, "out_degree": 4, "phi": 2, "ood": 0.2, "batch": 16}
LOW = {"memorisation": 0.02, "in-distribution generalisation": 0.03, "cross-distribution reasoning": 1.0}
ON = {"enabled": True, "every": 60}


def configured(tmp_path, regime, held_out, **sections):
    config = yaml.safe_load(TINY)
    config["data"] = {"class_path": f"grok.data.{regime}", "init_args": SIZES | {held_out: 0.2}}
    config |= {"monitor": {"phase_levels": LOW}} | sections
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_phases_are_recorded_across_an_interruption(grok, tmp_path, monkeypatch):
    original = Evaluation.on_train_batch_end

    def cut(self, trainer, *_):
        original(self, trainer, *_)
        if trainer.global_step >= 30:
            raise KeyboardInterrupt

    config = configured(tmp_path, "ImplicitReasoning", "iid")
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt, SystemExit):
        patch.setattr(Evaluation, "on_train_batch_end", cut)
        grok("fit", "--config", config, "--run_dir", "run")
    status, output, errors = grok("fit", "--config", config, "--run_dir", "run")
    assert (status, errors) == (0, "")
    assert "Resuming" in output
    assert "phase I (memorisation) ended" not in output  # that was said before the interruption

    record = RunRecord(tmp_path / "run")
    summary, begin = record.summary(), 0
    assert summary["sizes"] == {"effective_phi": 2.0}
    assert {name: span["level"] for name, span in summary["phases"].items()} == LOW
    for span in summary["phases"].values():
        rows = [row for row in record.rows("accuracy") if row["split"] == span["split"]]
        reached = [row["step"] for row in rows if row["value"] >= span["level"]]
        end = max(begin, reached[0]) if reached and begin is not None else None
        assert (span["begin"], span["end"]) == (begin, end)
        begin = end
    assert summary["phases"]["memorisation"]["end"] == 20


def test_three_hops_are_traced_and_read_by_the_lens_of_both_bridges(grok, tmp_path):
    config = configured(tmp_path, "ThreeHopComposition", "iii", lens=ON, tracing=ON, cosine=ON, found=ON)
    status, _, errors = grok("fit", "--config", config, "--run_dir", "run")
    assert (status, errors) == (0, "")
    record = RunRecord(tmp_path / "run")
    assert {"test_inferred_iii", "test_inferred_oii"} <= set(record.summary()["accuracy"])
    names = {row["name"] for row in record.rows()}
    assert {"lens/mrr/bridge[0]/S[2,r1]", "lens/mrr/bridge[1]/S[2,r2]", "tracing/changed/S[2,r3]"} <= names
    assert {"found/bridge", "baseline/shortcut", "cosine/alignment/S[1,r1]"} <= names


@pytest.mark.parametrize("wrong", [("semantic.enabled", "true"), ("tracing.counterfactuals", "reference")], ids=str)
def test_two_hop_analyses_of_three_hops_are_refused_with_the_way_out(grok, tmp_path, wrong):
    config = configured(tmp_path, "ThreeHopComposition", "iii", tracing=ON)
    key, value = wrong
    status, _, errors = grok("fit", "--config", config, "--run_dir", "run", f"--{key}", value)
    assert status != 0
    assert "these have 2 bridges each" in errors
    assert "tracing.counterfactuals=other" in errors
    assert len(errors.splitlines()) <= 2


@pytest.mark.slow  # a dozen pictures
def test_the_pictures_of_the_phases_are_drawn_at_the_end(grok, tmp_path):
    pytest.importorskip("matplotlib")
    splits = ["test_inferred_iid", "test_inferred_oi"]
    sections = {"figures": {"enabled": True}, "semantic": {**ON, "splits": splits}, "cosine": ON}
    config = configured(tmp_path, "ImplicitReasoning", "iid", **sections)
    assert grok("fit", "--config", config, "--run_dir", "run")[0] == 0
    drawn = {path.name for path in (tmp_path / "run/figures").glob("*.png")}
    assert {"accuracy.png", "cosine.png", *(f"semantic_success_{split}_by_phase.png" for split in splits)} <= drawn
