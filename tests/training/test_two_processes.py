"""Two processes that share each batch learn what one process learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import assert_same
from two_processes import run

from grok.records import RunRecord


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    return directory, run(directory, 10)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    directory = tmp_path_factory.mktemp("together")
    script = Path(__file__).with_name("two_processes.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    ended = subprocess.run(
        [*launcher, str(script), str(directory)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    stopped = [torch.load(directory / f"stopped_{rank}.pt") for rank in (0, 1)]
    return stopped, {
        block: (directory / f"block_{block}", [torch.load(directory / f"block_{block}/rank_{r}.pt") for r in (0, 1)])
        for block in (1, 10)
    }


@pytest.fixture(scope="module")
def together(done):
    return done[1]


def test_a_signal_to_one_process_stops_both_and_the_resumed_run_is_the_same(done):
    for result in done[0]:
        assert "stopped by SIGTERM at step 12" in result["stopped"]
        assert_same(result["resumed"], result["whole"])
        assert result["losses"][0] == result["losses"][1]


def test_processes_hold_the_same_bits_whatever_the_block(together):
    results = [result for _, ranks in together.values() for result in ranks]
    assert [result["world"] for result in results] == [2] * 4
    for result in results[1:]:
        assert_same(result["weights"], results[0]["weights"])
        assert result["scores"] == results[0]["scores"]


def test_two_processes_learn_what_one_learns(together, alone):
    for name, weight in alone[1]["weights"].items():
        torch.testing.assert_close(together[10][1][0]["weights"][name], weight, rtol=1e-9, atol=1e-9)


def test_scores_and_circuits_are_those_of_one_process_at_every_step(together, alone):
    expected = RunRecord(alone[0]).rows()
    assert {row["name"].split("/")[0] for row in expected} >= {"accuracy", "lens", "tracing"}
    for directory, _ in together.values():
        got = RunRecord(directory).rows()
        assert [(row["step"], row["split"], row["name"]) for row in got] == [
            (row["step"], row["split"], row["name"]) for row in expected
        ]
        for mine, yours in zip(got, expected, strict=True):
            assert mine["n"] == yours["n"]
            if mine["name"] == "accuracy":
                assert mine == yours
            else:
                assert mine["value"] == pytest.approx(yours["value"], rel=1e-6), mine


def test_cost_is_that_of_all_processes(together, alone):
    one, two = RunRecord(alone[0]).summary(), RunRecord(together[1][0]).summary()
    assert (two["queries"], two["tokens"]) == (one["queries"], one["tokens"])
    assert two["flops"] == one["flops"]
