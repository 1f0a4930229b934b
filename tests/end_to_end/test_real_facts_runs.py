"""Real facts from the command line: trained, tested and predicted from a file in 2WikiMultiHopQA's format and a CSV."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tiny_configuration import TINY

from grok.records import RunRecord

ROOT = Path(__file__).parents[2]
FILES = ROOT / "tests/data/fixtures/real_facts"
SPLITS = {"id_atomic", "ood_atomic", "train_inferred", "test_inferred_iid", "test_inferred_ood"}


@pytest.fixture
def configured(tmp_path):
    """Write a configuration that trains `RealFacts` with these arguments for a second; returns it and the file."""

    def written(name, **arguments):
        file = tmp_path / name
        shutil.copy(FILES / name, file)
        config = yaml.safe_load(TINY)
        config["trainer"]["max_steps"] = 20
        arguments = {"path": str(file), "phi": 1.0, "ood": 0.3, "iid": 0.2, "batch": 16, **arguments}
        config["data"] = {"class_path": "grok.data.RealFacts", "init_args": arguments}
        path = tmp_path / "facts.yaml"
        path.write_text(yaml.safe_dump(config))
        return path, file

    return written


def test_a_file_of_2wikimultihopqa_is_trained_and_described(grok, configured, tmp_path, monkeypatch, capsys):
    config, _ = configured(
        "two_wiki.json", leave_out=["date of birth"], wrong_fact_rate=0.5, original=40, atomic=92, phi=0.5
    )
    run = tmp_path / "run"
    status, _, errors = grok("fit", "--config", config, "--run_dir", run, "--tracing.enabled", "true")
    assert (status, errors) == (0, "")
    summary = RunRecord(run).summary()
    assert set(summary["accuracy"]) == SPLITS
    assert RunRecord(run).rows("baseline/shortcut")
    monkeypatch.setattr(sys, "argv", ["describe_facts.py", str(run / "config.yaml")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/describe_facts.py"), run_name="__main__")
    described = capsys.readouterr().out
    assert ended.value.code == 0
    assert "wrong facts 26" in described
    assert "lemma's bound" in described


def test_a_csv_in_words_is_trained_tested_and_predicted_and_the_file_must_stay(grok, configured, tmp_path):
    pytest.importorskip("tokenizers")
    config, file = configured("facts.csv", format="csv", task="comparison", serialisation="natural", vocabulary=300)
    run = tmp_path / "run"
    assert grok("fit", "--config", config, "--run_dir", run)[0] == 0
    assert set(RunRecord(run).summary()["accuracy"]) == SPLITS
    status, output, errors = grok("test", run)
    assert (status, errors) == (0, "")
    assert "test_inferred_ood" in output
    assert grok("predict", run)[0] == 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    asked = next(line for line in lines if line["split"] == "train_inferred")
    assert "".join(asked["input"]).startswith("Is the ")
    assert asked["target"][-1] == "</a>"
    assert "".join(asked["target"][:-1]) in (" yes", " no")
    file.write_text(file.read_text().replace("Land W", "Land V"))
    status, _, errors = grok("test", run)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: data.path='")  # a long path is cut in its middle
    assert "facts.csv': not the file of the training (SHA-256 " in errors
    file.write_text(file.read_text() + "Somebody,country,Elsewhere\n")
    assert "of other data (has a file of facts changed?)" in grok("test", run)[2]


def test_a_broken_file_is_told_in_one_line_before_anything_is_written(grok, configured, tmp_path):
    config, file = configured("facts.csv", format="csv")
    file.write_text("head,relation,tail\na,b\n")
    status, _, errors = grok("fit", "--config", config, "--run_dir", tmp_path / "run")
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert "facts.csv: line 2: 2 columns for 3" in errors
    assert not (tmp_path / "run").exists()
    assert grok("fit", "--config", config, "--data.path", "nowhere.json")[2].count("no such file") == 1
