"""Which saved step a milestone stands for."""

import pytest

from grok.errors import BadInput
from grok.milestones import BRIDGE_READABLE, MILESTONES, bridge_step, series_step

SAVED = [0, 1, 2, 4, 8, 10, 16, 20, 30, 40, 50]
SUMMARY = {"memorised_step": 18, "grok_step": {"test_inferred_iid": 31, "test_inferred_ood": None}}


def lens(step, value, state="S[1,r1]", split="test_inferred_iid", column="bridge"):
    return {"step": step, "split": split, "name": f"lens/mrr/{column}/{state}", "value": value}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(0, 0), (16, 16), ("last", 50), ("before_memorised", 8), ("memorised", 20), ("bridge", 30), ("grokked", 40)],
)
def test_a_milestone_is_the_first_saved_step_from_there_on(wanted, expected):
    rows = [lens(10, 0.2), lens(25, 0.5, "S[2,r2]"), lens(25, 0.95), lens(40, 0.99)]
    assert series_step(wanted, SAVED, SUMMARY, rows) == expected


@pytest.mark.parametrize(
    ("saved", "memorised", "expected"),
    [([0, 10, 20], 20, 10), ([0, 18, 20], 20, 18), ([0, 1, 100], 4, 1), ([0, 10, 30, 40], 40, 10), ([0, 4, 6], 6, 4)],
)
def test_before_memorised_is_nearest_to_half_way_and_never_untrained(saved, memorised, expected):
    assert series_step("before_memorised", saved, {"memorised_step": memorised}) == expected


def test_a_step_that_was_not_saved_names_its_neighbours():
    with pytest.raises(BadInput, match="nearest saved steps are 20 and 30"):
        series_step(24, SAVED, SUMMARY)
    with pytest.raises(BadInput, match="nearest saved steps are 40 and 50"):
        series_step(99, SAVED, SUMMARY)


@pytest.mark.parametrize("milestone", [name for name in MILESTONES if name != "last"])
def test_what_was_never_reached_is_refused(milestone):
    never = {"memorised_step": None, "grok_step": {"test_inferred_iid": None, "test_inferred_ood": 20}}
    with pytest.raises(BadInput, match="never got there"):
        series_step(milestone, SAVED, never, [lens(10, BRIDGE_READABLE - 0.01)])
    with pytest.raises(BadInput, match="empty"):
        series_step(milestone, [], SUMMARY)


def test_nothing_saved_at_the_right_time_is_refused():
    with pytest.raises(BadInput, match="memorised at step 18, and nothing was saved between"):
        series_step("before_memorised", [0, 20], SUMMARY)
    with pytest.raises(BadInput, match="reached at step 31, and nothing was saved from there on"):
        series_step("grokked", [0, 20], SUMMARY)


def test_the_bridge_is_looked_for_where_later_steps_read_and_on_held_out_queries_only():
    others = [
        lens(2, 1.0, column="answer"), lens(3, 1.0, split="train_inferred"),
        {"step": 4, "split": None, "name": "training_loss", "value": 9.0},
    ]  # fmt: skip
    ends = [lens(1, 1.0, "S[0,r1]"), lens(1, 1.0, "S[13,r1]")]
    assert bridge_step([*others, *ends, lens(7, 0.1), lens(9, BRIDGE_READABLE, "S[12,h]"), lens(8, 0.95)]) == 8
    held_out = [lens(1, 1.0, "S[2,r1]", split="held_out"), lens(5, 1.0, split="held_out")]
    assert bridge_step([*others, *held_out], ["held_out"]) == 5
    with pytest.raises(BadInput, match="no lens on held-out queries"):
        bridge_step(others, ["held_out"])
