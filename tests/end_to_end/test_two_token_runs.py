"""Two-token entities through the command line: probes of the second token, tracing, pictures, refusals."""

import json

import yaml

from grok.records import RunRecord
from grok.report.cells import cells_of
from grok.report.probes import probe_curves


def test_a_run_with_probes_of_both_tokens_and_tracing(grok, tiny_config, tmp_path):
    config = yaml.safe_load(tiny_config.read_text())
    config["data"] = {
        "class_path": "grok.data.TwoTokenComposition",
        "init_args": {
            "multiplicity": 3, "entities": 12, "relations": 4, "out_degree": 4, "phi": 2, "ood": 0.2, "iid": 0.2,
            "batch": 16,
        },
    }  # fmt: skip
    config["trainer"]["max_steps"] = 20
    config["probes"] = {
        "enabled": True,
        "columns": ["bridge[0]", "bridge[1]"],
        "splits": ["train_inferred"],
        "every": 20,
    }
    config["tracing"] = {"enabled": True, "every": 20}
    path, run = tmp_path / "two.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(config))
    status, _, err = grok("fit", "--config", path, "--run_dir", run, "--lens.enabled", "true", "--lens.every", 20)
    assert status == 0, err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {row["name"] for row in rows}
    for token in (0, 1):
        assert f"probes/accuracy/bridge[{token}]/S[2,r1]" in names
        assert f"lens/mrr/bridge[{token}]/S[2,r1]" in names
    assert "tracing/changed/S[1,r1]" in names
    assert {row["floor"] for row in rows if row["name"] == "accuracy"} == {1 / 12}
    record = RunRecord(run)
    probes = [cells for cells in cells_of(record) if cells.grid.startswith("probes/")]
    assert [cells.story_column for cells in probes] == ["r1", "r1"]
    assert [file.suffix for file in probe_curves([record], [probes], tmp_path / "probes")] == [".png", ".svg"]

    status, _, err = grok("trace", run, "--semantic.enabled", "true")
    assert status != 0
    assert "TwoTokenComposition has no atomic facts" in err
