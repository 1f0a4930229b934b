"""Attention mass and roles, against patterns recomputed by hand and heads that were planted."""

import pytest
import torch
from torch import nn

from grok.circuits.attention import attention_patterns
from grok.circuits.planted import planted
from grok.data import TwoHopComposition
from grok.data.split import Split
from grok.errors import BadInput
from grok.models import LoopedTransformer

REGIME = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, ood=0.1)
SPLIT = REGIME.splits["train_inferred"].take(slice(0, 30))


def make(**options) -> LoopedTransformer:
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 2, "loops": 2, "heads": 2, "init_std": 0.5}
    return LoopedTransformer(REGIME.task, **{**sizes, **options}).double().eval()


def by_hand(model, split):
    """Patterns `[N, S, H, T, T]` from the weights."""
    found = []
    with torch.no_grad():
        for index, state in enumerate(model.states(split.inputs)[:-1]):
            block = model.blocks[index % len(model.blocks)]
            qkv = block.attn.qkv(block.norm1(state["resid"])).view(len(split), 3, 3, 2, 8)  # N, T, q | k | v, H, K
            scores = torch.einsum("nahk,nthk->nhat", qkv[:, :, 0], qkv[:, :, 1]) / 8**0.5
            if model.causal:
                scores = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
            found.append(scores.softmax(-1))
    return torch.stack(found, 1)


@pytest.mark.parametrize("options", [{}, {"causal": False}], ids=str)
def test_patterns_are_those_of_the_weights_in_any_batch(options):
    model = make(**options)
    attention = attention_patterns(model, SPLIT, batch=7)
    assert attention.patterns.shape == (30, 4, 2, 3, 3)
    torch.testing.assert_close(attention.patterns, by_hand(model, SPLIT))
    assert attention.heads == tuple(f"{step}.head{head}" for step in range(4) for head in range(2))


def test_mass_of_groups_and_its_floor():
    model = make()
    attention, patterns = attention_patterns(model, SPLIT), by_hand(model, SPLIT).float()
    grid = attention.mass()
    assert list(grid.axes.values()) == [attention.heads, ("h", "r1", "r2")]
    torch.testing.assert_close(grid.values, patterns[:, :, :, 2].mean(0).flatten(0, 1))
    torch.testing.assert_close(grid.floor, torch.full((8, 3), 1 / 3))
    hop = attention.mass({"hop": ["h", 1], "rest": ["r2"]}, query="r1")
    assert hop.name == "attention/mass_from_r1"
    torch.testing.assert_close(hop.values, torch.tensor([[1.0, 0.0]]).expand(8, -1))
    torch.testing.assert_close(hop.floor, torch.tensor([[1.0, 0.0]]).expand(8, -1))
    assert hop.n.eq(30).all()
    free = attention_patterns(make(causal=False), SPLIT).mass({"hop": ["h", 1], "rest": ["r2"]}, query="r1")
    torch.testing.assert_close(free.floor, torch.tensor([[2 / 3, 1 / 3]]).expand(8, -1))


def test_the_answer_is_read_where_each_query_says():
    atomic = REGIME.splits["id_atomic"].take(slice(0, 5))
    names = ("inputs", "at", "targets", "mask")
    mixed = Split(*(torch.cat([getattr(SPLIT, name), getattr(atomic, name)]) for name in names), SPLIT.positions)
    assert mixed.at[:, 0].tolist() == [2] * 30 + [1] * 5
    model = make()
    values, floor = attention_patterns(model, mixed).examples()
    patterns = by_hand(model, mixed).float()
    torch.testing.assert_close(values[-5:], patterns[-5:, :, :, 1].flatten(1, 2))
    torch.testing.assert_close(values[:30], patterns[:30, :, :, 2].flatten(1, 2))
    torch.testing.assert_close(floor[-1, 0], torch.tensor([0.5, 0.5, 0.0]))


def test_roles_of_the_planted_heads():
    bridge = attention_patterns(planted("bridge", REGIME.task, REGIME.generated.facts).model, SPLIT)
    roles = bridge.roles()
    assert roles[0, 0, "r1"] == "r1→h"  # step 0: h to r1
    assert roles[2, 0, "r2"] == "r2→r1"  # step 2: the bridge to r2
    assert roles[0, 0, "h"] == "h→h"
    assert len(roles) == 4 * 2 * 3
    assert bridge.mass()["2.head0", "r1"] == 1
    memory = attention_patterns(planted("memory", REGIME.task, REGIME.generated.facts).model, SPLIT).roles()
    assert (memory[0, 0, "r2"], memory[0, 1, "r2"]) == ("r2→r1", "r2→h")


def test_a_head_that_spreads_its_attention_is_mixed():
    model = make()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.zero_()  # uniform attention
    attention = attention_patterns(model, SPLIT)
    assert {attention.roles()[step, head, "r2"] for step in range(4) for head in range(2)} == {"mixed"}
    assert attention.roles(threshold=0.3)[0, 0, "r2"] != "mixed"
    assert attention.roles()[0, 0, "r1"] == "r1→h"  # half of the mass is enough


def test_steps_without_attention_and_unknown_positions_are_told():
    class Mixer(LoopedTransformer):
        def _step(self, block, re_embed, state, at=None, tap=None, memory=None):
            if block is self.blocks[1]:
                return {"resid": state["resid"] + block.mlp(state["resid"])}
            return super()._step(block, re_embed, state, at, tap, memory)

    model = Mixer(REGIME.task, width=16, layers=2, loops=2, heads=2)
    assert isinstance(model, nn.Module)
    with pytest.raises(BadInput, match=r"attention='Mixer': steps 1, 3 have no attention"):
        attention_patterns(model, SPLIT)
    attention = attention_patterns(make(), SPLIT)
    with pytest.raises(BadInput, match=r"position='x'.*h, r1, r2"):
        attention.mass({"group": ["x"]})
    with pytest.raises(BadInput, match=r"position=3.*h, r1, r2"):
        attention.mass(query=3)
    with pytest.raises(BadInput, match="one query or more"):
        attention_patterns(make(), SPLIT.take(slice(0, 0)))


def test_no_groups_are_told():
    with pytest.raises(BadInput, match=r"groups=\{\}: name one group or more"):
        attention_patterns(make(), SPLIT).mass({})
