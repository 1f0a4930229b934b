"""`grok report`: what the page says is what the record says; it needs nothing but itself; what cannot be is told."""

import base64
import json
import math
import re
from pathlib import Path

import pytest
import torch

from grok.analyses import AnalysisRecord
from grok.records import RunRecord
from grok.report.page.build import html_page
from grok.report.page.charts import curves_chart, grok_step_chart, overlay_chart
from grok.report.page.command import write_report
from grok.report.page.explorer import explorers
from grok.report.page.run import Curve, Run, load, varied
from grok.report.page.text import groups_of
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
    assert "## Loss" not in twin  # a picture of it there is not
    assert "slider" not in twin


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
    assert varied(runs) == {"data.phi": [2, 2, 1.5, 1.5], "seed_everything": [0, 1, 0, 1]}
    twin = (tmp_path / "s/report.md").read_text()
    assert "4 runs, 2 settings." in twin
    finals = [run.summary["accuracy"]["id_atomic"] for run in runs[:2]]
    told = f"{sum(finals) / 2:.1%}" + ("" if len(set(finals)) == 1 else f" ({min(finals):.1%}–{max(finals):.1%})")
    told = told.replace("%", " %")
    assert re.search(rf"\| phi 2 \| 2 \|.*{re.escape(told)}", twin)
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


def test_a_picture_elsewhere_becomes_a_link_and_nothing_of_somebody_else_is_overwritten(grok, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("![a plot](https://example.org/a.png)\n")
    (tmp_path / "page.html").write_text("mine")
    status, _, err = grok("report", page)
    assert (status, "page.html: exists, and is not a page by `grok report`" in err) == (2, True)
    assert (tmp_path / "page.html").read_text() == "mine"
    (tmp_path / "page.html").unlink()
    assert [grok("report", page)[0], grok("report", page)[0]] == [0, 0]
    assert '<a href="https://example.org/a.png">picture: a plot</a>' in (tmp_path / "page.html").read_text()
    assert "<img" not in (tmp_path / "page.html").read_text().partition("<script")[0]
    run = tmp_path / "run.md"  # a directory
    RunRecord(run).append([row(1, "loss", 1.0)])
    status, _, err = grok("report", run, "--out", tmp_path / "page.html")
    assert (status, "page.md: exists" in err) == (2, True)
    assert page.read_text().startswith("![a plot]")
    assert [grok("report", run)[0], grok("report", run)[0]] == [0, 0]
    assert {path.name for path in run.iterdir()} == {"metrics.jsonl", "report.html", "report.md"}


def test_pages_refuse_what_would_be_lost_and_count_a_run_once(grok, tmp_path):
    run = tmp_path / "run"
    RunRecord(run).append([row(1, "accuracy", 0.5)])
    assert grok("report", run, run)[0] == 0  # in this directory
    assert "1 run, 1 setting" not in (tmp_path / "report.md").read_text()  # but the page of the run
    assert "there is no summary yet" in (tmp_path / "report.md").read_text()
    assert '"mode":"markers"' in (tmp_path / "report.html").read_text()  # a line of one point is none
    status, _, err = grok("report", tmp_path / "report.md")
    assert (status, "is the twin of a report" in err) == (2, True)
    notes = tmp_path / "notes.md"
    for text in ("it ends with: Made by `grok report`.\n\nand more", (tmp_path / "report.md").read_text() + "mine\n"):
        notes.write_text(text)
        assert grok("report", run, "--out", tmp_path / "notes.html")[0] == 2
        assert notes.read_text() == text
    status, _, err = grok("report", run, "--out", "a.html", "--out", "b.html")
    assert (status, "--out: given twice" in err) == (2, True)


def test_a_record_that_is_not_whole_gives_a_page_or_a_line(grok, tmp_path):
    run = tmp_path / "run"
    RunRecord(run).append([row(1, "accuracy", 0.5)])
    (run / "summary.json").write_text('{"step": 1, "loss": {"test": 1.0}, "train_seconds": null, "flops": 1.0}')
    (run / "starts.jsonl").write_text(json.dumps(dict.fromkeys(("time", "command", "presets", "overrides"), 1)) + "\n")
    (run / "config.yaml").write_text("data: 5\n")
    status, _, err = grok("report", run)
    assert status == 0, err
    (run / "config.yaml").write_text("- 1\n")
    assert grok("report", run)[::2] == (2, f"error: {run / 'config.yaml'}: a list, not a configuration; give a mapping "
                                           "of keys such as model, data and trainer\n")  # fmt: skip
    (run / "summary.json").write_text('{"step": 1, "queries": "many"}')
    assert "not a summary of a run" in grok("report", run)[2]


def test_lines_of_many_curves_look_different():
    curves = {f"split {i}": Curve((1, 2), (0.1, 0.2), (None,) * 2, (None,) * 2, (None,) * 2, 9) for i in range(24)}
    chart = curves_chart(Run(Path("nowhere"), "run"), curves, "accuracy")
    assert len({(line.line.color, line.line.dash) for line in chart.data}) == 24


def test_runs_that_have_not_grokked_count_in_the_median_of_their_setting():
    steps = [100, None, None, 300, None, 500]
    runs = [Run(Path(f"{i}"), f"{i}") for i in range(6)]
    for run, step in zip(runs, steps, strict=True):
        run.__dict__["summary"] = {"step": 900, "grok_step": {"test": step}}
    chart = grok_step_chart(runs, {"phi": [1, 1, 1, 2, 2, 2]})
    table = {line.name: dict(zip(line.x, line.y, strict=True)) for line in chart.data if line.name == "median"}
    assert table == {"median": {"1": None, "2": 500}}
    crosses = next(line for line in chart.data if line.name.startswith("not grokked"))
    assert (list(crosses.x), list(crosses.y)) == (["1", "1", "2"], [900, 900, 900])
    heat = grok_step_chart(runs, {"phi": [1, 1, 1, 2, 2, 2], "k": [1] * 6})
    assert [list(line) for line in heat.data[0].z] == [[None, 500]]


def row(step, name, value, split="test", **more):
    return {"step": step, "split": split, "name": name, "value": value, "low": None, "high": None, "floor": None,
            "n": 2} | more  # fmt: skip


def comparison_like(directory):
    """A run whose tracing looked at other positions, in another order, at other queries and steps than its lens."""
    record, kept = RunRecord(directory), AnalysisRecord(directory)
    record.append([row(step, "loss", 1.0) for step in (0, 10, 20)])
    cells = [(s, p) for s in range(2) for p in ("a", "q", "e1")]
    record.append([row(step, f"lens/mrr/answer/S[{s},{p}]", 0.5) for step in (0, 10, 20) for s, p in cells])
    record.append([row(10, f"tracing/changed/S[{s},{p}]", 0.5) for s in range(2) for p in ("e1", "a")])
    record.append([row(10, f"attention/mass/0.head0/{p}", 0.3) for p in ("a", "q", "e1")])
    for step in (0, 10, 20):
        kept.write(step, {
            "lens/test/inputs": torch.tensor([[1, 2, 3], [4, 5, 6]]), "lens/test/top": torch.full((2, 2, 3, 1), step),
            "lens/test/answer/rank": torch.arange(12).view(2, 2, 3, 1),
        })  # fmt: skip
    changed = torch.tensor(
        [[[0, 0], [0, 0]], [[1, 0], [0, 0]]]
    ).half()  # [N, S, C]: S[0, e1] of the first query of the lens
    kept.write(10, {"tracing/test/inputs": torch.tensor([[4, 5, 6], [1, 2, 3]]), "tracing/test/changed": changed})
    patterns = torch.tensor([[0.25, 0.75, 0.0]]).half().expand(2, 1, 1, 3, 3)
    kept.write(10, {"attention/test/inputs": torch.tensor([[1, 2, 3], [4, 5, 6]]), "attention/test/patterns": patterns})
    return Run(directory, "run")


def test_what_analyses_saw_at_other_positions_queries_and_steps_stands_where_it_belongs(tmp_path):
    (told,) = explorers(comparison_like(tmp_path))
    changed = told["arrays"]["tracing/changed"]
    assert (changed["rows"], changed["columns"]) == (["S[0]", "S[1]"], ["e1", "a"])
    assert (changed["steps"], changed["of"]) == ([10], [-1, 0, 0])
    values = torch.frombuffer(bytearray(base64.b64decode(changed["data"])), dtype=torch.uint8).view(changed["shape"])
    assert values.nonzero().tolist() == [[0, 0, 0, 0]]  # of the query 1 2 3, which the lens has first
    assert "attention/patterns" in told["arrays"]  # although not made at the last step


def test_numbers_that_are_none_and_damaged_files_are_told(tmp_path, grok):
    record = RunRecord(tmp_path / "run")
    record.append([row(s, n, math.nan) for s in (0, 5) for n in ("loss", "accuracy", "lens/mrr/answer/S[0,h]")])
    record.append([row(5, "weight_norm/x", math.inf, split=None)])
    tokens = {"lens/test/inputs": torch.zeros(1, 1).int(), "lens/test/answer/rank": torch.zeros(1, 1, 1, 1).int()}
    AnalysisRecord(tmp_path / "run").write(5, tokens)
    summary = {"step": 5, "loss": {"test": None}, "accuracy": {"test": math.nan}, "grok_step": {}}
    record.write_summary(summary)
    status, _, err = grok("report", tmp_path / "run")
    assert status == 0, err
    twin = (tmp_path / "run/report.md").read_text()
    assert "| test | – | – |" in twin
    assert "| end | 5 | – | – | – |" in twin  # no cost was recorded: that is not a cost of 0
    (tmp_path / "run/analysis/tokens.json").write_text("[")
    status, _, err = grok("report", tmp_path / "run")
    assert (status, "tokens.json: damaged; remove it" in err) == (2, True)


def test_a_page_with_explorers_of_many_splits_stays_small(tmp_path):
    record, kept = RunRecord(tmp_path), AnalysisRecord(tmp_path)
    cells = [(s, p) for s in range(9) for p in range(8)]
    for step in range(60):
        tensors = {}
        for split in ("a", "b", "c"):
            tensors |= {f"lens/{split}/inputs": torch.arange(800).view(100, 8)}
            tensors |= {f"lens/{split}/{c}/rank": torch.zeros(100, 9, 8, 1).int() for c in ("bridge", "answer")}
            record.append(
                [row(step, f"lens/mrr/{c}/S[{s},p{p}]", 0.5, split) for c in ("bridge", "answer") for s, p in cells]
            )
        kept.write(step, tensors)
    page, _ = write_report([tmp_path])
    assert len(embedded(page.read_text(), "explorers")) == 3
    assert page.stat().st_size < 12_000_000


def test_a_run_that_was_only_looked_at_has_no_empty_charts(tmp_path):
    RunRecord(tmp_path).append([row(0, "lens/mrr/answer/S[0,h]", 0.5), row(0, "lens/mrr/answer/S[0,h].z_H", 0.5)])
    page, twin = write_report([tmp_path])
    assert list(embedded(page.read_text(), "charts")) == ["circuit"]
    assert "## Loss" not in twin.read_text()
    names = [line["name"] for line in embedded(page.read_text(), "charts")["circuit"]["data"]]
    assert names == ["S[0, h] (n = 2)", "S[0, h].z_H (n = 2)"]
    assert page.read_text() == write_report([tmp_path])[0].read_text()  # a function of the record


def test_runs_without_a_split_do_not_give_their_names_to_others(tmp_path):
    for name, split in (("one", "a"), ("two", "b"), ("three", "b")):
        record = RunRecord(tmp_path / name)
        record.append([row(step, "accuracy", 0.1 if name == "two" else 0.9, split) for step in (1, 2)])
    runs = [Run(tmp_path / name, name) for name in ("one", "two", "three")]
    lines = {line.name: list(line.y) for line in overlay_chart({"all": runs}, "b").data}
    assert (lines["all, two"], lines["all, three"]) == ([0.1, 0.1], [0.9, 0.9])


def test_settings_that_differ_late_in_a_long_value_are_not_one(tmp_path):
    for end in "xy":
        RunRecord(tmp_path / end).append([row(1, "accuracy", 0.5)])
        (tmp_path / end / "config.yaml").write_text(f"data: {{path: {'long' * 20}{end}}}\n")
    runs = [Run(tmp_path / end, end) for end in "xy"]
    assert [len(members) for members in groups_of(runs, varied(runs)).values()] == [1, 1]


def test_odd_characters_do_not_break_tables_or_the_fence(tmp_path):
    record = RunRecord(tmp_path / "run")
    record.append([row(1, "loss", 1.0, "a|b*c*")])
    record.write_summary({"step": 1, "loss": {"a|b*c*": 1.0}})
    (tmp_path / "run/config.yaml").write_text("experiment: '```'\n")
    record.append_start({"time": "t", "command": "grok fit `x`", "presets": ["p"], "directory": "d", "packages": {},
                         "overrides": [{"key": "data.x", "value": "a|`b`", "preset": None}], "commit": None,
                         "grok": "1", "python": "3", "device": "cpu", "threads": 1, "cores": 1, "platform": "p",
                         "example": {"split": "a", "positions": ["h"], "query": ["`<b>|"],
                                     "answer": ["|"]}})  # fmt: skip
    page, twin = write_report([tmp_path / "run"])
    body = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert "a|b*c*</td>" in body
    assert "<code>a|`b`</code></td>" in body
    assert "<code>`&lt;b&gt;|</code></td>" in body
    assert "<code>grok fit `x`</code>" in body
    assert "experiment: '```'" in re.search(r"<pre>.*?</pre>", body, re.DOTALL)[0]
    assert twin.exists()


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
    page, twin = write_report([tmp_path / "old"])
    assert page.exists()
    assert "there is no summary yet" in twin.read_text()
