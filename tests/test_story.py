"""The figure over several runs, and the lines that a run ends with."""

import json

import pytest

from grok.errors import BadInput
from grok.records import RunRecord
from grok.report.closing import circuit_lines
from grok.report.figures import draw, story

STATES = [(i, p) for i in range(3) for p in ("h", "r1", "r2")]


def write_run(directory, grokked=300, analysed=True):
    """A record as a run leaves it: S[1, r1] carries the bridge from the start, and decides the answer at the end."""
    record = RunRecord(directory)
    rows = []
    for step in (100, 200, 300):
        late = step >= grokked
        for split, value in (("train_inferred", 0.96), ("test_inferred_iid", 0.97 if late else 0.2)):
            rows.append({"step": step, "split": split, "name": "accuracy", "value": value, "low": None, "high": None,
                         "floor": 0.1, "n": 50})  # fmt: skip
        for i, p in STATES if analysed else []:
            told = i >= 1 and p == "r1"
            for name, value, floor in (
                ("lens/mrr/bridge", 0.9 if told else 0.1, 0.1),
                ("tracing/changed", 1.0 if told and i == 1 and late else 0.3, 0.25),
            ):
                place = {"step": step, "split": "test_inferred_iid", "name": f"{name}/S[{i},{p}]", "value": value}
                rows.append({**place, "low": None, "high": None, "floor": floor, "n": 50})
    record.append(rows)
    record.write_summary({
        "step": 300, "memorised_step": 100, "grok_step": {"test_inferred_iid": grokked},
        "accuracy": {"train_inferred": 0.96, "test_inferred_iid": 0.97},
    })  # fmt: skip
    return record


@pytest.mark.slow
def test_the_story_draws_lines_of_all_seeds_and_names_what_is_missing(tmp_path):
    runs = {
        "shared": [write_run(tmp_path / "a", 200), write_run(tmp_path / "b")],
        "unshared": [write_run(tmp_path / "c")],
    }
    files = story(runs, "test_inferred_iid", tmp_path / "out/story")
    assert [file.name for file in files] == ["story.png", "story.svg"]
    drawn = files[1].read_text()
    again = story(runs, "test_inferred_iid", tmp_path / "out/again")
    assert again[1].read_text() == drawn  # no date, no random ids
    changed = {"shared": [runs["shared"][0]], "unshared": runs["unshared"]}
    assert story(changed, "test_inferred_iid", tmp_path / "out/other")[1].read_text() != drawn
    with pytest.raises(BadInput, match=r"d: no lens and tracing of test_inferred_iid in the record"):
        story({"x": [write_run(tmp_path / "d", analysed=False)]}, "test_inferred_iid", tmp_path / "out/x")


def test_a_run_ends_by_naming_the_state_that_carries_the_bridge_and_the_one_that_decides(tmp_path):
    lines = [" ".join(line.split()) for line in circuit_lines(write_run(tmp_path / "a"))]
    assert lines == [
        "bridge in S[1, r1] 0.90 at step 100 (floor 0.10), 0.90 at step 300 (floor 0.10), test_inferred_iid",
        "strength of S[1, r1] 0.30 at step 100 (floor 0.25), 1.00 at step 300 (floor 0.25), test_inferred_iid",
    ]
    assert list(circuit_lines(write_run(tmp_path / "b", analysed=False))) == []


def test_pictures_are_made_from_the_record_alone(tmp_path):
    write_run(tmp_path / "a")
    names = sorted(path.name for path in draw(tmp_path / "a"))
    pictures = ["accuracy", "circuit", "lens_mrr_bridge_test_inferred_iid", "tracing_changed_test_inferred_iid"]
    assert names == sorted(f"{picture}.{kind}" for picture in pictures for kind in ("png", "svg"))
    with pytest.raises(BadInput, match=r"metrics.jsonl: no record to draw"):
        draw(tmp_path / "nowhere")
    assert json.loads((tmp_path / "a/summary.json").read_text())["step"] == 300
