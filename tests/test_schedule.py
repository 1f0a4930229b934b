"""When something is due."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.errors import BadInput
from grok.schedule import Schedule


@st.composite
def schedules(draw):
    every = draw(st.integers(1, 30))
    sparse = draw(st.booleans())
    until = every * draw(st.integers(1, 5)) if sparse else None
    then = draw(st.integers(1, 60)) if sparse else None
    return Schedule(every, until, then, powers_of_two=draw(st.booleans()), start=draw(st.booleans()))


@settings(deadline=None)
@given(schedules(), st.integers(0, 300))
def test_the_following_step_is_the_first_due_one(schedule, step):
    first = next(later for later in range(step + 1, step + 1000) if schedule.due(later))
    assert schedule.following(step) == first


def test_the_schedule_of_wang_is_dense_then_sparse():
    schedule = Schedule(every=2000, until=40_000, then=50_000)
    due = [step for step in range(0, 200_000, 1000) if schedule.due(step)]
    assert due == [*range(2000, 40_001, 2000), 90_000, 140_000, 190_000]


def test_step_0_and_powers_of_two_are_due_only_if_asked_for():
    assert [step for step in range(12) if Schedule(10).due(step)] == [10]
    assert [step for step in range(12) if Schedule(10, powers_of_two=True, start=True).due(step)] == [0, 1, 2, 4, 8, 10]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"every": 0}, "every"),
        ({"every": 5, "until": 10}, "until"),
        ({"every": 5, "then": 10}, "until"),
        ({"every": 5, "until": 11, "then": 10}, "until"),
        ({"every": 5, "until": 10, "then": 0}, "then"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_by_its_key(wrong, key):
    with pytest.raises(BadInput, match=f"(?m)^{key}="):
        Schedule(**wrong)
