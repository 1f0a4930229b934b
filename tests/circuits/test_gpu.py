"""The analyses give the same on a GPU as on the CPU."""

import pytest
import torch

from grok.circuits import causal_tracing, composition_counterfactuals, linear_probes, logit_lens, semantic_patching
from grok.data import TwoHopComposition
from grok.models import LoopedTransformer

pytestmark = pytest.mark.gpu


def test_lens_tracing_probes_and_semantic_patching_agree_between_devices():
    regime = TwoHopComposition(entities=50, relations=10, out_degree=10, phi=4)
    split, facts = regime.splits["train_inferred"].take(slice(0, 100)), regime.generated.facts
    torch.manual_seed(0)
    model = LoopedTransformer(regime.task, width=32, layers=2, loops=2, heads=4, init_std=0.3).double()
    results = []
    for device in ("cpu", "cuda"):
        model.to(device)
        lens = logit_lens(model, split)
        tracing = causal_tracing(model, split, composition_counterfactuals(split, facts))
        probes = linear_probes(model, split)
        semantic = semantic_patching(model, split, facts, pairs=50)
        results.append((lens.readings["bridge"].rank, tracing.outcome.patched.rank, probes.correct, semantic.success))
    for cpu, gpu in zip(*results, strict=True):
        assert torch.equal(cpu, gpu)
