"""The files a run leaves, and the milestones read from its curves."""

import json
import os

import pytest

from grok.errors import BadInput
from grok.files import write_atomically
from grok.records import Milestones, RunRecord, crossing, wilson


def row(step, value=0.5, name="loss"):
    return {"step": step, "split": "train", "name": name, "value": value}


def test_rows_are_appended_and_read_back(tmp_path):
    record = RunRecord(tmp_path / "new")
    assert record.rows() == []
    record.append([row(1), row(1, name="accuracy")])
    record.append([row(2)])
    assert [(r["step"], r["name"]) for r in record.rows()] == [(1, "loss"), (1, "accuracy"), (2, "loss")]
    assert [r["step"] for r in record.rows("loss")] == [1, 2]


def test_truncating_forgets_later_steps_and_a_half_written_line(tmp_path):
    record = RunRecord(tmp_path)
    record.truncate(3)  # nothing there yet
    record.append([row(step) for step in (1, 2, 3, 4)])
    with record.metrics_path.open("a") as file:
        file.write('{"step": 5, "spl')
    record.truncate(3)
    assert [r["step"] for r in record.rows()] == [1, 2, 3]
    record.append([row(4)])
    assert [r["step"] for r in record.rows()] == [1, 2, 3, 4]


def test_an_unreadable_line_is_named(tmp_path):
    record = RunRecord(tmp_path)
    record.append([row(1)])
    with record.metrics_path.open("a") as file:
        file.write("oops\n")
    with pytest.raises(BadInput, match=r"metrics\.jsonl, line 2: not JSON"):
        record.rows()


def test_the_summary_is_replaced_whole(tmp_path, monkeypatch):
    record = RunRecord(tmp_path)
    assert record.summary() is None
    record.write_summary({"step": 1})
    record.write_summary({"step": 2})
    assert record.summary() == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]

    def crash(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        record.write_summary({"step": 3})
    assert record.summary() == {"step": 2}


@pytest.mark.parametrize("text", ['{"step": ', "{}", "[]"])
def test_an_unreadable_summary_is_named(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(BadInput, match=r"summary\.json: not a summary of a run"):
        RunRecord(tmp_path).summary()


def test_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [(0.5, 10, 0.2366, 0.7634), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.9, 100, 0.8256, 0.9448)],
)
def test_wilson_intervals_are_those_of_the_tables(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)


def test_nothing_observed_excludes_nothing():
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_a_spike_is_a_first_crossing_but_not_a_sustained_one():
    values = [0.1, 0.99, 0.2, 0.3, 0.2, 0.96, 0.97, 0.5, 0.98, 0.99, 1.0]
    assert crossing(values, 0.95) == 1
    assert crossing(values, 0.95, window=5) == 5
    assert crossing(values[:9], 0.95, window=5) is None  # too early to say
    assert crossing(values, 1.1) is None


def milestones(window=3) -> Milestones:
    found = Milestones("train", ("iid", "ood"), threshold=0.9, levels=(0.5,), window=window)
    curves = {"train": [0.2, 0.95, 1, 1, 1, 1], "iid": [0, 0.1, 0.95, 0.2, 0.91, 1], "ood": [0, 0, 0.1, 0.6, 0.2, 0.1]}
    for index in range(6):
        found.update(100 * (index + 1), {split: values[index] for split, values in curves.items()})
    return found


def test_milestones_are_read_off_the_curves():
    summary = milestones().summary()
    assert summary["memorised_step"] == 200
    assert summary["grok_step"] == {"iid": 300, "ood": None}
    assert summary["delay"] == 1.5
    assert summary["accuracy_when_memorised"] == {"train": 0.95, "iid": 0.1, "ood": 0}
    assert summary["crossings"]["iid"]["0.9"] == {"first": 300, "sustained": 300}
    assert summary["crossings"]["ood"]["0.5"] == {"first": 400, "sustained": None}
    json.dumps(summary)


def test_update_names_each_crossing_once():
    found = Milestones("train", ("iid",), threshold=0.9, levels=(0.5,))
    assert found.update(1, {"train": 0.2, "iid": 0.6}) == [("iid", 0.5)]
    assert found.update(2, {"train": 0.95, "iid": 0.1}) == [("train", 0.5), ("train", 0.9)]
    assert found.update(3, {"train": 0.95, "iid": 0.95}) == [("iid", 0.9)]
    assert found.update(4, {"train": 0.1, "iid": 0.1}) == []
    assert found.update(5, {"train": 0.95, "iid": 0.95}) == []


def test_milestones_survive_a_round_trip_and_nothing_is_milestone_less():
    found, copy = milestones(), Milestones("train", ("iid", "ood"), threshold=0.9, levels=(0.5,), window=3)
    copy.restore(json.loads(json.dumps(found.state())))
    assert copy.summary() == found.summary()
    empty = Milestones(None, ()).summary()
    assert (empty["memorised_step"], empty["grok_step"], empty["delay"]) == (None, {}, None)


def test_an_accuracy_that_falls_by_half_is_a_spike_unless_chance_does_as_much():
    found = Milestones("train", ("iid",))
    for step, (train, iid) in enumerate([(0.5, 0.02), (1.0, 0.01), (0.49, 0.3), (0.9, 0.15), (0.46, 0.31)], 1):
        found.update(step, {"train": train, "iid": iid}, {"train": 1000, "iid": 400})
    assert found.spikes == [
        {"step": 3, "split": "train", "before": 1.0, "after": 0.49},
        {"step": 4, "split": "iid", "before": 0.3, "after": 0.15},
    ]
    assert found.summary()["spikes"] == found.spikes
    again = Milestones("train", ("iid",))
    again.restore(found.state())
    assert again.spikes == found.spikes


def test_a_line_that_is_just_being_written_is_not_there_yet_and_a_damaged_one_is_named(tmp_path):
    record = RunRecord(tmp_path)
    row = {"step": 1, "split": None, "name": "training_loss", "value": 1.0}
    record.append([row, {**row, "step": 2}])
    whole = record.metrics_path.read_text()
    for cut in range(len(whole)):
        record.metrics_path.write_text(whole[:cut])
        assert record.rows() == [row, {**row, "step": 2}][: len(record.rows())]
    record.metrics_path.write_text(whole.replace('"step": 1', '"step" 1'))
    with pytest.raises(BadInput, match="line 1: not JSON"):
        record.rows()
