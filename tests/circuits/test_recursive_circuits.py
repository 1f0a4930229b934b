"""The analyses on the recursive transformer itself: a batch is single queries, folded patches are single passes."""

import pytest
import torch

from grok.circuits import (
    ablation,
    attention_patterns,
    causal_tracing,
    composition_counterfactuals,
    cosine_lens,
    exact_patching,
    found,
    linear_probes,
    logit_lens,
    nodes_of,
    other_queries,
    patch_states,
    same_bridge_counterfactuals,
    semantic_patching,
)
from grok.circuits.attribution import attribution_patching
from grok.data import FillIn, TwoHopComposition
from grok.models import RecursiveTransformer
from grok.models.steps import pick

REGIME = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, ood=0.1, encoding=FillIn())
SPLIT = REGIME.splits["train_inferred"].take(slice(0, 10))
FACTS = REGIME.generated.facts
CYCLES = {"high_cycles": 2, "low_cycles": 2}
FORMS = {
    "compact": {"prefix": 0},
    "prefix": {"prefix": 2},
    "attention": {"prefix": 0, "mixing": "attention", "positions": "rope", "heads": 2, "tied": True},
}


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def model(request):
    torch.manual_seed(0)
    return RecursiveTransformer(REGIME.task, width=16, multiple=8, **CYCLES, **request.param).double().eval()


def test_the_lens_of_a_batch_is_that_of_one_query_at_a_time(model):
    lens, seen = logit_lens(model, SPLIT, ["bridge", "answer"], streams="each"), found(model, SPLIT)
    assert lens.axes["step"][::3] == ("S[0].z_H", "S[1].z_L", "S[3].z_H", "S[4].z_L", "S[6].z_H")
    for row in range(len(SPLIT)):
        one = SPLIT.take(slice(row, row + 1))
        alone = logit_lens(model, one, ["bridge", "answer"], streams="each")
        for name in ("bridge", "answer"):
            assert torch.equal(lens.readings[name].rank[row], alone.readings[name].rank[0])
            assert torch.equal(lens.readings[name].top[row], alone.readings[name].top[0])
        assert torch.equal(seen.top[row], found(model, one).top[0])


@pytest.mark.parametrize("streams", [("z_H", "z_L"), ("z_L",)])
def test_folded_patches_equal_one_forward_pass_per_patch(model, streams):
    chosen = [*other_queries(SPLIT), *composition_counterfactuals(SPLIT, FACTS)]
    folded = patch_states(model, SPLIT, chosen, [SPLIT.targets[:, :1]] * len(chosen), batch=50, streams=streams)
    with torch.no_grad():
        states = model.states(SPLIT.inputs)
        for index, other in enumerate(chosen):
            others = model.states(other.inputs)
            for step in folded.steps:
                state = {name: stream.clone() for name, stream in states[step].items()}
                for name in streams:
                    state[name][:, list(other.positions)] = others[step][name][:, list(other.positions)]
                logits = pick(model.readout(model.run(state, step)), SPLIT.at[:, :1])[:, 0]
                expected = logits.gather(1, SPLIT.targets[:, :1])[:, 0].float()
                torch.testing.assert_close(folded.patched.logit[:, index, step, 0], expected)


def test_every_analysis_runs(model):
    counterfactual = composition_counterfactuals(SPLIT, FACTS, valid=True)[0]
    floor = same_bridge_counterfactuals(SPLIT, FACTS)
    states = len(model.states(SPLIT.inputs))
    grids = [
        causal_tracing(model, SPLIT, composition_counterfactuals(SPLIT, FACTS), floor).strength(),
        semantic_patching(model, SPLIT, FACTS, pairs=10).grid(),
        linear_probes(model, REGIME.splits["train_inferred"]).grid(),
        cosine_lens(model, REGIME.splits["id_atomic"], REGIME.splits["ood_atomic"]).grid("cohesion"),
    ]
    for grid in grids:
        assert len(grid.axes["step"]) == states
        assert grid.values.isfinite().any()
    assert ablation(model, SPLIT, nodes_of(model, SPLIT), "zero").values.isfinite().all()
    assert exact_patching(model, SPLIT, counterfactual).values.abs().max() > 0
    assert attribution_patching(model, SPLIT, counterfactual).values.abs().max() > 0
    if model.mixing == "attention":
        attention = attention_patterns(model, SPLIT)
        assert attention.heads[:5] == ("0.0.head0", "0.0.head1", "0.1.head0", "0.1.head1", "1.0.head0")
        torch.testing.assert_close(attention.patterns.sum(-1), torch.ones(10, 12, 2, 5).double())
