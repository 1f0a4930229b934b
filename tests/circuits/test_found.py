"""Bridge Found and Target Found: by hand, by brute force, and by chance."""

import random

import pytest
import torch
from two_streams import Scripted, TwoStreams

from grok.callbacks.circuit import grid_rows
from grok.circuits import found, logit_lens
from grok.circuits.found import chance
from grok.data import FillIn, NextToken, Split, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer
from grok.task import Task

ANYWHERE = ("bridge", "target", "bridge_distinct", "target_distinct")
MEASURES = (*ANYWHERE, "bridge_at_slot", "target_at_slot", "bridge_if_correct", "correct_if_bridge")


def queries(rows) -> Split:
    """Filled-in queries `h r1 r2` (relations are tokens 8 and 9) from (h, bridge, answer); 7 closes an answer."""
    h, bridge, answer = torch.tensor(rows).T
    inputs = torch.stack([h, h * 0 + 8, h * 0 + 9, h * 0, h * 0], 1)
    at = torch.tensor([3, 4, 0, 1, 2]).expand(len(h), -1)
    full = torch.cat([inputs[:, :3], torch.stack([answer, h * 0 + 7], 1)], 1)
    positions = ("h", "r1", "r2", "t", "end")
    mask = torch.ones_like(at, dtype=torch.bool)
    return Split(inputs, at, full.gather(1, at), mask, positions, {"bridge": bridge[:, None]})


def scripted(stages) -> Scripted:
    """What each query, by its head 1, 2, …, has on top: `[query][stage][position]`."""
    return Scripted(Task(positions=5, outputs=10, tokens=10), torch.tensor([stages[0], *stages]))


# Four queries: (1) right, with its bridge at r1 in stage 0; (2) wrong, with its bridge at the answer slot in stage 0;
# (3) right, without its bridge; (4) right, and its bridge is its head, which is copied.
BY_HAND = queries([(1, 5, 6), (2, 6, 5), (3, 4, 1), (4, 4, 5)])
STAGES = [
    [[1, 5, 9, 8, 7], [1, 8, 9, 6, 7]],
    [[2, 8, 9, 6, 7], [2, 8, 9, 4, 7]],
    [[3, 8, 9, 8, 7], [3, 8, 9, 1, 8]],
    [[4, 8, 9, 8, 7], [4, 8, 9, 5, 7]],
]


def test_four_queries_by_hand():
    seen = found(scripted(STAGES), BY_HAND)
    grid = seen.grid()
    assert seen.distinct.tolist() == [True, True, True, False]
    assert seen.right[:, 0].tolist() == [True, False, True, True]
    assert seen.first("bridge").tolist() == [
        [-1, 0, -1, -1, -1],
        [-1, -1, -1, 0, -1],
        [-1] * 5,
        [0, -1, -1, -1, -1],
    ]
    assert seen.first("target")[:, 3].tolist() == [1, -1, 1, 1]
    values = {measure: grid[(measure,)] for measure in grid.axes["measure"]}
    expected = {
        "bridge": 3 / 4,  # the copied one too: as published
        "target": 3 / 4,
        "bridge_distinct": 2 / 3,
        "target_distinct": 2 / 3,
        "bridge_at_slot": 1 / 3,  # of three distinct queries
        "target_at_slot": 2 / 3,
        "bridge_if_correct": 1 / 2,  # of 1 and 3
        "correct_if_bridge": 1 / 2,  # of 1 and 2
        "correct": 3 / 4,
        "exact": 2 / 4,  # query 3 does not close its answer
    }
    assert values == pytest.approx(expected)
    assert dict(zip(grid.axes["measure"], grid.n.tolist(), strict=True)) == {
        "bridge": 4, "target": 4, "bridge_distinct": 3, "target_distinct": 3,
        "bridge_at_slot": 3, "target_at_slot": 3, "bridge_if_correct": 2,
        "correct_if_bridge": 2, "correct": 4, "exact": 4,
    }  # fmt: skip
    floor = dict(zip(grid.axes["measure"], grid.floor.tolist(), strict=True))
    # Another's bridge, of 5, 6, 4, 4. Query 1 has 6 on top, one of the three others; 2 has 4, two of three; 3 has
    # none of 5, 6, 4; 4 has 5, one of two.
    assert floor["bridge"] == pytest.approx((1 / 3 + 2 / 3 + 0 + 1 / 2) / 4)
    # Another's answer, of 6, 5, 1, 5. Query 1 has 5 (two of three) and 1 (one of three), 2 has 6, one of two.
    assert floor["target"] == pytest.approx((3 / 3 + 1 / 2 + 0 + 0) / 4)
    # Distinct from head, bridge and answer: 1 may get 4 or 4; 2 may get 4 or 4, on top in the last state only, which
    # does not count; 3 gets 5 or 6.
    assert floor["bridge_at_slot"] == pytest.approx((0 + 0 + 0) / 3)
    assert floor["bridge_if_correct"] == pytest.approx((0 + 0) / 2)
    assert floor["correct_if_bridge"] == pytest.approx(2 / 3)
    assert floor["correct"] == pytest.approx(0)
    low, high = (dict(zip(grid.axes["measure"], end.tolist(), strict=True)) for end in (grid.low, grid.high))
    assert low["bridge"] == pytest.approx(0.3006, abs=1e-3)  # Wilson for 3 of 4
    assert high["bridge"] == pytest.approx(0.9544, abs=1e-3)


def test_rows_are_named_after_the_measures():
    rows = grid_rows(7, "test_inferred_ood", found(scripted(STAGES), BY_HAND).grid())
    assert [row["name"] for row in rows] == [f"found/{name}" for name in (*MEASURES, "correct", "exact")]
    assert {row["split"] for row in rows} == {"test_inferred_ood"}
    assert [row["name"] for row in rows if row["floor"] is None] == ["found/exact"]


def test_a_measure_that_counts_no_query_has_no_row():
    wrong = [[[head, 8, 9, 8, 7]] * 2 for head in (1, 2, 3, 4)]
    names = {row["name"] for row in grid_rows(0, "x", found(scripted(wrong), BY_HAND).grid())}
    assert "found/bridge_if_correct" not in names  # nothing is right
    assert "found/bridge" in names


@pytest.mark.parametrize("seed", range(5))
def test_shares_and_floors_are_those_of_brute_force(seed):
    draw = random.Random(seed)
    tokens = range(1, 7)
    split = queries([(1 + i % 6, draw.choice(tokens), draw.choice(tokens)) for i in range(6)])
    stages = [[[draw.randrange(10) for _ in range(5)] for _ in range(3)] for _ in range(6)]
    seen = found(scripted(stages), split)
    bridge, answer = split.truth["bridge"][:, 0].tolist(), split.targets[:, 0].tolist()

    def anywhere(i, token):
        return any(token in stage for stage in stages[i])

    def at_slot(i, token):
        return any(token == stage[3] for stage in stages[i])

    def read(i, token):
        return any(token in stage for stage in stages[i][:-1])

    def read_at_slot(i, token):
        return any(token == stage[3] for stage in stages[i][:-1])

    def floor(i, truth, test, banned=()):
        others = [token for token in truth if token not in (truth[i], *banned)]
        return sum(test(i, token) for token in others) / len(others) if others else None

    def mean(values):
        known = [value for value in values if value is not None]
        return pytest.approx(sum(known) / len(known), abs=1e-6) if known else None

    shown = [{i + 1, 8, 9, 0} for i in range(6)]
    distinct = [i for i in range(6) if not {bridge[i], answer[i]} & shown[i] and bridge[i] != answer[i]]
    right = [i for i in distinct if stages[i][-1][3] == answer[i]]
    cells = {name: cell for (name,), cell in seen.grid().cells()}
    banned = [shown[i] | {bridge[i], answer[i]} for i in range(6)]
    for name, truth, there, slot in (("bridge", bridge, read, read_at_slot), ("target", answer, anywhere, at_slot)):
        assert cells[name]["value"] == mean(anywhere(i, truth[i]) for i in range(6))
        assert cells[name]["floor"] == mean(floor(i, truth, anywhere) for i in range(6))
        assert cells[f"{name}_distinct"]["value"] == mean(there(i, truth[i]) for i in distinct)
        assert cells[f"{name}_distinct"]["floor"] == mean(floor(i, truth, there, banned[i]) for i in distinct)
        assert cells[f"{name}_at_slot"]["value"] == mean(slot(i, truth[i]) for i in distinct)
        assert cells[f"{name}_at_slot"]["floor"] == mean(floor(i, truth, slot, banned[i]) for i in distinct)
    assert cells["bridge_if_correct"]["value"] == mean(read(i, bridge[i]) for i in right)
    assert cells["bridge_if_correct"]["floor"] == mean(floor(i, bridge, read, banned[i]) for i in right)
    assert cells["correct_if_bridge"]["value"] == mean(i in right for i in distinct if read(i, bridge[i]))
    assert cells["correct_if_bridge"]["floor"] == mean(i in right for i in distinct)


def test_chance_is_the_mean_over_shuffles_that_leave_no_token_in_place():
    own, top = torch.tensor([3, 3, 5, 6, 6, 6, 2]), torch.tensor([[5, 5, 6]]).expand(7, -1)
    draw = torch.Generator().manual_seed(0)
    hits, tries = torch.zeros(7), torch.zeros(7)
    for _ in range(20000):
        other = own[torch.randint(7, (7,), generator=draw)]
        tries += other != own
        hits += (other != own) & (other[:, None] == top).any(1)
    torch.testing.assert_close(chance(own, top, own[:, None]), hits / tries, atol=0.02, rtol=0)
    assert chance(torch.tensor([4, 4]), top[:2], torch.tensor([[4], [4]])).isnan().all()  # no other token


@pytest.mark.parametrize("kind", [TwoStreams, LoopedTransformer])
def test_a_random_model_finds_much_by_chance_and_the_floor_says_so(kind):
    """Any of 15 stages × 5 positions among 50 entities is no rare event: ten times and more what one guess hits."""
    regime = TwoHopComposition(entities=50, relations=10, out_degree=10, phi=2, iid=0.5, ood=0.1, encoding=FillIn())
    split = regime.splits["test_inferred_iid"]
    excess, floors = [], []
    for seed in range(6):
        torch.manual_seed(seed)
        if kind is TwoStreams:
            model = TwoStreams(regime.task, rounds=5)
        else:
            model = LoopedTransformer(regime.task, width=16, layers=2, loops=7, heads=2, init_std=0.3, causal=False)
        cells = {name: cell for (name,), cell in found(model, split).grid().cells()}
        floors.append(cells["bridge"]["floor"])
        excess.append(cells["bridge"]["value"] - cells["bridge"]["floor"])
        assert cells["correct"]["floor"] < 0.05
    assert min(floors) > 0.04
    assert sum(floors) / 6 > 0.08
    assert abs(sum(excess) / 6) < 0.015


def test_a_model_that_copies_its_prompt_finds_nothing_but_what_the_prompt_shows():
    copied = [[[head, 8, 9, head, 7]] * 2 for head in (1, 2, 3, 4)]
    cells = {name: cell for (name,), cell in found(scripted(copied), BY_HAND).grid().cells()}
    assert cells["bridge"]["value"] == 1 / 4  # the published statistic has the bridge that is the head
    assert cells["bridge_distinct"]["value"] == cells["bridge_at_slot"]["value"] == 0
    assert cells["bridge_at_slot"]["n"] == 3


def test_a_causal_model_is_not_credited_for_what_it_is_shown_after_the_prompt():
    encoding = NextToken(pad=6, supervise_eos=True)  # shows the answer at the fourth position
    regime = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, encoding=encoding)
    split = regime.splits["train_inferred"].take(slice(0, 50))
    model = LoopedTransformer(regime.task, width=64, layers=1, loops=1, heads=2)
    seen = found(model, split)
    assert torch.equal(seen.top[:, 0, 3], split.targets[:, 0])  # the embedding of the answer decodes as the answer
    assert seen.first("target")[:, 3:].eq(-1).all()
    assert seen.shown[:, 3:].eq(-1).all()


def test_found_reads_what_the_lens_reads():
    regime = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, encoding=FillIn())
    split = regime.splits["train_inferred"].take(slice(0, 40))
    torch.manual_seed(0)
    model = TwoStreams(regime.task).double()
    seen = found(model, split, batch=35)
    ranks = logit_lens(model, split, ["bridge"]).readings["bridge"].rank[..., 0]
    first = seen.first("bridge")
    assert torch.equal((first >= 0).any(1), (ranks == 0).flatten(1).any(1))
    answers = model(split.inputs).argmax(-1).gather(1, split.at)
    assert torch.equal(seen.right, answers == split.targets)


def test_queries_without_a_bridge_are_refused():
    regime = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, encoding=FillIn())
    with pytest.raises(BadInput, match="an atomic query has no bridge"):
        found(TwoStreams(regime.task), regime.splits["id_atomic"])


def test_a_model_that_has_diverged_finds_nothing():
    model = scripted(STAGES)
    model.readout = lambda state, norm=True: torch.full((len(state["resid"]), 5, 10), torch.nan)
    cells = {name: cell for (name,), cell in found(model, BY_HAND).grid().cells()}
    assert cells["bridge"]["value"] == cells["target"]["value"] == cells["correct"]["value"] == 0
    assert cells["bridge"]["floor"] == 0
