"""The page about one's own regime, model and callback runs as it stands, from outside of the repository."""

import json
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[1] / "docs/how-to/extend.md").read_text()


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.mark.slow
def test_the_page_trains_and_what_it_adds_is_in_the_record(grok, tmp_path, monkeypatch):
    (tmp_path / "parity_lab.py").write_text(block("python"))
    (tmp_path / "parity.yaml").write_text(block("yaml"))
    monkeypatch.syspath_prepend(str(tmp_path))
    status, _, err = grok("fit", "--config", "parity.yaml", "--run_dir", "run")
    assert status == 0, err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["accuracy"]["train"] == 1
    assert summary["accuracy"]["test"] > 0.9
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    flips = {row["name"]: row["value"] for row in rows if row["step"] == 400 and row["name"].startswith("flips/")}
    assert len(flips) == 8
    assert min(flips[f"flips/b{i}"] for i in range(3)) > 0.8
    assert max(flips[f"flips/b{i}"] for i in range(3, 8)) < 0.3


def test_it_is_as_short_as_the_page_says():
    code = [line for line in block("python").splitlines() if line.strip()]
    assert len(code) <= 66  # sixty lines and the blank ones that a formatter wants
