"""Circuit analyses through the command line: live, after the fact, and on a checkpoint, all giving the same record."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from grok.analyses import AnalysisRecord

ON = ["--lens.enabled", "true", "--tracing.enabled", "true"]


def rows(run, *kinds):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["name"].split("/")[0] in kinds]


def key(row):
    return row["step"], row["split"], row["name"]


@pytest.fixture
def live(grok, tiny_config, tmp_path):
    status, out, _ = grok("fit", "--config", tiny_config, "--run_dir", "live", *ON)
    assert status == 0, out
    return tmp_path / "live"


@pytest.fixture
def plain(grok, tiny_config, tmp_path):
    assert grok("fit", "--config", tiny_config, "--run_dir", "plain")[0] == 0
    return tmp_path / "plain"


def test_a_run_that_is_watched_and_one_that_is_traced_afterwards_have_the_same_record(grok, live, plain, hashes):
    assert hashes(live) == hashes(plain)  # looking does not change the weights
    assert rows(plain, "lens", "tracing") == []
    before = rows(plain, "accuracy", "loss", "learning_rate")

    status, out, err = grok("trace", plain, *ON)
    assert status == 0, err
    assert "lens, tracing" in out

    watched, traced = sorted(rows(live, "lens", "tracing"), key=key), sorted(rows(plain, "lens", "tracing"), key=key)
    assert watched == traced
    steps = [0, 1, 2, 4, 8, 16, 30, 32, 60]
    assert sorted({row["step"] for row in traced}) == steps == AnalysisRecord(plain).steps()
    assert rows(plain, "accuracy", "loss", "learning_rate") == before
    for step in steps:
        assert AnalysisRecord(live).path(step).read_bytes() == AnalysisRecord(plain).path(step).read_bytes()

    assert grok("trace", plain, *ON)[0] == 0  # again: nothing twice
    assert sorted(rows(plain, "lens", "tracing"), key=key) == traced


def test_rows_have_value_interval_floor_and_number_of_examples(live):
    cells = {row["name"]: row for row in rows(live, "lens", "tracing") if row["step"] == 60}
    assert set(cells) == {
        *(f"lens/mrr/{c}/S[{i},{p}]" for c in ("bridge", "r2", "answer") for i in range(3) for p in ("h", "r1", "r2")),
        *(f"tracing/changed/S[{i},{p}]" for i in range(3) for p in ("h", "r1", "r2")),
    }
    for row in cells.values():
        assert row["split"] == "test_inferred_iid"
        assert row["n"] > 0
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["floor"] is not None
    assert cells["lens/mrr/r2/S[0,r2]"]["value"] > cells["lens/mrr/r2/S[0,r2]"]["floor"]
    summary = json.loads((live / "summary.json").read_text())
    assert 0 < summary["analysis_seconds"] < summary["wall_seconds"]
    tensors = AnalysisRecord(live).read(60)
    n = cells["tracing/changed/S[0,h]"]["n"]
    assert tensors["examples/test_inferred_iid/inputs"].shape == (n, 3)
    assert tensors["lens/test_inferred_iid/bridge/rank"].shape == (n, 3, 3, 1)
    assert tensors["lens/test_inferred_iid/top"].shape == (n, 3, 3, 3)
    assert tensors["tracing/test_inferred_iid/rank"].shape == (n, 3, 3)


def test_a_resumed_run_has_every_analysis_once(grok, tiny_config, tmp_path, live, monkeypatch):
    from grok.callbacks import LogitLens

    analyse, calls = LogitLens.analyse, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 8:  # one for the check before training; step 30, after last.ckpt of step 25
            raise KeyboardInterrupt
        return analyse(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LogitLens, "analyse", interrupted)
        assert grok("fit", "--config", tiny_config, "--run_dir", "cut", *ON)[0] == 130
    assert max(row["step"] for row in rows(tmp_path / "cut", "lens")) < 30
    assert grok("fit", "--config", tiny_config, "--run_dir", "cut", *ON)[0] == 0
    whole = rows(live, "lens", "tracing")
    assert sorted(rows(tmp_path / "cut", "lens", "tracing"), key=key) == sorted(whole, key=key)
    assert len({key(row) for row in whole}) == len(whole)


def test_grok_test_prints_what_the_checkpoint_shows(grok, live):
    before = (live / "metrics.jsonl").read_bytes()
    status, out, _ = grok("test", live)
    assert status == 0
    value = next(row["value"] for row in rows(live, "lens") if row["step"] == 60 and "bridge/S[2,r1]" in row["name"])
    table = out[out.index("lens/mrr/bridge") :].splitlines()
    assert table[4].split() == ["S[2]", *table[4].split()[1:]]
    assert table[4].split()[2] == f"{value:.2f}"
    assert "tracing/changed" in out
    assert (live / "metrics.jsonl").read_bytes() == before


def test_pictures_go_to_figures_and_to_tensorboard(grok, tiny_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["--run_dir", "seen", "--trainer.logger", "true", "--figures.enabled", "true", *ON]
    assert grok("fit", "--config", tiny_config, *arguments)[0] == 0
    names = {path.name for path in (tmp_path / "seen/figures").iterdir()}
    pictures = {"accuracy", "circuit", "tracing_changed_test_inferred_iid"}
    pictures |= {f"lens_mrr_{column}_test_inferred_iid" for column in ("bridge", "r2", "answer")}
    assert names == {f"{picture}.{kind}" for picture in pictures for kind in ("png", "svg")}
    events = EventAccumulator(str(tmp_path / "seen/tensorboard")).Reload()
    assert set(events.Tags()["images"]) == pictures
    scalars = events.Scalars("lens/mrr/bridge/S[1,r1]/test_inferred_iid")
    assert [event.step for event in scalars] == [0, 1, 2, 4, 8, 16, 30, 32, 60]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--lens.splits", "[nothing]"], "lens.splits='nothing': no such split.*train_inferred, test_inferred_iid"),
        (["--lens.columns", "[brige]"], r"lens.columns='brige': no such ground truth.*answer, bridge, h, r1, r2"),
        (["--lens.measures", "[mean]"], r"lens.measures='mean': use mrr, .*recall@k"),
        (
            ["--lens.splits", "[id_atomic]", "--lens.columns", "[bridge]"],
            "lens.columns='bridge': no query of this split",
        ),
        (["--lens.examples", "5000"], r"lens.examples=5000: test_inferred_iid has \d+ queries"),
        (["--lens.examples", "0"], "lens.examples=0: use 1 or more"),
        (["--tracing.measures", "[size]"], r"tracing.measures=\['size'\]: use changed, rank"),
        (["--tracing.splits", "[id_atomic]", "--tracing.counterfactuals", "valid"], "two-hop queries are needed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_requests_that_cannot_be_met_are_told_in_one_line_before_anything_is_written(
    grok, tiny_config, tmp_path, arguments, told
):
    import re

    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", "bad", *ON, *arguments)
    assert status == 2
    assert re.search(told, err), err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "bad").exists()


def test_a_series_of_another_model_or_damaged_or_no_series_is_named(grok, plain, tmp_path):
    status, _, err = grok("trace", plain, *ON, "--model.net.width", "32")
    assert status == 2
    assert "weights of another model: embedding.weight is (" in err
    assert rows(plain, "lens") == []

    status, _, err = grok("trace", plain)
    assert status == 2
    assert "no analysis is enabled; add --KIND.enabled true, KIND one of lens, tracing" in err

    foreign = plain / "series/step_000000030.safetensors"
    weights = load_file(foreign)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, foreign)
    status, _, err = grok("trace", plain, *ON)
    assert status == 2
    assert "SHA-256" in err

    shutil.rmtree(plain / "series")
    status, _, err = grok("trace", plain, *ON)
    assert status == 2
    assert "manifest.json: not there" in err
    status, _, err = grok("trace", tmp_path / "nowhere")
    assert status == 2
    assert "not a run directory" in err
    status, _, err = grok("trace")
    assert status == 2
    assert "usage: grok trace RUN" in err
