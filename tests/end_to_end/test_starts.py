"""Where a run comes from: every start of it, and of no other; what no page should show is not kept."""

from pathlib import Path

import pytest
import torch
from test_survival import power_failure

from grok.provenance import overrides, provenance
from grok.records import RunRecord
from grok.report.page.run import Run


def test_a_start_that_came_to_nothing_is_not_one_of_the_run(grok, tiny_config, tmp_path):
    run = tmp_path / "run"
    command = ("fit", "--config", tiny_config, "--run_dir", run)
    with power_failure(0):
        grok(*command, "--data.phi", 1.5)
    (run / "last.ckpt").unlink(missing_ok=True)
    with power_failure(30):
        grok(*command)
    assert grok(*command)[0] == 0
    first, second = RunRecord(run).starts()
    assert (first["resumed"], first["overrides"]) == (None, [])
    assert second["resumed"] == "last.ckpt"


def test_what_was_killed_before_its_configuration_was_written_starts_again(grok, tiny_config, tmp_path):
    """With several processes the configuration is written when all of them are there."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/starts.jsonl").write_text('{"time": "to')
    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "run", "--trainer.max_steps", 2)
    assert status == 0, err
    assert len(RunRecord(tmp_path / "run").starts()) == 1


def test_a_torn_line_takes_no_other_with_it(tmp_path):
    record = RunRecord(tmp_path)
    known = provenance(["fit"], torch.device("cpu"))
    (tmp_path / "starts.jsonl").write_text('3\n{"time": "to')
    record.append_start(known)
    assert record.starts() == [known]


def test_a_run_that_goes_on_from_a_checkpoint_says_so(grok, tiny_config, tmp_path):
    assert grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "a", "--trainer.max_steps", 20)[0] == 0
    checkpoint = ("--ckpt_path", tmp_path / "a/last.ckpt", "--trainer.max_steps", 40)
    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "b", *checkpoint)
    assert status == 0, err
    assert RunRecord(tmp_path / "b").starts()[0]["resumed"] == "last.ckpt"


@pytest.mark.parametrize("words", [["--data.api_key", "hush"], ["--data.api_key=hush"]])
def test_secrets_are_not_kept_or_shown(tmp_path, words):
    told = provenance(["fit", *words], torch.device("cpu"))
    assert "hush" not in str(told)
    assert "***" in told["command"]
    Path(tmp_path, "config.yaml").write_text("data: {loggers: [{password: hush}], tokens: shown}\n")
    assert "hush" not in Run(tmp_path, "run").yaml()
    assert "shown" in Run(tmp_path, "run").yaml()


def test_what_the_preset_says_too_is_no_change(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {init_args: {phi: 2, path: x}}\n")
    words = ["--config", str(tmp_path / "a.yaml"), "--data.phi", "2", "--data.path=y"]
    assert overrides(words) == [{"key": "data.path", "value": "y", "preset": "x"}]
