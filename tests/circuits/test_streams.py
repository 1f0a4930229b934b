"""Models with several streams that are not causal: what each stream says and decides, and that every analysis copes."""

import dataclasses

import pytest
import torch
from torch import nn
from two_streams import TwoStreams

from grok.callbacks.circuit import grid_rows
from grok.callbacks.circuits import _usual_columns
from grok.circuits import (
    Node,
    ablation,
    attention_patterns,
    causal_tracing,
    composition_counterfactuals,
    cosine_lens,
    exact_patching,
    full_run_probing,
    immediate_probing,
    linear_probes,
    logit_lens,
    nodes_of,
    other_queries,
    patch_states,
    path_patching,
    same_bridge_counterfactuals,
    semantic_patching,
)
from grok.circuits.attribution import attribution_patching
from grok.circuits.counterfactuals import same_query
from grok.data import FillIn, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer
from grok.models.steps import pick
from grok.report.cells import cells_of

REGIME = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, ood=0.1, encoding=FillIn())
SPLIT = REGIME.splits["train_inferred"].take(slice(0, 40))
FACTS = REGIME.generated.facts
STREAMS = ("a", "b")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TwoStreams(REGIME.task).double().eval()


# ---------------------------------------------------------------------- lens


@pytest.mark.parametrize("streams", ["decoded", "each"])
def test_the_lens_of_a_batch_is_that_of_one_query_at_a_time(model, streams):
    lens = logit_lens(model, SPLIT, ["bridge", "answer"], streams=streams, batch=35)
    for row in range(len(SPLIT)):
        one = SPLIT.take(slice(row, row + 1))
        alone = logit_lens(model, one, ["bridge", "answer"], streams=streams)
        for name in ("bridge", "answer"):
            both = lens.readings[name], alone.readings[name]
            assert torch.equal(*(reading.rank[row if len(reading.rank) > 1 else 0] for reading in both))
            assert torch.equal(*(reading.top[row if len(reading.top) > 1 else 0] for reading in both))


def test_the_stream_that_is_decoded_changes_from_state_to_state(model):
    lens = logit_lens(model, SPLIT, ["answer"])
    each = logit_lens(model, SPLIT, ["answer"], streams="each")
    assert lens.axes["step"] == tuple(f"S[{i}]" for i in range(7))
    assert each.axes["step"] == tuple(f"S[{i}].{stream}" for i in range(7) for stream in STREAMS)
    with torch.no_grad():
        for step, state in enumerate(model.states(SPLIT.inputs)):
            for place, name in enumerate(STREAMS):
                logits = state[name] @ model.head.weight.T
                rank = (logits > logits.gather(2, SPLIT.targets[:, :1, None].expand(-1, 5, 1))).sum(-1)
                assert torch.equal(each.readings["answer"].rank[:, 2 * step + place, :, 0], rank.int())
                if name == model.stream_at(step):
                    assert torch.equal(lens.readings["answer"].rank[:, step, :, 0], rank.int())
    assert [model.stream_at(step) for step in range(7)] == ["a", "b", "b", "a", "b", "b", "a"]


def test_one_stream_reads_and_is_named_as_ever():
    net = LoopedTransformer(REGIME.task, width=16, layers=2, loops=2, heads=2, causal=False)
    each, plain = (logit_lens(net, SPLIT, streams=streams).grid("answer") for streams in ("each", "decoded"))
    assert dict(each.axes) == dict(plain.axes)
    assert torch.equal(each.values, plain.values)
    tracing = causal_tracing(net, SPLIT, other_queries(SPLIT), streams="each").strength()
    assert tracing.axes["step"] == ("S[0]", "S[1]", "S[2]", "S[3]", "S[4]")


def test_rows_name_state_position_and_stream_and_are_read_back(model):
    grid = logit_lens(model, SPLIT, ["bridge"], streams="each").grid("bridge")
    rows = grid_rows(3, "x", grid)
    assert rows[0]["name"] == "lens/mrr/bridge/S[0,h].a"
    assert rows[-1]["name"] == "lens/mrr/bridge/S[6,end].b"

    class Record:
        def rows(self):
            return rows

    (cells,) = cells_of(Record())
    assert cells.grid == "lens/mrr/bridge"
    assert (cells.rows, cells.columns) == (grid.axes["step"], grid.axes["position"])
    assert cells.table(3)[1][2] == pytest.approx(grid[("S[0].b", "r2")])


# ---------------------------------------------------------------------- patching


def one_by_one(model, counterfactual, step, streams, target=6, at=None):
    """Logits `[N, V]` after one patch: the definition, without any folding."""
    states, others = model.states(SPLIT.inputs), model.states(counterfactual.inputs)
    state = dict(states[step])
    for name in streams:
        state[name] = state[name].clone()
        for position in counterfactual.positions:
            state[name][:, position] = others[step][name][:, position]
    last = dict(model.run(state, step, target))
    last["a"] = last[model.stream_at(target)]
    place = SPLIT.at[:, :1] if at is None else torch.full_like(SPLIT.at[:, :1], at)
    return pick(model.readout(last), place)[:, 0]


@pytest.mark.parametrize("target", [None, (4, "r1", "bridge"), (3, "t", "bridge")])
@pytest.mark.parametrize("streams", [None, ["a"], ["b"]])
def test_folded_patches_of_streams_equal_one_forward_pass_per_patch(model, streams, target):
    tokens = SPLIT.targets[:, :1] if target is None else SPLIT.truth["bridge"]
    last, at = (6, None) if target is None else (target[0], SPLIT.positions.index(target[1]))
    chosen = [*other_queries(SPLIT), *composition_counterfactuals(SPLIT, FACTS)]
    step = None if target is None else last
    folded = patch_states(
        model, SPLIT, chosen, [tokens] * len(chosen), target_step=step, target_position=at, batch=100, streams=streams
    )
    with torch.no_grad():
        for index, one in enumerate(chosen):
            for step in folded.steps:
                expected = one_by_one(model, one, step, streams or STREAMS, last, at).gather(1, tokens)[:, 0].float()
                torch.testing.assert_close(folded.patched.logit[:, index, step, 0], expected)


def test_each_stream_by_itself_is_the_patch_of_that_stream(model):
    chosen = other_queries(SPLIT)
    each = causal_tracing(model, SPLIT, chosen, other_queries(SPLIT, same_answer=True), streams="each")
    grid = each.strength("probability")
    assert grid.axes["step"] == tuple(f"S[{i}].{stream}" for i in range(7) for stream in STREAMS)
    assert grid.axes["position"] == SPLIT.positions
    tokens = [torch.stack([SPLIT.targets[:, 0], one.answer], 1) for one in chosen]
    for place, stream in enumerate(STREAMS):
        alone = patch_states(model, SPLIT, chosen, tokens, streams=[stream])
        assert torch.equal(each.outcome.patched.rank[:, :, place::2], alone.patched.rank)
        assert torch.equal(each.outcome.patched.probability[:, :, place::2], alone.patched.probability)
    assert not grid.floor.isnan().all()
    nothing = causal_tracing(model, SPLIT, same_query(SPLIT), streams="each").strength()
    assert nothing.values.eq(0).all()


def test_streams_that_do_not_exist_are_named(model):
    chosen = same_query(SPLIT)
    for wrong in (["c"], []):
        with pytest.raises(BadInput, match=r"streams=.*this model has a, b"):
            patch_states(model, SPLIT, chosen, [SPLIT.targets[:, :1]] * 5, streams=wrong)
    with pytest.raises(BadInput, match="use together or each"):
        causal_tracing(model, SPLIT, chosen, streams="b")
    with pytest.raises(BadInput, match="use decoded or each"):
        logit_lens(model, SPLIT, streams="b")


class PlantedStreams(TwoStreams):
    """The bridge is in stream `b` at r1 in S[1], at `t` in S[2], and nowhere else; the answer then in `a` at `t`."""

    def __init__(self, task, facts):
        super().__init__(task, width=task.tokens, rounds=1)
        self.facts = facts
        self.embedding.weight = nn.Parameter(torch.eye(task.tokens))
        self.head.weight = nn.Parameter(torch.eye(task.tokens))

    def _follow(self, head, relation):
        return nn.functional.one_hot(self.facts.follow(head, relation).clamp(min=0), self.task.tokens).float()

    @property
    def steps(self):
        return [self._first_hop, self._move, self._second_hop]

    def _first_hop(self, state, at=None, tap=None, memory=None):
        tokens, b = state["emb"].argmax(-1), torch.zeros_like(state["b"])
        b[:, 1] = self._follow(tokens[:, 0], tokens[:, 1])
        return {**state, "b": b}

    def _move(self, state, at=None, tap=None, memory=None):
        b = torch.zeros_like(state["b"])
        b[:, 3] = state["b"][:, 1]
        return {**state, "b": b}

    def _second_hop(self, state, at=None, tap=None, memory=None):
        a = torch.zeros_like(state["a"])
        a[:, 3] = self._follow(state["b"][:, 3].argmax(-1), state["emb"][:, 2].argmax(-1))
        state = {**state, "a": a}
        return state if at is None else {name: pick(state[name], at) for name in self.streams}


def test_only_the_stream_and_position_that_carry_the_bridge_have_strength():
    planted = PlantedStreams(REGIME.task, FACTS)
    by_name = composition_counterfactuals(SPLIT, FACTS, valid=True)[1]
    rows = by_name.exists.nonzero()[:, 0]
    split, other = SPLIT.take(rows), by_name.take(rows)
    assert len(split) > 20
    everywhere = [
        dataclasses.replace(other, name=name, positions=(place,)) for place, name in enumerate(split.positions)
    ]
    grid = causal_tracing(planted, split, everywhere, streams="each").strength()
    carrying = {("S[1].b", "r1"), ("S[2].b", "t"), ("S[3].a", "t")}
    for labels, cell in grid.cells():
        assert cell["value"] == (1 if labels in carrying else 0), labels
    lens = logit_lens(planted, split, ["bridge"]).grid("bridge", "probability")
    chance = 1 / REGIME.task.tokens
    carrying = {("S[1]", "r1"), ("S[2]", "t")}
    for labels, cell in lens.cells():
        assert (cell["value"] > 1.5 * chance) == (labels in carrying), labels


# ---------------------------------------------------------------------- the other analyses


def test_counterfactuals_of_queries_to_fill_in_are_whole_queries_to_fill_in():
    assert SPLIT.positions == ("h", "r1", "r2", "t", "end")
    for one in (*composition_counterfactuals(SPLIT, FACTS), *same_bridge_counterfactuals(SPLIT, FACTS)):
        assert one.inputs[:, 3:].eq(0).all()
        assert one.inputs[:, :3].gt(0).all()
    assert [one.name for one in other_queries(SPLIT)] == list(SPLIT.positions)
    assert _usual_columns(SPLIT) == ["bridge", "r2", "answer"]


def test_every_analysis_runs_on_streams(model):
    facts = [REGIME.splits[name] for name in ("id_atomic", "ood_atomic")]
    grids = [
        semantic_patching(model, SPLIT, FACTS, pairs=20).grid(),
        immediate_probing(model, SPLIT),
        full_run_probing(model, SPLIT),
        linear_probes(model, REGIME.splits["train_inferred"]).grid(),
        cosine_lens(model, *facts).grid("cohesion"),
    ]
    for grid in grids:
        assert len(grid.axes["step"]) == 7
        assert grid.values.isfinite().any()
    nodes = nodes_of(model, SPLIT)
    assert {node.component for node in nodes} == {"step"}
    assert ablation(model, SPLIT, nodes, "zero").values.isfinite().all()
    counterfactual = composition_counterfactuals(SPLIT, FACTS, valid=True)[0]
    assert exact_patching(model, SPLIT, counterfactual).values.abs().max() > 0
    assert attribution_patching(model, SPLIT, counterfactual).values.abs().max() > 0
    assert path_patching(model, SPLIT, counterfactual).values.isfinite().any()


def test_what_needs_one_stream_or_attention_says_so(model):
    with pytest.raises(BadInput, match=r"TwoStreams.*have no attention"):
        attention_patterns(model, SPLIT)
    with pytest.raises(BadInput, match="no such node"):
        path_patching(model, SPLIT, other_queries(SPLIT)[0], senders=[Node(0, "mlp", 0)])
