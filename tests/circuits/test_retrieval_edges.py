"""Edges of retrieval and copying: measured and cut in a model whose two steps are known by construction."""

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from grok.circuits import group_mass, measures
from grok.circuits.retrieval_copying import EDGES, edges_of
from grok.data import RetrievalCopying
from grok.data.retrieval_queries import EOS, SPECIAL
from grok.models import LoopedTransformer, StepModel

SIZES = {"train_length": 6, "bins": 2, "test_size": 60}


class TwoSteps(StepModel):
    """A previous-token head, then a head that looks for the token read: where it stands after it (`right`), or where it
    is. All special tokens are one, so that a copy begins and ends by the same rule."""

    def __init__(self, task, right):
        super().__init__()
        self.task, self.right = task, right
        self.unused = nn.Parameter(torch.zeros(1))

    @property
    def steps(self):
        return [self.look_back, self.look_up]

    def embed(self, inputs, position_ids=None):
        token = one_hot(inputs.where(inputs >= SPECIAL, EOS), self.task.tokens).float()
        return {"resid": torch.cat([token, torch.zeros_like(token)], -1)}

    def look_back(self, state, at=None, tap=None, memory=None):
        token, _ = state["resid"].chunk(2, -1)
        pattern = torch.eye(token.shape[1]).roll(-1, 1).tril().expand(len(token), 1, -1, -1)  # the first has none
        if tap is not None:
            pattern = tap("attn.hook_pattern", pattern)
        return {"resid": torch.cat([token, pattern[:, 0] @ token], -1)}

    def look_up(self, state, at=None, tap=None, memory=None):
        token, before = state["resid"].chunk(2, -1)
        scores = 50 * token @ (before if self.right else token).mT
        size = token.shape[1]
        hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
        itself = torch.eye(size, dtype=torch.bool) & (token[..., EOS] == 0)[..., None]
        pattern = scores.masked_fill(hidden | itself, -torch.inf).softmax(-1)[:, None]
        if tap is not None:
            pattern = tap("attn.hook_pattern", pattern)
        written = pattern[:, 0] @ (token if self.right else before)
        return {"resid": torch.cat([written, before], -1)}

    def readout(self, state, norm=True):
        return state["resid"].chunk(2, -1)[0]


@pytest.mark.parametrize(("task", "right"), [("UR", True), ("UL", False), ("UF", True), ("UB", False)])
def test_a_known_circuit_needs_the_edges_that_it_has_and_no_others(task, right):
    data = RetrievalCopying(task, **SIZES)
    split = data.splits["length_2x"]
    grids = {grid.name: grid for grid in measures(data, TwoSteps(data.task, right), "length_2x", split, 16)}
    by_length, attention, without = (grids[name] for name in ("accuracy_by_length", "attention", "accuracy_without"))
    assert list(by_length.axes["length"]) == [str(length) for length in range(7, 13)]
    assert int(by_length.n.sum()) == 60
    assert (by_length.values == 1).all()
    assert attention["0.head0", "previous_token"] == pytest.approx(1)
    used, unused = ("induction", "anti_induction") if right else ("anti_induction", "induction")
    assert attention["1.head0", used] > 0.95
    assert attention["1.head0", unused] < 0.05
    assert without["nothing",] == without[unused,] == 1
    assert without[used,] < 0.5
    assert without["previous_token",] < 0.5
    assert ("accuracy_by_slot" in grids) == data.copies


def test_the_floor_is_uniform_attention_and_mass_that_of_the_groups():
    data = RetrievalCopying("NRFirst", **SIZES)
    split = data.splits["length_1x"]
    model = LoopedTransformer(data.task, width=16, heads=2, layers=1, loops=2)
    nn.init.zeros_(model.blocks[0].attn.qkv.weight[:32])  # no queries and keys: uniform
    grid = next(grid for grid in measures(data, model, "length_1x", split, 7) if grid.name == "attention")
    assert grid.axes["head"] == ("0.head0", "0.head1", "1.head0", "1.head1")
    assert torch.allclose(grid.values, grid.floor, atol=1e-6)
    groups = group_mass(model, split, data.groups(split))
    for edge in EDGES[1:]:  # of retrieval, both measure the attention of the one slot
        assert grid["1.head1", edge] == pytest.approx(groups["1.head1", edge], abs=1e-6)


def test_edges_go_back_and_each_position_has_at_most_one_of_a_kind():
    for task in ("NLLast", "NB"):
        split = RetrievalCopying(task, **SIZES).splits["length_1x"]
        edges = edges_of(split)
        assert edges.sum(2).max() == 1
        assert not edges.permute(0, 3, 1, 2).triu(1).any()
        assert torch.equal(edges[..., 0].sum((1, 2)), split.truth["length"] + 1)
        for kind in (1, 2):
            assert torch.equal(edges[..., kind].sum((1, 2)), (split.truth["source"] >= 0).sum(1))
