"""Comparison and complex reasoning through the command line: trained, analysed, and misuse told in a line."""

import pytest
import yaml
from tiny_configuration import TINY

from grok.analyses import AnalysisRecord
from grok.records import RunRecord

SIZES = {"entities": 30, "attributes": 3, "values": 6, "ood": 0.3, "iid": 0.2, "batch": 16}
REGIMES = {"Comparison": {"phi": 2}, "ComplexReasoning": {"share": 0.1, "hard_per_label": 1}}
COLUMNS = ["v1", "v2", "labels"]


@pytest.fixture(params=REGIMES)
def configured(request, tmp_path):
    """Name of a regime, and a configuration that trains it and analyses the circuit."""
    config = yaml.safe_load(TINY)
    config["data"] = {"class_path": f"grok.data.{request.param}", "init_args": SIZES | REGIMES[request.param]}
    config["lens"] = {"enabled": True, "every": 60, "columns": COLUMNS, "measures": ["mrr", "recall@3"]}
    config["tracing"] = {"enabled": True, "every": 60}
    path = tmp_path / "regime.yaml"
    path.write_text(yaml.safe_dump(config))
    return request.param, path


def test_a_regime_of_comparisons_is_trained_and_its_circuit_told(grok, configured, tmp_path):
    regime, config = configured
    status, output, errors = grok("fit", "--config", config, "--run_dir", tmp_path / "run")
    assert (status, errors) == (0, "")
    record = RunRecord(tmp_path / "run")
    splits = {"id_atomic", "ood_atomic", "train_inferred", "test_inferred_iid", "test_inferred_ood"}
    hard = {"train_inferred_cross", "test_hard"} if regime == "ComplexReasoning" else set()
    assert set(record.summary()["accuracy"]) == splits | hard
    baselines = {row["split"] for row in record.rows("baseline/one_value")}
    assert baselines == (splits | hard) - {"id_atomic", "ood_atomic"}
    names = {row["name"] for row in record.rows()}
    told = {"lens/mrr/v1/S[2,e1]", "lens/recall@3/labels/S[1,a]", "tracing/changed/S[1,e1]", "tracing/changed/S[1,a]"}
    assert told <= names
    assert "tracing/test_inferred_iid/counterfactuals" in AnalysisRecord(tmp_path / "run").read(60)
    lines = [" ".join(line.split()[:4]) for line in output.splitlines() if ", test_inferred_iid" in line]
    assert [line.split("S[")[0] for line in lines] == ["v1 in ", "v2 in ", "labels in ", *["strength of "] * 2]
    assert [line[-3:-1].strip() for line in lines] == ["e1", "e2", "a", "e1", "a"]


def test_an_analysis_of_bridges_is_refused_in_one_line(grok, configured, tmp_path):
    regime, config = configured
    status, _, errors = grok("fit", "--config", config, "--run_dir", tmp_path / "run", "--semantic.enabled", "true")
    assert (status, len(errors.strip().splitlines())) == (2, 1)
    assert f"semantic.enabled=True: {regime} has no atomic facts (h, r) → t: use false" in errors


@pytest.mark.parametrize("values", [0, "null"])
def test_a_key_that_is_a_method_of_namespaces_too_is_checked_with_the_others(grok, configured, tmp_path, values):
    _, config = configured
    arguments = ("--data.values", values, "--model.net.heads", 5, "--run_dir", tmp_path / "run")
    status, _, errors = grok("fit", "--config", config, *arguments)
    assert status == 2
    assert f"data.init_args.values={None if values == 'null' else values}" in errors
    assert "model.net.init_args.heads=5" in errors
    assert not (tmp_path / "run").exists()
