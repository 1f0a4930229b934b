"""`with_loops`: the weights are shared, and the model is the one that would have been built with so many loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.errors import BadInput
from grok.models import LoopedTransformer, RecursiveTransformer, StepModel
from grok.task import Task

TASK = Task(positions=3, outputs=11, tokens=11)
TOKENS = torch.tensor([[1, 4, 7], [2, 2, 0]])
SIZES = {"width": 16, "heads": 2, "init_std": 0.4}
RECURSIVE = {"width": 16, "heads": 2, "multiple": 8, "low_cycles": 2, "prefix": 1}


class Straight(StepModel):
    """Two steps and no loops."""

    steps = (lambda state, *_: state,) * 2

    def embed(self, inputs, position_ids=None):
        return {"resid": inputs[..., None].float()}

    def readout(self, state, norm=True):
        return state["resid"]


def looped(loops, **options):
    torch.manual_seed(3)
    return LoopedTransformer(TASK, loops=loops, **{**SIZES, "layers": 2, **options}).eval()


@settings(deadline=None, max_examples=12)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.fixed_dictionaries(
        {"layers": st.integers(1, 2), "re_embed": st.booleans(), "positions": st.sampled_from(["learned", "rope"])}
    ),
)
def test_it_equals_the_model_built_with_so_many_loops(loops, other, options):
    model, built = looped(loops, **options), looped(other, **options)
    again = model.with_loops(other)
    assert torch.equal(again(TOKENS), built(TOKENS))
    assert len(again.steps) == other * options["layers"]
    assert model.loops == loops
    assert torch.equal(model(TOKENS), looped(loops, **options)(TOKENS))
    assert torch.equal(again.with_loops(loops)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("re_embed", [False, True])
def test_a_later_loop_goes_on_from_the_state_that_an_earlier_one_has_left(re_embed):
    model = looped(2, re_embed=re_embed)
    more, fewer = model.with_loops(3).states(TOKENS), model.with_loops(1).states(TOKENS)
    own = model.states(TOKENS)
    for states, count in ((fewer, 3), (own, 5)):
        assert all(torch.equal(a["resid"], b["resid"]) for a, b in zip(states, more[:count], strict=True))
    assert not torch.equal(more[-1]["resid"], own[-1]["resid"])


def test_weights_are_shared_and_not_copied():
    model = looped(2)
    again = model.with_loops(4)
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in again.named_parameters()}
    before = again(TOKENS)
    with torch.no_grad():
        model.blocks[0].mlp.out.weight.mul_(2)
    assert not torch.equal(again(TOKENS), before)
    again(TOKENS).sum().backward()
    assert model.blocks[0].mlp.out.weight.grad is not None
    model.load_state_dict(looped(2).state_dict())
    assert torch.equal(again(TOKENS), before)
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("mixing", ["tokens", "attention"])
def test_the_recursive_model_changes_its_cycles_of_z_h(mixing):
    def make(cycles):
        torch.manual_seed(0)
        return RecursiveTransformer(TASK, **RECURSIVE, mixing=mixing, high_cycles=cycles).eval()

    model = make(2)
    assert model.loops == 2
    for cycles in (1, 2, 4):
        again = model.with_loops(cycles)
        assert again.cycles == (cycles, 2)
        assert torch.equal(again(TOKENS), make(cycles)(TOKENS))
        assert [again.stream_at(i) for i in range(4)] == [model.stream_at(i) for i in range(4)]


def test_what_has_no_loops_and_what_is_no_number_of_loops_is_refused():
    with pytest.raises(BadInput, match="loops=2: Straight has no loops"):
        Straight().with_loops(2)
    with pytest.raises(BadInput, match="loops=0: use 1 or more"):
        looped(2).with_loops(0)
