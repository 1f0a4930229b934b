"""Which saved step a milestone stands for."""

import pytest

from grok.errors import BadInput
from grok.milestones import BRIDGE_DECIDES, BRIDGE_READABLE, MILESTONES, bridge_step, series_step

SAVED = [0, 1, 2, 4, 8, 10, 16, 20, 30, 40, 50]
SUMMARY = {"memorised_step": 18, "grok_step": {"test_inferred_iid": 31, "test_inferred_ood": None}}


def lens(step, value, state="S[1,r1]", split="test_inferred_iid", column="bridge"):
    return {"step": step, "split": split, "name": f"lens/mrr/{column}/{state}", "value": value, "floor": 0.1}


def tracing(step, value, state="S[1,r1]", split="test_inferred_iid", floor=0.2):
    return {"step": step, "split": split, "name": f"tracing/changed/{state}", "value": value, "floor": floor}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(0, 0), (16, 16), ("last", 50), ("before_memorised", 8), ("memorised", 20), ("bridge", 30), ("grokked", 40)],
)
def test_a_milestone_is_the_first_saved_step_from_there_on(wanted, expected):
    rows = [lens(10, 0.2), lens(25, 0.5, "S[2,r2]"), lens(25, 0.95), tracing(25, 0.8), lens(40, 0.99)]
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
        series_step(milestone, SAVED, never, [lens(10, BRIDGE_READABLE - 0.01), tracing(10, 0.9)])
    with pytest.raises(BadInput, match="empty"):
        series_step(milestone, [], SUMMARY)


def test_nothing_saved_at_the_right_time_is_refused():
    with pytest.raises(BadInput, match="memorised at step 18, and nothing was saved between"):
        series_step("before_memorised", [0, 20], SUMMARY)
    with pytest.raises(BadInput, match="reached at step 31, and nothing was saved from there on"):
        series_step("grokked", [0, 20], SUMMARY)


def test_the_bridge_is_where_one_state_is_readable_and_decides_on_held_out_queries():
    others = [
        lens(2, 1.0, column="answer"), lens(3, 1.0, split="train_inferred"), tracing(3, 1.0, split="train_inferred"),
        {"step": 4, "split": None, "name": "training_loss", "value": 9.0},
    ]  # fmt: skip
    early = [lens(1, 1.0), tracing(1, 0.3), lens(2, 0.5), tracing(2, 1.0), lens(3, 1.0, "S[4,r1]"), tracing(3, 1.0)]
    above = BRIDGE_DECIDES + 0.25
    below = [lens(5, 1.0), tracing(5, above - 0.01, floor=0.25), tracing(5, 0.9, floor=0.5)]
    assert bridge_step([*others, *early, *below]) is None
    there = [lens(9, 1.0), tracing(9, 1.0), lens(8, BRIDGE_READABLE), tracing(8, above, floor=0.25)]
    assert bridge_step([*others, *early, *there]) == 8
    assert bridge_step([*others, lens(6, 1.0), tracing(6, 0.9, floor=None)]) == 6
    held_out = [lens(5, 1.0, split="held_out"), tracing(5, 1.0, split="held_out")]
    assert bridge_step([*others, *held_out], ["held_out"]) == 5
    for missing in (others, [*others, lens(5, 1.0)], [*others, tracing(5, 1.0)]):
        with pytest.raises(BadInput, match="no lens and no tracing on held-out queries"):
            bridge_step(missing, ["held_out"])
