"""Writing while something else goes on."""

import threading

import pytest

from grok.files import Background


def test_work_is_done_in_order_and_one_piece_at_a_time():
    background, gate, done = Background(), threading.Event(), []

    def first():
        gate.wait(5)
        done.append(1)

    background(first)
    assert done == []  # its owner goes on
    gate.set()
    background(lambda: done.append(2))
    background.wait()
    assert done == [1, 2]


def test_what_goes_wrong_is_told_once_at_the_next_call():
    background, gate, done = Background(), threading.Event(), []

    def fail():
        gate.wait(5)
        raise OSError(28, "No space left on device")

    background(fail)
    background(lambda: done.append(1))  # is not done after that
    gate.set()
    with pytest.raises(OSError, match="No space left"):
        background.wait()
    assert done == []
    background.wait()
    background(lambda: done.append(2))
    background.wait()
    assert done == [2]
