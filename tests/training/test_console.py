"""Lines for the person at the terminal."""

import os
import time

import pytest

from grok.callbacks.console import BAR, patient, say


def test_a_reader_that_has_gone_stops_nothing(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        with pytest.raises(BrokenPipeError):
            print("a line", flush=True)
        say("another")
        say("and one more")


def test_what_takes_long_says_so_until_it_is_done(capsys):
    with patient("counting", after=0.05):
        time.sleep(0.2)
    told = capsys.readouterr().out.splitlines()
    assert told
    assert all(line.startswith("still counting: ") for line in told)
    time.sleep(0.1)
    assert not capsys.readouterr().out
    with patient("counting"):
        pass
    assert not capsys.readouterr().out


def test_a_bar_takes_the_place_of_lines_and_leaves_the_milestones(grok, tiny_config):
    status, lines, _ = grok("fit", "--config", tiny_config, "--run_dir", "plain")
    assert status == 0
    status, out, err = grok("fit", "--config", tiny_config, "--run_dir", "bar", "--progress.enabled", "true")
    assert status == 0
    assert "60/60" in err
    assert "train_inferred" in err
    evaluated = [line for line in lines.splitlines() if line.startswith("step ")]
    assert len(evaluated) == 3
    assert not [line for line in out.splitlines() if line.startswith("step ")]
    assert [line for line in out.splitlines() if line.startswith(">>>")] == [
        line for line in lines.splitlines() if line.startswith(">>>")
    ]
    assert not BAR
