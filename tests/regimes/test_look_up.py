"""A theory-faithful layer on a regime from outside the package: vector answers, groups, measures, all by options."""

import json
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
NET = {
    "width": None, "layers": 1, "heads": 1, "mlp": "none", "norm": "none", "positions": "none", "init": "zero",
    "projections": "key_query", "sees_itself": False, "scaled": False, "residual": False,
    "read_in": "fixed", "read_out": "fixed",
}  # fmt: skip
CONFIG = {
    "trainer": {"accelerator": "cpu", "max_steps": 100},
    "model": {
        "net": {"class_path": "grok.models.LoopedTransformer", "init_args": NET},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 10.0, "weight_decay": 0.0}},
        "objective": {"class_path": "grok.training.SquaredError"},
        "clip": None,
    },
    "data": {"class_path": "look_up.LookUp"},
    "evaluation": {"every": 50},
    "series": {"every": 100, "powers_of_two": False},
}
ON = ["--groups.enabled", "true", "--measures.enabled", "true"]


@pytest.fixture
def config(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(HERE))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def values(run, name, split="test"):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["value"] for row in rows if (row["name"], row["split"]) == (name, split)}


@pytest.mark.slow
def test_the_layer_learns_to_look_at_the_source_and_what_the_regime_names_is_recorded_and_drawn(grok, config, tmp_path):
    run, bare = tmp_path / "run", tmp_path / "bare"
    status, out, err = grok("fit", "--config", config, "--run_dir", run, *ON)
    assert status == 0, err
    assert json.loads((run / "summary.json").read_text())["accuracy"]["test"] == 1
    source, others = (values(run, f"groups/mass/0.head0/{name}") for name in ("source", "other pairs"))
    assert source[0] == pytest.approx(1 / 4)
    assert source[100] > 0.9
    for step in source:
        assert source[step] + others[step] == pytest.approx(1, abs=1e-5)
    diagonal = values(run, "measures/diagonal/key_query")
    assert (diagonal[0], diagonal[100] > 3) == (0, True)
    assert values(run, "measures/error_by_coordinate/1")[100] < values(run, "measures/error_by_coordinate/1")[0] / 4
    for picture in ("groups_test", "measures_diagonal_test", "measures_error_by_coordinate_test"):
        assert (run / f"figures/{picture}.png").stat().st_size > 1000
        assert f"{picture}.png" in out

    quiet = ("--figures.enabled", "false")
    assert grok("fit", "--config", config, "--run_dir", bare, *quiet)[0] == 0  # made afterwards they are the same
    assert grok("trace", bare, *ON, *quiet)[0] == 0
    assert values(bare, "groups/mass/0.head0/source") == source
    assert values(bare, "measures/diagonal/key_query") == diagonal

    assert grok("predict", "--config", run / "config.yaml", "--run_dir", run)[0] == 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert all(line["correct"] for line in lines)
    assert [round(value) for value in lines[0]["answer"][0]] == lines[0]["target"][0]


@pytest.mark.parametrize(
    ("kind", "told"),
    [("groups", "TwoHopComposition names no groups of positions"), ("measures", "TwoHopComposition has no measures")],
)
def test_a_regime_without_them_is_told_before_anything_is_written(grok, tiny_config, tmp_path, kind, told):
    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "run", f"--{kind}.enabled", "true")
    assert status == 2
    assert f"{kind}.enabled=True: {told}" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["width=8"], "width=8: read_in, read_out, projections keeps columns as they are: use null, for their 7"),
        (["heads=2", "width=null"], "heads=2: with projections=key_query the fields of this data ask for 1"),
        (["init=identity"], "init='identity': would never learn with projections=key_query: use zero or normal"),
    ],
)
def test_options_that_do_not_go_together_are_told(grok, config, options, told):
    arguments = [f"--model.net.init_args.{option}" for option in options]
    status, _, err = grok("fit", "--config", config, *arguments)
    assert status == 2
    assert told in err
