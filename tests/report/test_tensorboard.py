"""TensorBoard's event files: a layout with all splits on one chart, the configuration, hyper-parameters and results."""

import re

import numpy
import pytest
import yaml
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from grok.records import RunRecord
from grok.report.tensorboard import LAYOUT, read_scalars


def plugin_values(run, plugin):
    """Summary values of a plugin, by tag."""
    found = {}
    for path in (run / "tensorboard").glob("events*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == plugin:
                    found[value.tag] = value
    return found


@pytest.fixture
def run(grok, tiny_config, tmp_path):
    config = yaml.safe_load(tiny_config.read_text())
    config["trainer"]["logger"] = True
    tiny_config.write_text(yaml.safe_dump(config))
    command = ("fit", "--config", tiny_config, "--run_dir", tmp_path / "run")
    assert grok(*command, "--trainer.max_steps", 40)[0] == 0
    return tmp_path / "run"


def test_the_layout_the_configuration_and_the_parameters_stand_beside_the_scalars(run):
    (layout,) = plugin_values(run, "custom_scalars").values()
    categories = layout_pb2.Layout.FromString(layout.tensor.string_val[0]).category
    assert categories[0].chart[0].multiline.tag == ["^accuracy/"]
    (text,) = plugin_values(run, "text").values()
    assert (run / "config.yaml").read_text() in text.tensor.string_val[0].decode()

    found = plugin_values(run, "hparams")
    start = plugin_data_pb2.HParamsPluginData.FromString(
        found["_hparams_/session_start_info"].metadata.plugin_data.content
    ).session_start_info
    assert start.hparams["data.phi"].number_value == 2
    assert start.hparams["seed_everything"].number_value == 3
    assert start.hparams["model.net.class_path"].string_value == "grok.models.LoopedTransformer"
    scalars, summary = read_scalars(run), RunRecord(run).summary()
    for split, accuracy in summary["accuracy"].items():
        ((step, value),) = scalars[f"final/accuracy/{split}"]
        assert (step, value) == (40, pytest.approx(accuracy))
    assert [step for step, _ in scalars["accuracy/id_atomic"]] == [20, 40]
    patterns = [pattern for tab in ("Splits", "Weights") for _, known in LAYOUT[tab].values() for pattern in known]
    assert all(any(re.search(pattern, tag) for tag in scalars) for pattern in patterns)


def test_an_analysis_traced_again_with_other_options_takes_the_place_of_the_one_before(grok, run):
    before = read_scalars(run)
    lens, seen = ("--lens.enabled", "true", "--lens.every", 30, "--figures.enabled", "false"), []
    for options in ((), ("--lens.examples", 4), ("--lens.examples", 4, "--lens.splits", "[train_inferred]")):
        status, _, err = grok("trace", run, *lens, *options)
        assert status == 0, err
        recorded = {}
        for row in RunRecord(run).rows():
            if row["name"].startswith("lens/"):
                value = float(numpy.float32(row["value"]))
                recorded.setdefault(f"{row['name']}/{row['split']}", []).append((row["step"], value))
        assert {tag: values for tag, values in read_scalars(run).items() if tag.startswith("lens/")} == recorded
        seen.append(recorded)
    assert seen[0].keys() == seen[1].keys() < seen[2].keys()
    assert seen[0] != seen[1]
    assert {tag: values for tag, values in read_scalars(run).items() if not tag.startswith("lens/")} == before
