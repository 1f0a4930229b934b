"""What the monitor says and when it stops; what the recorder leaves behind."""

import json

import lightning as L
import pytest
from tiny import make_data, make_module, train

from grok.callbacks import CostMeter, Evaluation, GrokkingMonitor, RunRecorder
from grok.errors import BadInput
from grok.phases import Phase
from grok.records import RunRecord
from grok.training import Score

LEARNT = {  # accuracy from evaluation number … on
    "train_inferred": [0.1, 0.96, 1.0],
    "test_inferred_iid": [0.0, 0.2, 0.97, 0.3, 0.96, 0.97, 0.98, 0.99],
    "test_inferred_ood": [0.0, 0.0, 0.1],
}


class Pretend(L.Callback):
    """Puts scores in the place of those that were measured, so that curves are known."""

    def __init__(self):
        self.count = 0

    def on_validation_end(self, _, module):
        for split, curve in LEARNT.items():
            value = curve[min(self.count, len(curve) - 1)]
            module.scores[split] = Score(value, module.scores[split].loss, module.scores[split].n)
        self.count += 1


def pretend(tmp_path, monitor, steps=100, data=None):
    watching = [Evaluation(5), Pretend(), monitor, CostMeter(), RunRecorder()]
    return train(tmp_path, make_module(block=50), *watching, steps=steps, data=data)


def test_the_run_stops_the_asked_time_after_it_has_grokked_for_good(tmp_path, capsys):
    monitor = GrokkingMonitor(window=3, stop_after=15, lines=False)
    trainer = pretend(tmp_path, monitor)
    # The spike at step 15 holds: the median of 0.97, 0.3, 0.96 is above the threshold. It is known at step 25.
    assert monitor.milestones.step_of("test_inferred_iid", 0.95, sustained=True) == 15
    assert trainer.global_step == 30
    said = capsys.readouterr().out
    assert ">>> memorised at step 10: train_inferred 96.0 %, test_inferred_iid at 20.0 %\n" in said
    assert ">>> test_inferred_iid passed 95 % at step 15" in said
    assert said.count("passed 95 %") == 1
    assert ">>> stopping: test_inferred_iid has held for 15 steps since step 15" in said


def with_phases():
    data = make_data()
    names = {"memorisation": "train_inferred", "more": "test_inferred_iid", "last": "test_inferred_ood"}
    data.phases = (*(Phase(name, split) for name, split in names.items()), Phase("of no query", "test_hard"))
    return data


def test_phases_are_said_when_they_end_and_recorded(tmp_path, capsys):
    pretend(tmp_path, GrokkingMonitor(lines=False, phase_levels={"more": 0.98}), steps=60, data=with_phases())
    said = capsys.readouterr().out
    assert ">>> phase I (memorisation) ended at step 10: train_inferred 96.0 %; phase II (more) begins\n" in said
    assert ">>> phase II (more) ended at step 35: test_inferred_iid 98.0 %; phase III (last) begins\n" in said
    assert said.count(">>> phase") == 2
    assert RunRecord(tmp_path).summary()["phases"] == {
        "memorisation": {"split": "train_inferred", "level": 0.95, "begin": 0, "end": 10},
        "more": {"split": "test_inferred_iid", "level": 0.98, "begin": 10, "end": 35},
        "last": {"split": "test_inferred_ood", "level": 0.95, "begin": 35, "end": None},
    }


def test_levels_of_unknown_phases_are_refused(tmp_path):
    monitor = GrokkingMonitor(phase_levels={"most": 0.5})
    with pytest.raises(BadInput, match=r"phase_levels='most': TwoHopComposition has .*memorisation, more, last"):
        pretend(tmp_path, monitor, data=with_phases())
    with pytest.raises(BadInput, match="null, as it has none"):
        pretend(tmp_path, monitor)


def test_a_longer_window_does_not_take_the_spike_for_the_transition(tmp_path):
    monitor = GrokkingMonitor(window=2, stop_after=0, lines=False)
    trainer = pretend(tmp_path, monitor)
    assert monitor.milestones.step_of("test_inferred_iid", 0.95) == 15
    assert monitor.milestones.step_of("test_inferred_iid", 0.95, sustained=True) == 25
    assert trainer.global_step == 30


def test_without_stop_after_the_run_goes_to_its_end_and_the_summary_says_what_happened(tmp_path):
    monitor = GrokkingMonitor(window=3, lines=False)
    pretend(tmp_path, monitor, steps=60)
    summary = RunRecord(tmp_path).summary()
    wanted = {"step", "accuracy", "memorised_step", "grok_step", "wall_seconds", "flops", "finished"}
    assert wanted <= summary.keys()
    assert (summary["step"], summary["finished"], summary["memorised_step"]) == (60, True, 10)
    assert summary["grok_step"]["test_inferred_iid"] == 15
    assert summary["grok_step"]["test_inferred_ood"] is None
    assert summary["delay"] == 1.5
    assert summary["id_ood_gap"] == pytest.approx(0.99 - 0.1)
    assert summary["accuracy_when_memorised"]["test_inferred_iid"] == 0.2
    assert summary["accuracy"].keys() == make_data().splits.keys()
    assert not list(tmp_path.glob(".summary*"))
    copy = GrokkingMonitor(window=3)
    copy.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert copy.milestones.state() == monitor.milestones.state()


def test_each_evaluation_is_a_line_unless_it_is_unwanted(tmp_path, capsys):
    train(tmp_path, make_module(), Evaluation(5), GrokkingMonitor(), steps=10)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1]) for line in lines] == [5, 10]
    assert all(name in lines[0] for name in make_data().splits)


def test_a_run_is_unfinished_while_it_runs(tmp_path):
    class Look(L.Callback):
        seen = ()

        def on_train_batch_start(self, trainer, *_):
            summary = RunRecord(tmp_path).summary()
            self.seen += ((trainer.global_step, summary and summary["finished"]),)

    look = Look()
    train(tmp_path, make_module(), Evaluation(5), RunRecorder(), look, steps=15)
    assert look.seen == ((0, None), (5, False), (10, False))
    assert RunRecord(tmp_path).summary()["finished"] is True


def test_two_runs_are_not_mixed_in_one_directory(tmp_path):
    train(tmp_path, make_module(), RunRecorder(), steps=2)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(BadInput, match="already holds a run"):
        train(tmp_path, make_module(), RunRecorder(), steps=2)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_rows_hold_interval_floor_and_size(tmp_path):
    train(tmp_path, make_module(), Evaluation(5), RunRecorder(), steps=10)
    rows = RunRecord(tmp_path).rows()
    assert all(list(row) == ["step", "split", "name", "value", "low", "high", "floor", "n"] for row in rows)
    sizes = {name: len(split) for name, split in make_data().splits.items()}
    for row in rows:
        if row["name"] == "accuracy":
            assert row["low"] <= row["value"] <= row["high"]
            assert (row["floor"], row["n"]) == (pytest.approx(1 / 12), sizes[row["split"]])
    assert {row["name"] for row in rows} >= {"training_loss", "learning_rate", "weight_norm/embedding.weight"}
    changes = [row["value"] for row in rows if row["name"] == "update_norm/embedding.weight"]
    assert len(changes) == 2
    assert min(changes) > 0
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"window": 0}, {"stop_after": -1}, {"phase_levels": {"I": 2}}], ids=str
)
def test_monitor_arguments_that_make_no_sense_are_named(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        GrokkingMonitor(**wrong)
