"""A sweep of several parts: runs that start from runs of the first, and their controls."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from grok.callbacks import load_series
from grok.sweep import Sweep
from grok.sweep.groups import grouped
from grok.sweep.line import Line, value_of
from grok.sweep.status import report
from grok.sweep.worker import record_status

SWEEP = """
base: tiny.yaml
set: {trainer.max_steps: 30, model.net.dropout: 0}
grid: {model.decay: [all, matrices], seed_everything: [0]}
then:
- name: transfer
  base: transfer.yaml
  from: {model.decay: [all, matrices]}
  inherit: [seed_everything, data.phi]
  grid: {start.step: [8]}
- name: control
  base: transfer.yaml
  start: false
  inherit: [seed_everything, data.phi]
"""
NAMES = [
    "decay=all,seed=0", "decay=matrices,seed=0", "transfer,decay=all,seed=0,step=8",
    "transfer,decay=matrices,seed=0,step=8", "control,seed=0",
]  # fmt: skip


@pytest.fixture
def asked(tiny_config, tmp_path):
    """The content of the sweep file, for changing it; `asked.write()` writes it."""
    transfer = yaml.safe_load(tiny_config.read_text())
    transfer["trainer"]["max_steps"], transfer["data"]["init_args"]["batch"] = 20, 8
    (tmp_path / "transfer.yaml").write_text(yaml.safe_dump(transfer))

    class Asked(dict):
        def write(self):
            (tmp_path / "s.yaml").write_text(yaml.safe_dump(dict(self), sort_keys=False))
            return tmp_path / "s.yaml"

    return Asked(yaml.safe_load(SWEEP))


@pytest.fixture
def planned(grok, asked):
    assert grok("sweep", "plan", asked.write(), "--sweep_dir", "s")[::2] == (0, "")
    return Sweep.load("s")


def states(sweep):
    return [report(sweep, line).state for line in sweep.lines]


def manifest():
    return [json.loads(line) for line in Path("s/manifest.jsonl").read_text().splitlines()]


def test_a_plan_says_for_each_run_from_which_it_starts_and_with_which_base(planned, tmp_path):
    assert [line.name for line in planned.lines] == NAMES
    assert [line.after for line in planned.lines] == [None, None, 0, 1, None]
    bases = ["base.yaml"] * 2 + ["transfer.yaml"] * 2 + ["control.yaml"]
    assert [line.base for line in planned.lines] == bases
    assert set(manifest()[0]) == {"index", "name", "run_dir", "set"}  # as in a sweep of one part
    assert manifest()[3] == {
        "index": 3, "name": NAMES[3], "run_dir": f"runs/{NAMES[3]}", "base": "transfer.yaml", "after": 1,
        "block": "transfer", "set": {"seed_everything": 0, "data.phi": 2, "start.step": 8},
    }  # fmt: skip
    for name in ("transfer", "control"):
        assert (tmp_path / f"s/{name}.yaml").read_bytes() == (tmp_path / "transfer.yaml").read_bytes()
    arguments = planned.fit(planned.lines[3])
    assert f"--start.run={tmp_path}/s/runs/{NAMES[1]}" in arguments
    assert "--config=s/transfer.yaml" in arguments
    assert not any(word.startswith("--start.") for word in planned.fit(planned.lines[4]))
    assert planned.value(planned.lines[3], "trainer.max_steps") == 20


@pytest.mark.slow
def test_planning_again_changes_nothing_and_more_seeds_extend_every_part(grok, asked, planned):
    before = manifest()
    status, output, _ = grok("sweep", "plan", asked.write(), "--sweep_dir", "s")
    assert (status, manifest(), "5 runs, 0 of them new" in output) == (0, before, True)
    asked["grid"]["seed_everything"] = [0, 1]
    assert grok("sweep", "plan", asked.write(), "--sweep_dir", "s", "--dry-run")[0] == 0
    assert manifest() == before
    assert "10 runs, 5 of them new" in grok("sweep", "plan", asked.write(), "--sweep_dir", "s")[1]
    new = Sweep.load("s").lines[5:]
    assert manifest()[:5] == before
    assert [line.name for line in new] == [name.replace("seed=0", "seed=1") for name in NAMES]
    assert [line.after for line in new] == [None, None, 5, 6, None]


@pytest.mark.slow
def test_another_part_is_added_and_one_that_changes_is_refused(grok, asked, planned):
    asked["then"].append({"name": "later", "base": "tiny.yaml", "set": {"start.step": "last", "model.net.dropout": 0}})
    assert "7 runs, 2 of them new" in grok("sweep", "plan", asked.write(), "--sweep_dir", "s")[1]
    assert Path("s/later.yaml").exists()
    asked["then"][0]["grid"]["start.step"] = [16]
    status, _, errors = grok("sweep", "plan", asked.write(), "--sweep_dir", "s")
    assert (status, f"missing now: {NAMES[2]}" in errors) == (2, True)
    asked["then"][0]["grid"]["start.step"] = [8]
    Path("transfer.yaml").write_text(Path("transfer.yaml").read_text().replace("max_steps: 20", "max_steps: 10"))
    status, _, errors = grok("sweep", "plan", asked.write(), "--sweep_dir", "s")
    assert (status, "trainer.max_steps: 20 in the run, 10 now" in errors) == (2, True)


def test_usually_what_varies_is_inherited_unless_the_part_sets_it(grok, asked):
    asked["then"] = {"from": {"model.decay": "all"}, "set": {"seed_everything": 0, "model.net.dropout": 0}}
    assert grok("sweep", "plan", asked.write(), "--sweep_dir", "s")[0] == 0
    line = Sweep.load("s").lines[2]
    assert (line.name, line.base, line.after) == ("then,decay=all,seed=0", "base.yaml", 0)
    assert line.set == {"model.decay": "all", "seed_everything": 0, "model.net.dropout": 0}


def test_controls_that_would_be_the_same_are_one_and_runs_from_different_sources_are_not(grok, asked):
    asked["then"] = [
        {"name": "a", "inherit": ["seed_everything"], "set": {"model.net.dropout": 0}},
        {"name": "b", "inherit": ["seed_everything"], "start": False},
    ]
    assert grok("sweep", "plan", asked.write(), "--sweep_dir", "s")[0] == 0
    names = [line.name for line in Sweep.load("s").lines[2:]]
    assert names == ["a,decay=all,seed=0", "a,decay=matrices,seed=0", "b,seed=0"]


BAD = {
    "not a mapping": ([], "then: use a mapping of name, base"),
    "unknown key": ({"form": {}}, "then (then): form: no such key; use name, base, from"),
    "name": ({"name": "a/b"}, "name='a/b': use a word"),
    "name of a file": ({"name": "Base"}, "name='Base': use a word"),
    "same name": ([{}, {}], "two parts are called then; give each a `name`"),
    "start": ({"start": "no"}, "start='no': use true, or false"),
    "from": ({"from": ["x"]}, "from=['x']: use a mapping"),
    "nobody": ({"from": {"model.decay": "none"}}, "no run of the first part is like that"),
    "inherit": ({"inherit": "data.phi"}, "inherit='data.phi': use a list"),
    "not there": ({"inherit": ["data.nothing"]}, "inherit='data.nothing': the first part neither varies"),
    "twice": ({"inherit": ["data.phi"], "set": {"data.init_args.phi": 1}}, "data.phi is in inherit and in set"),
    "its source": ({"set": {"start.run": "x"}}, "start.run: the sweep itself chooses it"),
    "of a control": ({"start": False, "set": {"start.step": 1}}, "`start: false` starts from random weights"),
    "own base": ({"base": "nope.yaml"}, "nope.yaml': not there"),
    "value": ({"set": {"start.step": "half"}}, "run 2 (then,decay=all,seed=0): start.step='half': use a step"),
    "graph": ({"set": {"data.entities": 13}}, "start.run: data.entities is 12 in run 0 (decay=all,seed=0), 13 in this"),
    "seed": ({"inherit": [], "base": "transfer.yaml"}, "start.run: data.graph_seed is 0 in run 0"),
}


@pytest.mark.parametrize(("then", "told"), BAD.values(), ids=BAD.keys())
def test_mistakes_in_a_further_part_are_told_before_anything_is_written(grok, asked, then, told):
    asked["then"] = then
    status, _, errors = grok("sweep", "plan", asked.write(), "--sweep_dir", "s")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert told in errors
    assert not Path("s").exists()


def test_a_manifest_whose_runs_start_from_later_ones_is_damaged(grok, planned):
    lines = [{**line, "after": 4} if line["index"] == 2 else line for line in manifest()]
    Path("s/manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "damaged" in grok("sweep", "status", "s")[2]


def test_values_are_found_however_a_key_is_spelled():
    options = {"data": {"class_path": "X", "init_args": {"phi": 2, "encoding": {"init_args": {"pad": 10}}}}}
    assert value_of({}, options, "data.phi") == value_of({}, options, "data.init_args.phi") == 2
    assert value_of({"data.init_args.phi": 3}, options, "data.phi") == 3
    assert value_of({}, options, "data.encoding.pad") == 10
    assert value_of({}, options, "data.class_path") == "X"
    assert value_of({}, options, "model.net", "none") == "none"


def test_an_ensemble_starts_from_one_run_and_has_one_base():
    lines = [
        Line(index, str(index), "", {"seed_everything": index}, base, after)
        for index, (base, after) in enumerate([("a", None), ("b", None), ("a", 0), ("a", 0), ("a", 1), ("a", None)])
    ]
    assert [[line.index for line in group] for group in grouped(lines, 8)] == [[0, 5], [1], [2, 3], [4]]


# ------------------------------------------------------------------ at work


def test_a_task_waits_for_its_source_and_is_blocked_when_that_has_failed(grok, planned):
    assert states(planned) == ["waiting"] * 5
    status, output, _ = grok("sweep", "task", "s", 2)
    assert (status, output) == (75, f"{NAMES[2]} waits for run 0 (decay=all,seed=0), from which it starts\n")
    record_status(planned, planned.lines[0], 1)
    assert states(planned) == ["failed", "waiting", "blocked", "waiting", "waiting"]
    assert "1 failed" in grok("sweep", "status", "s")[1]
    assert "1 blocked" in grok("sweep", "status", "s")[1]
    status, output, _ = grok("sweep", "task", "s", 2)
    assert (status, "is blocked: run 0" in output) == (2, True)
    assert not (planned.directory / planned.lines[2].run_dir).exists()
    assert grok("sweep", "status", "s", "--missing")[1] == "0-4\n"
    assert grok("sweep", "status", "s", "--ready")[1] == "0-1,4\n"
    assert grok("sweep", "status", "s", "--later")[1] == "2-3\n"
    planned.record(planned.lines[0]).write_summary({"step": 30, "finished": True})
    assert grok("sweep", "status", "s", "--later")[1] == "3\n"
    # A finished run is finished whatever has become of its source.
    planned.record(planned.lines[3]).write_summary({"step": 20, "finished": True})
    assert "nothing to do" in grok("sweep", "task", "s", 3)[1]


@pytest.mark.slow
def test_two_parts_are_worked_off_in_order_after_a_stop_and_collected(grok, planned, hashes):
    def stop_when_one_is_done():
        deadline = time.monotonic() + 40
        while "done" not in states(planned) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_one_is_done, daemon=True).start()
    assert grok("sweep", "run", "s", "--workers", 1)[0] == 75
    assert states(planned)[0] == "done"
    assert "done" not in states(planned)[2:]
    status = grok("sweep", "run", "s", "--workers", 2)[0]
    assert (status, states(planned)) == (0, ["done"] * 5)
    for source, line in ((planned.lines[0], planned.lines[2]), (planned.lines[1], planned.lines[3])):
        start, there = (load_series(planned.directory / one.run_dir) for one in (line, source))
        assert all((load_file(start[0])[name] == weight).all() for name, weight in load_file(there[8]).items())
        assert planned.record(line).summary()["start"]["step"] == 8
    assert hashes("s/" + planned.lines[2].run_dir) != hashes("s/" + planned.lines[4].run_dir)
    assert "start" not in planned.record(planned.lines[4]).summary()

    assert grok("sweep", "collect", "s")[0] == 0
    told = Path("s/results/results.md").read_text()
    assert "| block | model.decay | start.step | seeds |" in told
    for row in ("first | all | – | 1", "transfer | all | 8 | 1", "transfer | matrices | 8 | 1", "control | – | – | 1"):
        assert f"| {row} | 1 |" in told
    runs = Path("s/results/runs.csv").read_text().splitlines()
    assert runs[0].endswith("source,source_step,source_flops")
    assert f',"{NAMES[1]}",8,' in runs[4]


def test_dependents_of_a_run_that_fails_are_blocked_and_the_others_are_done(grok, planned):
    bad = planned.directory / planned.lines[1].run_dir
    bad.mkdir(parents=True)
    (bad / "notes.txt").write_text("mine")
    assert grok("sweep", "run", "s", "--only", "3", "--workers", 1)[0] == 75  # its source has not been asked for
    status, output, _ = grok("sweep", "run", "s", "--workers", 2)
    assert (status, states(planned)) == (1, ["done", "failed", "done", "blocked", "done"])
    assert "1 failed: 1\n" in output
    assert "1 not started: 3; the runs that they start from have failed" in output
    assert grok("sweep", "run", "s", "--only", "3", "--workers", 1)[0] == 1


@pytest.mark.slow
def test_runs_from_one_source_train_as_one_ensemble(grok, asked):
    asked["grid"] = {"model.decay": ["all"], "seed_everything": [0]}
    precise = {"trainer.precision": "64-true", "model.net.dropout": 0}
    asked["set"] |= precise
    asked["then"] = {"set": {**precise, "start.step": 16}, "grid": {"model.optimizer.lr": [1e-3, 2e-3]}}
    for name in ("together", "alone"):
        assert grok("sweep", "plan", asked.write(), "--sweep_dir", name)[0] == 0
    assert grok("sweep", "run", "together", "--ensemble", 2, "--workers", 1)[0] == 0
    assert grok("sweep", "run", "alone", "--workers", 1)[0] == 0
    together, alone = Sweep.load("together"), Sweep.load("alone")
    for line in together.lines[1:]:
        assert "no ensemble" not in together.log(line).read_text()
        one, other = (load_series(sweep.directory / line.run_dir) for sweep in (together, alone))
        for step in (0, 60):
            mine, yours = load_file(one[step]), load_file(other[step])
            assert all(abs(weight - yours[name]).max() < 1e-9 for name, weight in mine.items())
