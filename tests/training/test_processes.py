"""Processes that share each batch learn what one process learns, on 1, 2 and 4 of them."""

import pytest
import torch
from processes import (
    analyses_and_starts_with_spread_weights,
    curve,
    in_processes,
    meet_a_bad_batch,
    predictions,
    sharded,
    stop_and_resume,
)
from safetensors.torch import load_file
from tiny import assert_same, make_data, make_module, make_trainer, train

from grok.callbacks import CheckpointSeries, Evaluation, PredictionWriter, RunRecorder, load_series, verify_series
from grok.records import RunRecord

STEPS = 200
WORLDS = [(2, 10), (2, 1), (4, 10)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(directory):
    return directory / "alone", curve(0, 1, directory / "alone", 10, STEPS)


@pytest.fixture(scope="module")
def together(directory):
    """Directory and results by (processes, block)."""
    found = {}
    for world, block in WORLDS:
        where = directory / f"{world}_processes_block_{block}"
        found[world, block] = where, in_processes(world, curve, world, where, block, STEPS)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("of", WORLDS, ids=str)
def test_two_hundred_steps_in_float64_are_the_same_to_1e_9(together, alone, of):
    results = together[of][1]
    assert [result["world"] for result in results] == [of[0]] * of[0]
    for result in results[1:]:
        assert_same(result["weights"], results[0]["weights"])
        assert result["scores"] == results[0]["scores"]
    torch.testing.assert_close(results[0]["weights"], alone[1]["weights"], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_block_changes_no_bit(together):
    assert_same(together[2, 1][1][0]["weights"], together[2, 10][1][0]["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("of", WORLDS, ids=str)
def test_counts_circuits_and_cost_are_those_of_one_process_at_every_step(together, alone, of):
    expected, got = RunRecord(alone[0]).rows(), RunRecord(together[of][0]).rows()
    assert {row["name"].split("/")[0] for row in expected} >= {"accuracy", "lens", "tracing"}
    keys = ("step", "split", "name", "n")
    assert [[row[key] for key in keys] for row in got] == [[row[key] for key in keys] for row in expected]
    for mine, yours in zip(got, expected, strict=True):
        if mine["name"] == "accuracy":
            assert mine == yours
        else:
            assert mine["value"] == pytest.approx(yours["value"], rel=1e-6, abs=1e-9), mine
    one, several = RunRecord(alone[0]).summary(), RunRecord(together[of][0]).summary()
    assert [several[key] for key in ("queries", "tokens", "flops")] == [
        one[key] for key in ("queries", "tokens", "flops")
    ]


@pytest.mark.parametrize("world", [2, 4])
def test_ten_steps_in_float32_are_the_same_to_1e_5(directory, world):
    one = curve(0, 1, directory / f"float32_1_{world}", 10, 10, "32-true")
    for result in in_processes(world, curve, world, directory / f"float32_{world}", 10, 10, "32-true"):
        torch.testing.assert_close(result["weights"], one["weights"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_scaler_scales_and_unscales_alike_on_any_number_of_processes(directory):
    one = curve(0, 1, directory / "scaled_1", 10, STEPS, "scaled")
    assert one["scale"] > 1024  # it has grown on the way
    for result in in_processes(2, curve, 2, directory / "scaled_2", 10, STEPS, "scaled"):
        assert result["scale"] == one["scale"]
        torch.testing.assert_close(result["weights"], one["weights"], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_run_goes_on_with_one_process_and_with_two_again(directory):
    whole = curve(0, 1, directory / "whole", 10, 150)
    where = directory / "moved"
    in_processes(2, curve, 2, where, 10, 50)
    curve(0, 1, where, 10, 100, resume=where / "last.ckpt")
    last = in_processes(2, curve, 2, where, 10, 150, "64-true", where / "last.ckpt")
    torch.testing.assert_close(last[1]["weights"], whole["weights"], rtol=1e-9, atol=1e-9)
    expected, got = RunRecord(directory / "whole").rows("accuracy"), RunRecord(where).rows("accuracy")
    assert got == expected


def test_a_signal_to_one_process_stops_both_and_the_resumed_run_is_the_same(directory):
    for result in in_processes(2, stop_and_resume, directory / "stopped"):
        assert "stopped by SIGTERM at step 12" in result["stopped"]
        assert_same(result["resumed"], result["whole"])
        assert result["losses"][0] == result["losses"][1]


def test_a_loss_that_is_not_finite_on_one_process_is_told_by_both(directory):
    (told, skipped, one), (told_too, skipped_too, other) = in_processes(2, meet_a_bad_batch, directory / "bad")
    assert told == told_too == "the loss is nan at optimizer step 3"
    assert skipped == skipped_too > 3
    assert_same(one, other)


@pytest.mark.slow
def test_spread_weights_learn_what_whole_ones_learn_and_each_goes_on_from_the_other(directory):
    one = sharded(0, 1, directory / "whole_weights", 20)
    two = in_processes(2, sharded, 2, directory / "spread", 20)
    everything = sum(weight.numel() for weight in one["weights"].values())
    assert [result["own"] < 0.6 * everything for result in two] == [True, True]
    for result in two:
        torch.testing.assert_close(result["weights"], one["weights"], rtol=1e-4, atol=1e-5)
        assert {name: score[::2] for name, score in result["scores"].items()} == {
            name: score[::2] for name, score in one["scores"].items()
        }
    assert verify_series(directory / "spread") == len(load_series(directory / "whole_weights"))
    sharded(0, 1, directory / "cut", 10)
    for result in in_processes(2, sharded, 2, directory / "cut", 20, directory / "cut/last.ckpt"):
        torch.testing.assert_close(result["weights"], one["weights"], rtol=1e-4, atol=1e-5)
    in_processes(2, sharded, 2, directory / "cut_too", 10)
    back = sharded(0, 1, directory / "cut_too", 20, directory / "cut_too/last.ckpt")
    torch.testing.assert_close(back["weights"], one["weights"], rtol=1e-4, atol=1e-5)


def test_spread_weights_are_not_analysed_and_begin_with_those_of_another_run(directory):
    source = make_module(seed=3)
    train(directory / "source", source, Evaluation(2), CheckpointSeries(2), RunRecorder(), steps=2)
    for told in in_processes(2, analyses_and_starts_with_spread_weights, directory):
        assert told == [
            "lens.enabled=True: needs whole weights on one device: use false, and `grok trace` the finished run"
        ]
    begun = load_file(load_series(directory / "started")[0])
    for name, weight in source.net.state_dict().items():
        assert torch.equal(begun[name], weight)


def test_all_answers_are_written_once_in_order(directory):
    one = make_trainer(directory / "answers_1", PredictionWriter())
    one.predict(make_module(), datamodule=make_data(test_size=7), return_predictions=False)
    in_processes(2, predictions, directory / "answers_2")
    alone, together = (directory / f"answers_{world}" / "predictions.jsonl" for world in (1, 2))
    assert together.read_text() == alone.read_text()
