"""Lines for the person at the terminal."""

import os

import pytest

from grok.callbacks.console import say


def test_a_reader_that_has_gone_stops_nothing(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        with pytest.raises(BrokenPipeError):
            print("a line", flush=True)
        say("another")
        say("and one more")
