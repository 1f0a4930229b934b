"""Collecting: tables against a computation by hand, and the phase diagram."""

import csv
from dataclasses import replace
from importlib.util import find_spec

import pytest

from grok.errors import BadInput
from grok.report.phase_diagram import Outcome, phase_diagram
from grok.sweep import Sweep, plan
from grok.sweep.asked import read
from grok.sweep.figures import draw_figures
from grok.sweep.status import reports
from grok.sweep.table import setting_rows
from grok.sweep.worker import record_status

ASKED = {
    "base": "tiny.yaml",
    "set": {"trainer.max_steps": 90},
    "grid": {"model.clip": [1, 2], "data.phi": [2, 3], "seed_everything": [0, 1, 2]},
    "figure": {"x": "data.phi", "y": "model.clip"},
}


def summary(finished, memorised, grokked, accuracy, seconds=10.0):
    return {
        "step": 90, "finished": finished, "memorised_step": memorised, "grok_step": {"iid": grokked, "ood": None},
        "delay": grokked / memorised if grokked else None, "accuracy": {"train": 1.0, "iid": accuracy, "none": None},
        "train_seconds": seconds, "wall_seconds": seconds + 1,
    }  # fmt: skip


@pytest.fixture
def swept(tiny_config, tmp_path) -> Sweep:
    """Twelve runs: (clip 1, phi 2) all grokked; (1, 3) one did, one runs no more; (2, 2) none did; (2, 3) not begun."""
    sweep = plan(read(ASKED, "s.yaml", tmp_path), tiny_config, tmp_path / "s")
    found = [
        summary(True, 10, 20, 0.9), summary(True, 20, 60, 1.0, 20.0), summary(True, 10, 40, 0.95, 30.0),
        summary(True, 10, 30, 1.0), summary(False, 10, 20, 0.97), summary(True, None, None, 0.4),
        *[summary(True, 10, None, 0.2)] * 3,
    ]  # fmt: skip
    for line, one in zip(sweep.lines, found, strict=False):
        sweep.record(line).write_summary(one)
    sweep.record(sweep.lines[4]).append([{"step": 90, "split": None, "name": "training_loss", "value": 1.0}])
    record_status(sweep, sweep.lines[9], 2)
    return sweep


def test_the_settings_are_summarised_as_by_hand(swept):
    rows = setting_rows(swept, reports(swept))
    assert [(row["model.clip"], row["data.phi"]) for row in rows] == [(1, 2), (1, 3), (2, 2), (2, 3)]
    counts = ("seeds", "finished", "failed", "memorised", "grokked")
    assert [[row[name] for name in counts] for row in rows] == [
        [3, 3, 0, 3, 3], [3, 2, 0, 1, 1], [3, 3, 0, 3, 0], [3, 0, 1, 0, 0],
    ]  # fmt: skip

    def three(row, name, middle="median"):
        return tuple(row[f"{name}_{kind}"] for kind in (middle, "min", "max"))

    first, second, third, fourth = rows
    assert three(first, "grok_step") == (40, 20, 60)
    assert three(first, "memorised_step") == (10, 10, 20)
    assert three(first, "delay") == (3.0, 2.0, 4.0)
    assert three(first, "accuracy/iid", "mean") == (pytest.approx(0.95), 0.9, 1.0)
    assert three(first, "train_seconds", "mean") == (20.0, 10.0, 30.0)
    # The run that has not finished is in no number, although it has grokked and is more accurate.
    assert three(second, "grok_step") == (30, 30, 30)
    assert three(second, "accuracy/iid", "mean") == (pytest.approx(0.7), 0.4, 1.0)
    assert three(third, "grok_step") == (None, None, None)
    assert three(fourth, "accuracy/iid", "mean") == (None, None, None)
    assert not any(name.startswith("accuracy/none") for name in first)


def test_collect_writes_every_run_and_every_setting(grok, swept):
    status, output, errors = grok("sweep", "collect", "s")
    assert (status, errors) == (0, "")
    assert "12 runs: 2 waiting, 1 stopped, 1 failed, 8 done" in output
    runs = list(csv.DictReader((swept.directory / "results/runs.csv").open()))
    assert [int(row["index"]) for row in runs] == list(range(12))
    assert (runs[4]["state"], runs[4]["grok_step"], runs[4]["accuracy/iid"]) == ("stopped", "20", "0.97")
    assert (runs[9]["state"], runs[9]["exit_status"], runs[9]["step"]) == ("failed", "2", "0")
    assert runs[0]["trainer.max_steps"] == "90"
    settings = list(csv.DictReader((swept.directory / "results/results.csv").open()))
    assert [row["grok_step_median"] for row in settings] == ["40", "30", "", ""]
    told = (swept.directory / "results/results.md").read_text()
    assert "**4 of 12 runs are not finished and in no median or mean.**" in told
    assert (
        "| 1 | 2 | 3 | 3 | 3 of 3 | 3 of 3 | 10 (10–20) | 40 (20–60) | 3.0 (2.0–4.0) | 100.0 % "
        "| 95.0 % (90.0 %–100.0 %) |" in told
    )
    assert "| 2 | 3 | 3 | 0 | 0 of 0 | 0 of 0 | – | – | – |" in told
    before = {path: path.read_bytes() for path in swept.directory.rglob("*.*")}
    assert grok("sweep", "collect", "s")[0] == 0
    assert {path: path.read_bytes() for path in swept.directory.rglob("*.*")} == before


def test_a_parquet_file_or_the_hint_how_to_get_one(grok, swept):
    output = grok("sweep", "collect", "s")[1]
    path = swept.directory / "results/results.parquet"
    assert path.exists() == (find_spec("pyarrow") is not None)
    if path.exists():
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        assert table.column("grok_step_median").to_pylist() == [40, 30, None, None]
    else:
        assert "pip install 'grok-circuits[tables]'" in output


def test_the_figure_has_a_cell_for_each_setting_and_says_what_it_is(grok, swept):
    pytest.importorskip("matplotlib")
    output = grok("sweep", "collect", "s")[1]
    assert str(swept.directory / "figures/grok_step.png")[-20:] in output
    drawn = (swept.directory / "figures/grok_step.svg").read_text()
    for text in ("data.phi", "model.clip", "3 seeds", "iid at 95 %", "90 steps", "1/2", "0/3", "not run", "1 to run"):
        assert text in drawn, text


def test_other_keys_make_a_figure_each_and_an_unknown_split_is_named(grok, tiny_config, tmp_path, swept):
    pytest.importorskip("matplotlib")
    grid = {"model.clip": [1], "data.phi": [2], "data.batch": [8, 16], "seed_everything": [0]}
    asked = {"base": "tiny.yaml", "grid": grid, "figure": {**ASKED["figure"], "value": "accuracy/iid"}}
    sweep = plan(read(asked, "s.yaml", tmp_path), tiny_config, tmp_path / "t")
    sweep.record(sweep.lines[0]).write_summary({**summary(True, 10, 20, 0.5), "accuracy": {"train": 1.0}})
    assert "figure.value='accuracy/iid': no such split; use accuracy/train" in grok("sweep", "collect", "t")[2]
    for line in sweep.lines:
        sweep.record(line).write_summary(summary(True, 10, 20, 0.5))
    assert grok("sweep", "collect", "t")[0] == 0
    pictures = sorted(path.name for path in (tmp_path / "t/figures").glob("*.png"))
    assert pictures == ["accuracy_iid_batch=16.png", "accuracy_iid_batch=8.png"]
    assert "50 %" in (tmp_path / "t/figures/accuracy_iid_batch=8.svg").read_text()


def test_a_diagram_in_which_nothing_grokked_has_no_scale(tmp_path):
    pytest.importorskip("matplotlib")
    outcomes = {("a", 1): Outcome(None, 0, 3, 3), ("b", 1): Outcome(None, 0, 0, 3)}
    files = phase_diagram(outcomes, ("x", "y"), "delay", "title", tmp_path / "d")
    text = files[1].read_text()
    assert [path.name for path in files] == ["d.png", "d.svg"]
    assert ("0/3" in text, "not run" in text, "log scale" in text) == (True, True, False)


def curves_of(sweep, *figures):
    """The same sweep with other pictures asked for."""
    return replace(sweep, asked={**sweep.asked, "figure": list(figures)})


def test_lines_over_a_key_join_the_middles_of_the_settings(swept):
    pytest.importorskip("matplotlib")
    figures = {"x": "data.phi", "lines": "model.clip", "value": "accuracy/iid"}, {"x": "data.phi", "value": "delay"}
    files = draw_figures(curves_of(swept, *figures), reports(swept))
    assert sorted(path.name for path in files if path.suffix == ".svg") == [
        "accuracy_iid_over_data.phi_model.clip.svg", "delay_over_data.phi_clip=1.svg", "delay_over_data.phi_clip=2.svg",
    ]  # fmt: skip
    drawn = (swept.directory / "figures/accuracy_iid_over_data.phi_model.clip.svg").read_text()
    assert all(text in drawn for text in ("final accuracy, iid", "data.phi", "model.clip", "3 seeds"))


@pytest.mark.parametrize(("over", "last"), [("step", 90), ("epoch", 4.5)])
def test_curves_are_over_steps_or_epochs_and_leave_out_what_is_unfinished(swept, monkeypatch, over, last):
    pytest.importorskip("matplotlib")
    seen = []
    monkeypatch.setattr("grok.sweep.figures.accuracy_curves", lambda *told: seen.append(told) or [])
    for line in swept.lines[:6]:
        found = swept.record(line).summary()
        length = {2: 20.0, 3: 19.0 + line.set["seed_everything"] / 2}[line.set["data.phi"]]  # seeds may differ in rows
        swept.record(line).write_summary({**found, "steps_per_epoch": length})
        rows = [{"step": step, "split": "iid", "name": "accuracy", "value": step / 90} for step in (0, 45, 90)]
        swept.record(line).append(rows)
    sweep = curves_of(swept, {"curves": "iid", "lines": "data.phi", "over": over})
    for line in swept.lines[6:9]:  # no epochs
        swept.record(line).write_summary(summary(False, 10, None, 0.2))
    draw_figures(sweep, reports(sweep))
    curves, key, told, title, path = seen[0]
    assert (key, told, "mean and range over 2 to 3 seeds" in title) == ("data.phi", over, True)
    assert {phi: len(runs) for phi, runs in curves.items()} == {2: 3, 3: 2}
    assert curves[2][0][0] == [0, last / 2, last]
    assert curves[3][0][0] == curves[3][1][0]  # seeds 0 and 2: a mean epoch, so that they can be averaged
    assert curves[3][0][0][-1] == (90 if over == "step" else 90 / 19.5)
    assert path.name == f"iid_over_{over}_data.phi_clip=1"
    with pytest.raises(BadInput, match=r"figure\.curves='nothing': no such split"):
        draw_figures(curves_of(swept, {"curves": "nothing", "lines": "data.phi"}), reports(swept))


def test_a_key_that_an_axis_determines_makes_no_picture_of_its_own(tiny_config, tmp_path):
    pytest.importorskip("matplotlib")
    zipped = {"model.net.layers": [1, 2], "model.net.loops": [2, 1]}
    asked = {"base": "tiny.yaml", "zip": zipped, "figure": [{"x": "model.net.layers", "value": "grok_epoch"}]}
    sweep = plan(read(asked, "s.yaml", tmp_path), tiny_config, tmp_path / "z")
    for line in sweep.lines:
        sweep.record(line).write_summary({**summary(True, 10, 20, 0.5), "steps_per_epoch": 10.0})
    found = reports(sweep)
    assert [row["grok_epoch_median"] for row in setting_rows(sweep, found)] == [2, 2]
    assert [path.name for path in draw_figures(sweep, found)] == [
        "grok_epoch_over_model.net.layers.png",
        "grok_epoch_over_model.net.layers.svg",
    ]


def test_pictures_of_one_sweep_do_not_overwrite_each_other(tiny_config, tmp_path):
    pytest.importorskip("matplotlib")
    keys = {"data.phi": [2, 3], "model.clip": [1, 2]}
    figures = [{"curves": "iid", "lines": key} for key in keys] + [{"x": key, "value": "accuracy/iid"} for key in keys]
    figures += [{"x": "data.phi", "y": "model.clip", "value": "accuracy/iid"}]
    figures += [{"x": "model.clip", "y": "data.phi", "value": "accuracy/iid"}]
    sweep = plan(
        read({"base": "tiny.yaml", "zip": keys, "figure": figures}, "s.yaml", tmp_path), tiny_config, tmp_path / "o"
    )
    assert draw_figures(sweep, reports(sweep)) == []  # nothing is trained yet
    for line in sweep.lines:
        sweep.record(line).write_summary(summary(True, 10, 20, 0.5))
        sweep.record(line).append([{"step": 90, "split": "iid", "name": "accuracy", "value": 0.5}])
    files = draw_figures(sweep, reports(sweep))
    assert len(files) == len(set(files)) == 2 * len(figures)
