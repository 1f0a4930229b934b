"""The recursive transformer through the command line: trained, cut and resumed, tested."""

import pytest
import yaml
from test_survival import power_failure
from tiny_configuration import TINY

from grok.records import RunRecord

MODEL = """
class_path: grok.models.RecursiveTransformer
init_args: {width: 16, layers: 1, low_cycles: 2, multiple: 8, prefix: 2, activations: bfloat16}
"""


def configuration(path):
    """The tiny configuration, with the data, the model and the training of He et al. 2026."""
    config = yaml.safe_load(TINY)
    config["data"]["init_args"]["encoding"] = {"class_path": "grok.data.FillIn"}
    prefix = {"lr": 1e-2, "weight_decay": 1.0, "betas": [0, 0], "eps": 1e-18}
    config["model"] |= {
        "net": yaml.safe_load(MODEL),
        "objective": {"class_path": "grok.training.Stablemax", "init_args": {"precision": "float32"}},
        "reduction": "queries",
        "groups": {"prefix": prefix},
        "decay": "all",
        "clip": None,
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_as_one_that_was_not_and_is_tested(grok, tmp_path, hashes):
    config = configuration(tmp_path / "recursive.yaml")
    status, _, errors = grok("fit", "--config", config, "--run_dir", tmp_path / "whole")
    assert status == 0, errors
    with power_failure(30):
        grok("fit", "--config", config, "--run_dir", tmp_path / "cut")
    assert grok("fit", "--config", config, "--run_dir", tmp_path / "cut")[0] == 0
    whole, cut = ((hashes(run), (run / "metrics.jsonl").read_text()) for run in (tmp_path / "whole", tmp_path / "cut"))
    assert whole == cut

    status, _, errors = grok("test", tmp_path / "whole")
    assert status == 0, errors
    assert RunRecord(tmp_path / "whole").summary()["accuracy"].keys() >= {"id_atomic", "test_inferred_ood"}


def test_more_than_one_supervision_step_is_refused_in_a_line(grok, tmp_path):
    config = configuration(tmp_path / "recursive.yaml")
    status, _, errors = grok("fit", "--config", config, "--run_dir", tmp_path / "run", "--model.net.halt_max_steps", 16)
    assert status == 2
    assert "halt_max_steps=16: use 1" in errors
