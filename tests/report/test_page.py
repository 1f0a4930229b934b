"""`grok report`: what the page says is what the record says; it needs nothing but itself; what cannot be is told."""

import base64
import json
import re

import pytest
import torch

from grok.analyses import AnalysisRecord
from grok.records import RunRecord
from grok.report.page.build import html_page
from grok.report.page.run import Run, load, varied
from grok.sweep import plan

WATCHED = [f"--{kind}.enabled=true" for kind in ("lens", "tracing", "attention")]
SHORT = ["--trainer.max_steps", 30, "--lens.every", 15, "--tracing.every", 15, "--attention.every", 30]


@pytest.fixture
def run(grok, tiny_config, tmp_path):
    """A tiny run with all that the explorer shows."""
    status, _, err = grok(
        "fit", "--config", tiny_config, "--run_dir", tmp_path / "run", "--data.phi", 1.5, *SHORT, *WATCHED
    )
    assert status == 0, err
    return tmp_path / "run"


def embedded(page, name):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)[1])


def test_a_page_holds_what_the_record_holds_and_refers_to_nothing_else(grok, run):
    status, out, err = grok("report", run)
    assert status == 0, err
    assert out.split() == [str(run / "report.html"), str(run / "report.md")]
    page = (run / "report.html").read_text()
    assert len(page) < 12_000_000
    assert not re.search(r'(src|href)="(?!data:|#)', re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))

    rows = [row for row in RunRecord(run).rows("accuracy") if row["split"] == "train_inferred" and row["step"] > 0]
    lines = [line for line in embedded(page, "charts")["accuracy"]["data"] if line["name"].startswith("train_inferred")]
    drawn = next(line for line in lines if line["mode"] == "lines" and line.get("showlegend") is not False)
    assert (drawn["x"], drawn["y"]) == ([row["step"] for row in rows], [row["value"] for row in rows])
    floor = next(
        line for line in embedded(page, "charts")["accuracy"]["data"] if line["name"] == "floor of train_inferred"
    )
    assert floor["y"] == [row["floor"] for row in rows]

    (explorer,) = embedded(page, "explorers")
    last = AnalysisRecord(run).read(30)
    split = explorer["split"]
    assert explorer["steps"] == [0, 15, 30]
    for name, key in (("lens/bridge/rank", f"lens/{split}/bridge/rank"), ("lens/top", f"lens/{split}/top")):
        packed = explorer["arrays"][name]
        values = torch.frombuffer(bytearray(base64.b64decode(packed["data"])), dtype=torch.uint16).view(packed["shape"])
        assert torch.equal(values[-1].long(), last[key].long())
    strength = next(one for one in explorer["measures"] if one["name"] == "tracing/changed")
    record = {row["name"]: row["value"] for row in RunRecord(run).rows() if row["step"] == 30 and row["split"] == split}
    for s, state in enumerate(strength["rows"]):
        for p, position in enumerate(strength["columns"]):
            name = f"tracing/changed/{state[:-1]},{position}]"
            told = strength["values"][-1][s][p]
            assert (told is None) == (name not in record)
            assert told is None or told == pytest.approx(record[name], abs=1e-4)
    changed = explorer["arrays"]["tracing/changed"]
    values = torch.frombuffer(bytearray(base64.b64decode(changed["data"])), dtype=torch.uint8).view(changed["shape"])[
        -1
    ]
    kept = torch.where(values == 255, torch.nan, values / 200.0)
    for s in range(values.shape[1]):
        assert kept[:, s, 0].nanmean() == pytest.approx(strength["values"][-1][s][0], abs=1e-3)
    assert explorer["tokens"][explorer["queries"][0][0]].startswith("<e_")


def test_the_twin_says_what_was_asked_on_what_and_how(grok, run, tiny_config):
    assert grok("report", run)[0] == 0
    twin = (run / "report.md").read_text()
    assert "{{" not in twin
    assert "TwoHopComposition, seed 3" in twin
    assert "| `data.phi` | `2` | `1.5` |" in twin
    assert f"Preset: `{tiny_config}`; the command line changes:" in twin
    assert "--data.phi 1.5" in twin
    assert f"torch {torch.__version__}" in twin
    assert re.search(r"\| `h` \| `<e_\d+>` \|", twin)
    accuracy = json.loads((run / "summary.json").read_text())["accuracy"]["train_inferred"]
    assert f"| train_inferred | {100 * accuracy:.1f} % |" in twin


def test_a_sweep_becomes_medians_spreads_and_a_table_of_all_runs(grok, tiny_config, tmp_path):
    asked = {"base": "tiny.yaml", "set": {"trainer.max_steps": 20}}
    asked["grid"] = {"data.phi": [2, 1.5], "seed_everything": [0, 1]}
    plan(asked, tiny_config, tmp_path / "s")
    status, _, err = grok("report", tmp_path / "s")
    assert (status, "no run of this sweep has been evaluated" in err) == (2, True)
    assert grok("sweep", "run", tmp_path / "s")[0] == 0
    status, _, err = grok("report", tmp_path / "s")
    assert status == 0, err
    runs = load([tmp_path / "s"])
    assert varied(runs) == {"data.init_args.phi": [2, 2, 1.5, 1.5], "seed_everything": [0, 1, 0, 1]}
    twin = (tmp_path / "s/report.md").read_text()
    assert "4 runs, 2 settings." in twin
    finals = [run.summary["accuracy"]["id_atomic"] for run in runs[:2]]
    told = f"{sum(finals) / 2:.1%}" + ("" if len(set(finals)) == 1 else f" ({min(finals):.1%}–{max(finals):.1%})")
    told = told.replace("%", " %")
    assert re.search(rf"\| phi 2.0 \| 2 \|.*{re.escape(told)}", twin)
    charts = embedded((tmp_path / "s/report.html").read_text(), "charts")
    means = [line for line in charts["accuracy__test_inferred_iid"]["data"] if line["name"] == "phi 1.5 (2 runs)"]
    curves = [run.curves("accuracy")["test_inferred_iid"].values for run in runs[2:]]
    assert means[-1]["y"] == pytest.approx(
        [sum(pair) / 2 for pair in zip(*curves, strict=True)][-len(means[-1]["y"]) :]
    )


def test_a_page_of_markdown_goes_through_the_same_template_with_its_pictures(grok, tmp_path):
    (tmp_path / "dot.png").write_bytes(b"\x89PNG")
    (tmp_path / "page.md").write_text("# A <b>page</b>\n\n| a | b |\n|---|---|\n| 2 | x |\n\n![dot](dot.png)\n")
    assert grok("report", tmp_path / "page.md")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "<b>page" not in page
    assert 'src="data:image/png;base64,' in page
    assert '<table class="sortable">' in page
    assert "Plotly.newPlot" in page
    assert len(page) < 100_000  # no library for a page without charts


def test_text_of_a_user_cannot_end_the_script_that_holds_it():
    page = html_page("# x", explorers=[{"split": "</script><script>alert(1)</script>"}])
    assert "alert(1)</script>" not in page.replace("\\u003c", "")
    assert embedded(page, "explorers")[0]["split"].startswith("</script>")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "usage: grok report RUN"),
        (["nowhere"], "nowhere: neither a run that has been evaluated nor a sweep"),
        (["nowhere.md"], "nowhere.md: no such file; give a Markdown page"),
        (["run", "--out", "x.txt"], "--out 'x.txt': give a file that ends in .html"),
        (["run", "--wrong"], "--wrong: no such option"),
    ],
)
def test_what_cannot_be_is_told(grok, arguments, told):
    status, _, err = grok("report", *arguments)
    assert status == 2
    assert told in err


def test_a_run_of_an_earlier_version_has_no_starts_and_still_a_page(tmp_path):
    record = RunRecord(tmp_path / "old")
    record.append(
        [{"step": 1, "split": "test", "name": "loss", "value": 1.0, "low": None, "high": None, "floor": None, "n": 3}]
    )
    assert Run(tmp_path / "old", "old").grok_step is None
    from grok.report.page.command import write_report

    page, twin = write_report([tmp_path / "old"])
    assert page.exists()
    assert "not memorised; not grokked" in twin.read_text()
