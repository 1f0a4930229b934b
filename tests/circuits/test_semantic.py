"""Semantic patching and the two probings, against one forward pass per patch and a circuit written by hand."""

import pytest
import torch

from grok.circuits.grid import bootstrap
from grok.circuits.planted import planted
from grok.circuits.semantic import (
    Pairs,
    Semantic,
    full_run_probing,
    immediate_probing,
    semantic_pairs,
    semantic_patching,
)
from grok.data import Split, TwoHopComposition
from grok.data.facts import AtomicFacts
from grok.errors import BadInput
from grok.models import LoopedTransformer

REGIME = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, ood=0.1)
FACTS = REGIME.generated.facts
SPLIT = REGIME.splits["train_inferred"].take(slice(0, 40))
OOD = REGIME.splits["test_inferred_ood"]
KNOWN = {(h, r): t for h, r, t in zip(FACTS.head.tolist(), FACTS.relation.tolist(), FACTS.tail.tolist(), strict=True)}
COMPOSED = {
    (h, r)
    for h, r, used in zip(FACTS.head.tolist(), FACTS.relation.tolist(), FACTS.composed.tolist(), strict=True)
    if used
}


def make(**options) -> LoopedTransformer:
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 2, "loops": 2, "heads": 2, "init_std": 0.3}
    return LoopedTransformer(REGIME.task, **{**sizes, **options}).double().eval()


def queries(split):
    """(h, r1, r2, bridge, answer) of every query, by the facts alone."""
    tokens = split.inputs.tolist()
    return [(h, r1, r2, KNOWN[h, r1], KNOWN[KNOWN[h, r1], r2]) for h, r1, r2 in tokens]


def valid_pairs(split, sources, composed):
    found = {}
    for t, (_, _, r2, _, answer) in enumerate(queries(split)):
        for s, (_, _, _, bridge, said) in enumerate(queries(sources)):
            expected = KNOWN.get((bridge, r2), -1)
            usable = (bridge, r2) in COMPOSED if composed else expected >= 0
            if usable and expected not in (answer, said):
                found[t, s] = expected
    return found


@pytest.mark.parametrize("composed", [True, False])
@pytest.mark.parametrize("sources", [SPLIT, OOD], ids=["same", "ood"])
def test_pairs_are_all_valid_pairs_and_no_other(sources, composed):
    expected = valid_pairs(SPLIT, sources, composed)
    pairs = semantic_pairs(SPLIT, FACTS, sources, 10_000, composed)
    rows = zip(pairs.target.tolist(), pairs.source.tolist(), pairs.expected.tolist(), strict=True)
    assert {(t, s): e for t, s, e in rows} == expected
    assert len(pairs.expected) == len(expected)  # none twice


def test_a_draw_is_nested_seeded_and_independent_of_the_order_of_queries():
    def drawn(split, count, seed=0):
        pairs = semantic_pairs(split, FACTS, pairs=count, seed=seed)
        return torch.cat([split.inputs[pairs.target], split.inputs[pairs.source]], 1).tolist()

    shuffled = SPLIT.take(torch.randperm(len(SPLIT), generator=torch.Generator().manual_seed(1)))
    assert drawn(shuffled, 30) == drawn(SPLIT, 30) == drawn(SPLIT, 60)[:30]
    assert drawn(SPLIT, 30, seed=1) != drawn(SPLIT, 30)


def predictions(model, inputs, others, step, position, at):
    """Predicted tokens at `at` with S[step, position] of `others`: the definition, one forward pass."""
    with torch.no_grad():
        state = model.states(inputs)[step]["resid"].clone()
        state[:, position] = model.states(others)[step]["resid"][:, position]
        return model.readout(model.run({"resid": state}, step))[:, at].argmax(-1)


@pytest.mark.parametrize("options", [{}, {"causal": False}], ids=str)
@pytest.mark.parametrize("sources", [SPLIT, OOD], ids=["same", "ood"])
def test_success_is_that_of_one_forward_pass_per_patch(options, sources):
    model = make(**options)
    semantic = semantic_patching(model, SPLIT, FACTS, pairs=50, sources=sources, batch=13)
    drawn = semantic.pairs
    targets, others = SPLIT.inputs[drawn.target], sources.inputs[drawn.source]
    with torch.no_grad():
        right = model(targets)[:, 2].argmax(-1) == SPLIT.targets[drawn.target, 0]
    assert semantic.correct.tolist() == right.tolist()
    for step in range(5):
        for position in range(3):
            expected = predictions(model, targets, others, step, position, 2) == drawn.expected
            assert semantic.success[:, step, position].tolist() == expected.float().tolist()
    assert semantic.grid().values.isfinite().all()
    assert semantic.grid().n.eq(len(drawn.source.unique())).all()
    assert semantic.grid(only_correct=True).n.eq(int(right.sum())).all()


def test_the_bridge_that_was_planted_is_the_one_that_succeeds():
    model = planted("bridge", REGIME.task, FACTS).model
    semantic = semantic_patching(model, SPLIT, FACTS, sources=OOD)
    drawn, grid = semantic.pairs, semantic.grid()
    assert grid["S[1]", "r1"] == grid["S[2]", "r1"] == 1
    assert grid.floor[1, 1] < 0.3
    # S[0, h] and S[0, r1] replace one token of the first hop, S[0 … 2, r2] the relation of the second: they succeed
    # where that query happens to have the expected answer. Later states of h and r1 are read by nothing; from S[3, r2]
    # on the state holds the second hop of the source.
    replaced = {(0, 0): 0, (0, 1): 1, (0, 2): 2, (1, 2): 2, (2, 2): 2}
    for step in range(5):
        for position in range(3):
            if position == 1 and step in (1, 2):
                continue
            tokens = SPLIT.inputs[drawn.target].clone()
            if (step, position) in replaced:
                tokens[:, position] = OOD.inputs[drawn.source, position]
            says = [KNOWN.get((KNOWN.get((h, r1), -1), r2), -1) for h, r1, r2 in tokens.tolist()]
            coincidence = (torch.tensor(says) == drawn.expected) & ((step, position) in replaced)
            assert semantic.success[:, step, position].tolist() == coincidence.float().tolist()
    assert (grid.values > 0.5).nonzero().tolist() == [[1, 1], [2, 1]]
    assert grid.above_floor[1:3, 1].all()


def test_memory_has_no_bridge_to_patch():
    model = planted("memory", REGIME.task, FACTS).model
    grid = semantic_patching(model, SPLIT, FACTS).grid(only_correct=True)
    assert grid.n.min() > 0
    assert grid.values[1:, 1].eq(0).all()  # whatever is patched at r1 after step 0 is read by nothing


def test_probings_name_the_states_that_hold_the_planted_bridge():
    plant = planted("bridge", REGIME.task, FACTS)
    immediate = immediate_probing(plant.model, SPLIT, positions=("h", "r1", "r2"))
    full = full_run_probing(plant.model, SPLIT, positions=("h", "r1", "r2"))
    for grid, readable in ((immediate, plant.readable["r1"]), (full, (1, *plant.readable["r1"]))):
        # S[1, r1] holds head and relation, which the remaining steps turn into the bridge.
        assert grid.values[:, 1].tolist()[1:] == [float(step in readable) for step in (1, 2, 3, 4)]
        assert grid.values[0, 1] < 0.5
        # At h only h itself is read out, and a few queries have their own head as the bridge.
        loops = (SPLIT.inputs[:, 0] == SPLIT.truth["bridge"][:, 0]).float().mean()
        assert grid.values[:, 0].tolist() == [pytest.approx(float(loops), abs=0.03)] * 5
    assert immediate.n.eq(len(SPLIT)).all()


@pytest.mark.parametrize("host", [3, OOD.take(slice(0, 1))], ids=["row", "split"])
def test_full_run_probing_is_one_forward_pass_per_patch(host):
    model = make()
    one = SPLIT.inputs[3:4] if host == 3 else OOD.inputs[:1]
    bridge = KNOWN[tuple(one[0, :2].tolist())]
    used = SPLIT.take(SPLIT.truth["bridge"][:, 0] != bridge)
    grid = full_run_probing(model, SPLIT, host, batch=7)
    assert grid.n.eq(len(used)).all()
    assert len(used) < len(SPLIT) or host != 3
    for step in range(5):
        said = predictions(model, one.expand(len(used), -1), used.inputs, step, 1, 1)
        assert grid.values[step, 0] == (said == used.truth["bridge"][:, 0]).float().mean()


def test_immediate_probing_reads_without_the_final_norm():
    model = make()
    with torch.no_grad():
        model.norm.weight.copy_(torch.linspace(-1, 1, 16))  # with the norm, other tokens are on top
        states = [model.readout(state, norm=False)[:, 1].argmax(-1) for state in model.states(SPLIT.inputs)]
    grid = immediate_probing(model, SPLIT, "r1")
    expected = [float((top == SPLIT.inputs[:, 1]).float().mean()) for top in states]
    assert grid.values[:, 0].tolist() == expected
    assert immediate_probing(model, SPLIT, "r1", norm=True).values[:, 0].tolist() != expected


def test_a_model_without_preference_succeeds_nowhere():
    model = make()
    with torch.no_grad():
        model.embedding.weight.zero_()  # all logits are 0, and every token has rank 0
    split = SPLIT.take(SPLIT.truth["bridge"][:, 0] != 0)
    assert immediate_probing(model, split).values.eq(0).all()
    semantic = semantic_patching(model, SPLIT, FACTS, pairs=200)
    assert torch.equal(semantic.success[:, 0, 0] == 1, semantic.pairs.expected == 0)


def test_bad_input_is_told_in_one_line():
    model = make()
    atomic = REGIME.splits["id_atomic"]
    with pytest.raises(BadInput, match="two-hop queries"):
        semantic_patching(model, SPLIT, FACTS, sources=atomic)
    few = AtomicFacts(FACTS.head, FACTS.relation, FACTS.tail, torch.zeros_like(FACTS.composed))
    with pytest.raises(BadInput, match=r"pairs=2000: no source.*composed=false"):
        semantic_patching(model, SPLIT, few)
    with pytest.raises(BadInput, match=r"pairs=0"):
        semantic_patching(model, SPLIT, FACTS, pairs=0)
    other = Split(**{**vars(SPLIT), "positions": ("h", "r1", "x")})
    with pytest.raises(BadInput, match=r"sources='h, r1, x'.*h, r1, r2"):
        semantic_patching(model, SPLIT, FACTS, sources=other)
    with pytest.raises(BadInput, match=r"position='x'"):
        immediate_probing(model, SPLIT, positions=["x"])
    with pytest.raises(BadInput, match=r"host=40: use a row, 0 to 39"):
        full_run_probing(model, SPLIT, 40)
    with pytest.raises(BadInput, match="another host"):
        full_run_probing(model, SPLIT.take(slice(0, 1)))


def test_pairs_of_one_source_count_as_one():
    """Three pairs of source 7 and one each of 5 and 2: the bootstrap is over three means, whatever the pairs say."""
    pairs = Pairs(torch.arange(5), torch.tensor([7, 5, 7, 2, 7]), torch.zeros(5, dtype=torch.int64))
    success = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])[:, None, None]
    shuffled = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])[:, None, None]
    correct = torch.tensor([True, False, True, True, True])
    semantic = Semantic(pairs, ("r1",), success, shuffled, correct, (1,))
    by_source = torch.tensor([1.0, 0.0, 2 / 3])[:, None]  # of 2, 5 and 7
    grid, (low, high) = semantic.grid(), bootstrap(by_source)
    assert (float(grid.values), int(grid.n)) == (pytest.approx(5 / 9), 3)
    assert (grid.low[0, 0], grid.high[0, 0]) == (low[0], high[0])
    assert float(grid.floor) == pytest.approx(1 / 9)
    right = semantic.grid(only_correct=True)  # source 5 has no pair that counts
    assert (float(right.values), int(right.n)) == (pytest.approx((1 + 2 / 3) / 2), 2)
    assert semantic.examples().shape == (5, 1, 1)
