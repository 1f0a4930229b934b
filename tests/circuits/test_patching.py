"""Folded patching computes what one forward pass per patch computes, in bounded memory."""

import pytest
import torch

from grok.circuits import Counterfactual, causal_tracing, composition_counterfactuals, patch_states
from grok.circuits.counterfactuals import other_queries, same_query
from grok.data import NextToken, Split, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer
from grok.models.steps import pick

REGIME = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, ood=0.1)
SPLIT = REGIME.splits["train_inferred"].take(slice(0, 40))
FACTS = REGIME.generated.facts
VARIANTS = [
    {},
    {"layers": 4, "loops": 1},
    {"positions": "rope"},
    {"re_embed": True},
    {"norm": "rms", "mlp": "swiglu", "tied": False},
    {"causal": False},
]


def make(task=REGIME.task, **options) -> LoopedTransformer:
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 2, "loops": 2, "heads": 2, "init_std": 0.3}
    return LoopedTransformer(task, **{**sizes, **options}).double().eval()


def one_by_one(model, split, counterfactual, step, target_step=None, at=None):
    """Logits `[N, V]` after one patch: the definition, without any folding."""
    last = len(model.steps) if target_step is None else target_step
    state = dict(model.states(split.inputs, split.position_ids)[step])
    other = model.states(counterfactual.inputs, split.position_ids)[step]
    state["resid"] = state["resid"].clone()
    for position in counterfactual.positions:
        state["resid"][:, position] = other["resid"][:, position]
    logits = model.readout(model.run(state, step, last))
    return pick(logits, split.at[:, :1] if at is None else torch.full_like(split.at[:, :1], at))[:, 0]


def counterfactuals(split=SPLIT):
    both = composition_counterfactuals(split, FACTS)
    pair = Counterfactual("h and r1", both[1].inputs.roll(1, 0), (0, 1), both[1].answer, both[1].exists)
    return [*both, pair]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("few_keys", [8, 0], ids=["elementwise", "fused"])
def test_folded_patches_equal_one_forward_pass_per_patch(options, few_keys, monkeypatch):
    monkeypatch.setattr("grok.models.layers._FEW_KEYS", few_keys)
    model, chosen = make(**options), counterfactuals()
    tokens = [torch.stack([SPLIT.targets[:, 0], one.answer], 1) for one in chosen]
    folded = patch_states(model, SPLIT, chosen, tokens)
    assert folded.steps == (0, 1, 2, 3, 4)
    with torch.no_grad():
        for index, one in enumerate(chosen):
            for step in folded.steps:
                expected = one_by_one(model, SPLIT, one, step)
                rank = (expected > expected.gather(1, SPLIT.targets[:, :1])).sum(1)
                assert folded.patched.rank[:, index, step, 0].tolist() == rank.tolist()
                logit = expected.gather(1, SPLIT.targets[:, :1])[:, 0].float()
                torch.testing.assert_close(folded.patched.logit[:, index, step, 0], logit)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_any_state_can_be_the_target(options):
    model, chosen = make(**options), counterfactuals()[:2]
    tokens = [SPLIT.truth["bridge"]] * 2
    folded = patch_states(model, SPLIT, chosen, tokens, target_step=2, target_position=1)
    assert folded.steps == (0, 1, 2)
    with torch.no_grad():
        for index, one in enumerate(chosen):
            for step in folded.steps:
                expected = one_by_one(model, SPLIT, one, step, 2, 1).gather(1, SPLIT.truth["bridge"])[:, 0].float()
                torch.testing.assert_close(folded.patched.logit[:, index, step, 0], expected)


def test_strength_on_another_state_is_named_after_it_and_is_0_where_it_cannot_be_seen():
    tracing = causal_tracing(make(), SPLIT, counterfactuals()[:3], target=(3, "r1", "bridge"))
    grid = tracing.strength()
    assert grid.name == "tracing/changed/to_S3_r1_bridge"
    assert grid.axes == {"step": ("S[0]", "S[1]", "S[2]", "S[3]"), "position": ("h", "r1", "r2")}
    assert grid.values[:, 1].gt(0).all()
    assert grid.values[:, 2].eq(0).all()  # r2 comes after r1
    assert tracing.examples("flipped").isnan().all()  # nothing says what the counterfactual should be there


def test_queries_may_be_padded_have_explicit_positions_and_differ_in_where_the_answer_is():
    encoding = NextToken(pad=10, supervise_eos=True)
    regime = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, encoding=encoding)
    two_hop, atomic = (regime.splits[name].take(slice(0, 9)) for name in ("train_inferred", "id_atomic"))
    inputs, at = torch.cat([two_hop.inputs, atomic.inputs]), torch.cat([two_hop.at, atomic.at])
    ids = torch.arange(10).expand(18, -1).flip(1)
    targets, mask = torch.cat([two_hop.targets, atomic.targets]), torch.cat([two_hop.mask, atomic.mask])
    split = Split(inputs, at, targets, mask, two_hop.positions, position_ids=ids)
    assert len(split.at[:, 0].unique()) == 2
    for options in ({}, {"positions": "rope"}):
        model, chosen = make(regime.task, **options), other_queries(split)[:3]
        folded = patch_states(model, split, chosen, [split.targets[:, :1]] * 3, batch=20)
        with torch.no_grad():
            for index, one in enumerate(chosen):
                expected = one_by_one(model, split, one, 1).gather(1, split.targets[:, :1])[:, 0].float()
                torch.testing.assert_close(folded.patched.logit[:, index, 1, 0], expected)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_patching_a_state_with_itself_changes_nothing(options):
    model = make(**options).float()
    clean = pick(model(SPLIT.inputs), SPLIT.at)[:, 0]
    with torch.no_grad():
        for step in range(len(model.steps) + 1):
            for one in same_query(SPLIT):
                assert torch.equal(one_by_one(model, SPLIT, one, step), clean)  # to the bit
    tracing = causal_tracing(model, SPLIT, same_query(SPLIT))
    patched, unpatched = tracing.outcome.patched, tracing.outcome.clean
    assert torch.equal(patched.rank, unpatched.rank[:, :, None].expand_as(patched.rank))
    assert torch.equal(patched.top, unpatched.top[:, :, None].expand_as(patched.top))
    # A matrix product may sum a row of a larger batch in another order.
    torch.testing.assert_close(patched.logit, unpatched.logit[:, :, None].expand_as(patched.logit), rtol=0, atol=2e-5)
    assert tracing.strength().values.eq(0).all()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_patching_all_positions_gives_the_other_run(options):
    model = make(**options)
    other = SPLIT.take(torch.arange(len(SPLIT)).flip(0))
    whole = Counterfactual(
        "all", other.inputs, (0, 1, 2), other.targets[:, 0], torch.ones(len(SPLIT), dtype=torch.bool)
    )
    folded = patch_states(model, SPLIT, [whole], [SPLIT.targets[:, :1]])
    expected = pick(model(other.inputs), other.at)[:, 0].gather(1, SPLIT.targets[:, :1]).detach().float()
    for step in folded.steps:
        torch.testing.assert_close(folded.patched.logit[:, 0, step], expected)


class _Widest:
    """The largest number of rows that a step or the read-out of a model has seen."""

    def __init__(self, model, monkeypatch):
        self.rows = 0
        for owner, name in ((type(model), "readout"), (type(model.blocks[0]), "forward")):
            monkeypatch.setattr(owner, name, self._watch(getattr(owner, name)))

    def _watch(self, method):
        def watched(owner, x, *arguments, **options):
            self.rows = max(self.rows, len(x["resid"] if isinstance(x, dict) else x))
            return method(owner, x, *arguments, **options)

        return watched


@pytest.mark.parametrize("options", [{}, {"causal": False}], ids=str)
def test_batch_bounds_memory_and_changes_no_result(options, monkeypatch):
    model = make(**options)
    whole = causal_tracing(model, SPLIT, counterfactuals())
    widest = _Widest(model, monkeypatch)
    pieces = causal_tracing(model, SPLIT, counterfactuals(), batch=17)
    assert 0 < widest.rows <= 17
    assert torch.equal(whole.outcome.patched.rank, pieces.outcome.patched.rank)


def test_a_state_that_does_not_exist_is_named():
    model = make()
    for wrong in ({"steps": [5]}, {"steps": [-1]}, {"target": (7, "r1", "bridge")}, {"steps": []}):
        with pytest.raises(BadInput, match=r"no such state; .*S\[4\]"):
            causal_tracing(model, SPLIT, counterfactuals(), **wrong)
    with pytest.raises(BadInput, match=r"position='x'.*h, r1, r2"):
        causal_tracing(model, SPLIT, counterfactuals(), target=(2, "x", "bridge"))
    with pytest.raises(BadInput, match=r"columns='nothing'.*answer, bridge, h, r1, r2"):
        causal_tracing(model, SPLIT, counterfactuals(), target=(2, "r1", "nothing"))


def test_a_model_without_preference_or_without_numbers_is_not_right_about_everything():
    model = make()
    chosen = other_queries(SPLIT)[:1]
    with torch.no_grad():
        model.embedding.weight.zero_()  # all logits are equal: every token has rank 0, the first one is predicted
    tracing = causal_tracing(model, SPLIT, chosen)
    assert tracing.outcome.clean.rank.eq(0).all()
    assert torch.equal(tracing.correct, SPLIT.targets[:, 0] == 0)
    flipped = tracing.examples("flipped")[:, :, 0]
    assert torch.equal(flipped, (chosen[0].answer == 0).float()[:, None].expand_as(flipped))
    assert tracing.examples("rank").eq(0).all()  # as the released code
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    tracing = causal_tracing(model, SPLIT, chosen)
    assert not tracing.correct.any()
    assert tracing.examples("flipped").eq(0).all()
    assert tracing.examples("rank").eq(1).all()
