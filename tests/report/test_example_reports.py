"""The example reports of the documentation hold what the records beside them give, and what these say."""

import json
import re
import shutil
from pathlib import Path

import pytest

from grok.analyses import AnalysisRecord
from grok.records import RunRecord

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/example"


def parts(page):
    """Embedded data, and the body without them."""
    texts = re.findall(r'<script type="application/json" id="\w+">(.*?)</script>', page, re.DOTALL)
    body = page[page.index("<main") : page.index("</main>")]
    return [json.loads(text) for text in texts], body


def drawn(charts):
    """What the figures show; how it looks may change."""
    return {
        name: [{key: line.get(key) for key in ("name", "x", "y", "z")} for line in figure["data"]]
        for name, figure in charts.items()
    }


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_a_committed_report_is_what_its_records_give(grok, tmp_path, name):
    shutil.copytree(EXAMPLE / name, tmp_path / "docs/example" / name)
    status, _, err = grok("report", f"docs/example/{name}")
    assert status == 0, err
    made, kept = (path / name for path in (tmp_path / "docs/example", EXAMPLE))
    ((charts, explorers), _), ((shown, explored), body) = (
        parts((path / "report.html").read_text()) for path in (made, kept)
    )
    assert (drawn(charts), explorers) == (drawn(shown), explored), f"`grok report docs/example/{name}` makes it anew"
    assert (made / "report.md").read_text() == (kept / "report.md").read_text()
    assert not re.search(r"/(work|home|root)/", body)


def test_the_run_says_what_its_record_says_line_by_line():
    (charts, explorers), body = parts((EXAMPLE / "run/report.html").read_text())
    record = RunRecord(EXAMPLE / "run")
    for split in ("train_inferred", "test_inferred_iid", "test_inferred_ood"):
        rows = [row for row in record.rows("accuracy") if row["split"] == split and row["step"] > 0]
        (line,) = [
            line for line in charts["accuracy"]["data"]
            if line["name"].startswith(f"{split} (") and line["mode"] == "lines"
        ]  # fmt: skip
        assert (line["x"], line["y"]) == ([row["step"] for row in rows], [row["value"] for row in rows])
    assert f"grokked at {record.summary()['grok_step']['test_inferred_iid']:,}" in body
    (explorer,) = explorers
    steps = AnalysisRecord(EXAMPLE / "run").steps()
    assert explorer["steps"] == steps
    assert explorer["count"] == 100
    assert {"lens/bridge/rank", "lens/top", "tracing/changed", "attention/patterns"} <= {*explorer["arrays"]}


def test_the_sweep_says_what_its_records_say():
    (charts, _), _ = parts((EXAMPLE / "sweep/report.html").read_text())
    runs = sorted((EXAMPLE / "sweep/runs").iterdir())
    steps = [RunRecord(run).summary()["grok_step"]["test_inferred_iid"] for run in runs]
    (points,) = [line for line in charts["grokked_step"]["data"] if line["name"] == "runs"]
    assert sorted(points["y"]) == sorted(step for step in steps if step is not None)
