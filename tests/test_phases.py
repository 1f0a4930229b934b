"""Phases of training: where they begin and end in a known history, through an interruption, in records and pictures."""

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.analyses import AnalysisRecord
from grok.errors import BadInput
from grok.phases import Phase, Span, numeral, spans
from grok.records import Milestones, RunRecord

PHASES = (Phase("memorise", "train"), Phase("generalise", "iid"), Phase("cross", "oi", 0.5))
HISTORY = {  # of evaluations at steps 100, 200, …
    "train": [0.5, 0.96, 0.94, 1.0, 1.0, 1.0],
    "iid": [0.1, 0.3, 0.97, 0.5, 0.98, 0.99],
    "oi": [0.0, 0.6, 0.2, 0.4, 0.51, 0.7],
}


def watched(count=6, phases=PHASES, into=None, since=0):
    milestones = into or Milestones("train", ("iid", "oi"), phases=phases)
    for index in range(since, count):
        milestones.update(100 * (index + 1), {name: values[index] for name, values in HISTORY.items()})
    return milestones


def test_each_phase_begins_where_the_one_before_ended_and_what_has_ended_stays_ended():
    assert watched().phase_spans == {
        "memorise": Span("train", 0.95, 0, 200),
        "generalise": Span("iid", 0.95, 200, 300),
        "cross": Span("oi", 0.5, 300, 300),  # passed at step 200, while the phase before was still going on
    }


def test_a_phase_that_has_not_ended_holds_back_those_after_it():
    assert watched(2).phase_spans["generalise"] == Span("iid", 0.95, 200, None)
    assert watched(2).phase_spans["cross"] == Span("oi", 0.5, None, None)
    higher = (*PHASES[:2], replace(PHASES[2], level=0.65))
    assert watched(phases=higher).phase_spans["cross"] == Span("oi", 0.65, 300, 600)
    unknown = (PHASES[0], Phase("never", "no such split"), PHASES[2])
    assert [span.end for span in watched(phases=unknown).phase_spans.values()] == [200, None, None]
    assert watched(phases=()).summary()["phases"] == {}


@given(st.integers(0, 6))
def test_an_interrupted_run_has_the_same_phases(cut):
    first = watched(cut)
    second = Milestones("train", ("iid", "oi"), phases=PHASES)
    second.restore(json.loads(json.dumps(first.state())))
    assert watched(6, into=second, since=cut).summary() == watched().summary()


crossings = st.lists(st.none() | st.integers(1, 1000), min_size=1, max_size=5)


@settings(max_examples=100)
@given(crossings)
def test_phases_follow_each_other_whatever_the_order_of_the_crossings(crossed):
    phases = [Phase(f"p{index}", "s") for index in range(len(crossed))]
    found = list(spans(phases, crossed, [0.5] * len(crossed)).values())
    assert found[0].begin == 0
    for index, span in enumerate(found):
        reached = crossed[: index + 1]
        assert span.end == (None if None in reached else max(reached))
        assert index == 0 or span.begin == found[index - 1].end


def test_a_summary_with_damaged_phases_is_refused(tmp_path):
    record = RunRecord(tmp_path)
    good = {"step": 600, **watched().summary()}
    record.write_summary(good)
    assert record.summary() == json.loads(json.dumps(good))
    for damage in ({"begin": "0"}, {"end": 1.5}, {"level": None, "split": 3}):
        phases = {**good["phases"], "cross": {**good["phases"]["cross"], **damage}}
        record.write_summary({**good, "phases": phases})
        with pytest.raises(BadInput, match="not a summary of a run"):
            record.summary()
    record.write_summary({**good, "phases": {"cross": {"begin": 0}}})
    with pytest.raises(BadInput, match="not a summary of a run"):
        record.summary()


def test_numerals():
    assert [numeral([phase.name for phase in PHASES], phase.name) for phase in PHASES] == ["I", "II", "III"]


def write_run(directory):
    """A record as a run leaves it: the history, cosines of two states, and a patching matrix."""
    record = RunRecord(directory)
    rows = []
    for index in range(6):
        step = 100 * (index + 1)
        for split, values in HISTORY.items():
            rows.append({"step": step, "split": split, "name": "accuracy", "value": values[index], "n": 200})
        for state in ("S[0", "S[1"):
            for grid in ("cosine/cohesion", "cosine/alignment"):
                cell = {"value": index / 6, "floor": 0.1, "n": 30}
                rows.append({"step": step, "split": "id_atomic", "name": f"{grid}/{state},r1]", **cell})
            for position in ("h", "r1"):
                cell = {"value": index / 6, "floor": 0.0, "n": 40}
                rows.append({"step": step, "split": "iid", "name": f"semantic/success/{state},{position}]", **cell})
    record.append({"low": None, "high": None, **row} for row in rows)
    record.write_summary({"step": 600, **watched().summary(), "accuracy": {}})
    return record


def test_pictures_of_the_phases(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from grok.report import figures
    from grok.report.cells import cells_of
    from grok.report.phases import phase_curves, phase_panels, phase_steps

    record = write_run(tmp_path)
    cohesion, alignment, matrix = (
        next(cells for cells in cells_of(record) if cells.grid == grid)
        for grid in ("cosine/cohesion", "cosine/alignment", "semantic/success")
    )
    steps = phase_steps(record.summary(), matrix.steps)
    assert steps == [("memorise", 200), ("generalise", 300), ("cross", 300)]
    assert phase_steps(RunRecord(tmp_path / "none").summary() or {}, [100]) == []
    unfinished = {"phases": {"a": {"begin": 0, "end": None}, "b": {"begin": None, "end": None}}}
    assert phase_steps(unfinished, [100, 200]) == [("a", 200)]
    drawn = (
        phase_curves(record, [cohesion, alignment], tmp_path / "curves"),
        phase_panels(matrix, steps, tmp_path / "m"),
    )
    curves, panels = (files[1].read_text() for files in drawn)  # matplotlib writes each text as a comment too
    assert {"I: memorise to step 200", "III: cross to step 300"} <= set(re.findall("<!-- (.*) -->", curves))
    assert {"memorise", "generalise", "cross", "(step 300)"} <= set(re.findall("<!-- (.*) -->", panels))

    AnalysisRecord(tmp_path).write(200, {"cosine/id_atomic/cohesion": torch.zeros(1)})  # no map in it
    called = []
    names = ("accuracy_curves", "heat_maps", "phase_curves", "phase_panels")
    for name in names:
        monkeypatch.setattr(figures, name, lambda *_, name=name: called.append(name) or [])
    figures.draw(tmp_path)
    assert {*called} == {*names}
    assert called.count("phase_panels") == called.count("phase_curves") == 1
