"""Lens and causal tracing find exactly the circuit that was written into a model, and none in a random model."""

from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from grok.circuits import (
    causal_tracing,
    composition_counterfactuals,
    logit_lens,
    same_bridge_counterfactuals,
)
from grok.circuits.nodes import Node
from grok.circuits.planted import compositions, planted
from grok.data import NextToken, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer

REGIME = TwoHopComposition(entities=12, relations=4, out_degree=4, phi=2, iid=0.2, ood=0.2)
FACTS = REGIME.generated.facts
SPLITS = REGIME.splits
TRAIN = SPLITS["train_inferred"]
INFERRED = [name for name in SPLITS if "inferred" in name]
POSITIONS = ("h", "r1", "r2")
# What the construction implies, written out by hand: i of the states S[i, p].
READABLE = {"bridge": {"r1": (2, 3, 4)}, "memory": {}, "both": {"r1": (2, 3, 4)}}
DECISIVE = {
    "bridge": {"h": (0,), "r1": (0, 1, 2), "r2": (0, 1, 2, 3, 4)},
    "memory": {"h": (0,), "r1": (0,), "r2": (0, 1, 2, 3, 4)},
}
NODES = {
    "bridge": {(0, "head0", 1), (1, "mlp", 1), (2, "head0", 2), (3, "mlp", 2)},
    "memory": {(0, "head0", 2), (0, "head1", 2), (1, "mlp", 2)},
}
CIRCUITS = ["bridge", "memory", "both"]
MIXES = [0.1, 0.25, 0.4, 0.6, 0.9]


def plant(circuit, mix=0.25, **options):
    return planted(circuit, REGIME.task, FACTS, mix, **options)


def mask(states):
    """Bool `[S, position]` of the states named."""
    return torch.tensor([[step in states.get(name, ()) for name in POSITIONS] for step in range(5)])


def answers(model, split):
    return model(split.inputs, split.at)[:, 0].argmax(-1)


def truth_by_hand():
    """(h, r1, r2) → t from a dictionary of facts."""
    tail = {(int(h), int(r)): int(t) for h, r, t in zip(FACTS.head, FACTS.relation, FACTS.tail, strict=True)}
    return {(h, r1, r2): tail[b, r2] for (h, r1), b in tail.items() for e, r2 in tail if e == b}


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_every_query_is_answered(circuit):
    model = plant(circuit).model
    queries = truth_by_hand()
    assert len(queries) == 12 * 4 * 4
    logits = model(torch.tensor(list(queries)))[:, 2]
    assert logits.argmax(-1).tolist() == list(queries.values())
    expected = torch.zeros(len(queries), REGIME.entities)
    expected[torch.arange(len(queries)), torch.tensor(list(queries.values()))] = 20
    torch.testing.assert_close(logits[:, : REGIME.entities], expected)  # nothing but the answer
    for name in INFERRED:
        assert torch.equal(answers(model, SPLITS[name]), SPLITS[name].targets[:, 0]), name
    for name in ("id_atomic", "ood_atomic"):  # the first look-up answers these; a table of two-hop queries does not
        right = answers(model, SPLITS[name]) == SPLITS[name].targets[:, 0]
        assert right.all() if circuit != "memory" else not right.any(), name


def test_a_table_answers_the_queries_it_was_given_and_no_other():
    model = plant("memory", queries=TRAIN.inputs.repeat(2, 1)).model
    assert torch.equal(answers(model, TRAIN), TRAIN.targets[:, 0])
    assert model(TRAIN.inputs, TRAIN.at).amax() == 20  # a query given twice is in the table once
    for name in INFERRED[1:]:
        assert not (answers(model, SPLITS[name]) == SPLITS[name].targets[:, 0]).any(), name
    beside = plant("both", mix=0.98, queries=TRAIN.inputs).model
    for name in INFERRED:
        split = SPLITS[name]
        logits = beside(split.inputs, split.at)[:, 0]
        assert torch.equal(logits.argmax(-1), split.targets[:, 0])  # even a faint answer outranks the token shown
        expected = torch.full((len(split),), 20.0 if name == INFERRED[0] else 0.02 * 20)
        torch.testing.assert_close(logits.amax(-1), expected)


def test_other_vocabularies_paddings_and_gains():
    encoding = NextToken(vocab="gpt2", pad=10, supervise_eos=True)
    sizes = {"entities": 3, "relations": 2, "out_degree": 2, "phi": 0.5, "ood": 0, "iid": 0.2}
    regime = TwoHopComposition(**sizes, encoding=encoding)
    for circuit in CIRCUITS:
        model = planted(circuit, regime.task, regime.generated.facts, gain=3.0).model
        for name in ("train_inferred", "test_inferred_iid"):
            split = regime.splits[name]
            logits = model(split.inputs, split.at)[:, 0]
            assert torch.equal(logits.argmax(-1), split.targets[:, 0])
            torch.testing.assert_close(logits.amax(-1), torch.full((len(split),), 3.0))


def test_the_ground_truth_is_as_derived():
    for circuit in ("bridge", "memory"):
        made = plant(circuit)
        assert {name: steps for name, steps in made.readable.items() if steps} == READABLE[circuit]
        assert made.decisive == DECISIVE[circuit]
        assert set(made.nodes) == NODES[circuit]
        assert all(isinstance(node, Node) for node in made.nodes)
    for mix in MIXES:
        both = plant("both", mix)
        assert {name: steps for name, steps in both.readable.items() if steps} == READABLE["both"]
        assert both.decisive == DECISIVE["bridge" if mix < 0.5 else "memory"]
        assert set(both.nodes) == NODES["bridge"] | NODES["memory"]


@pytest.mark.parametrize("circuit", CIRCUITS)
@pytest.mark.parametrize("split", INFERRED)
def test_the_lens_reads_the_bridge_where_it_was_written_and_nowhere_else(circuit, split):
    grid = logit_lens(plant(circuit).model, SPLITS[split]).grid("bridge")
    written = mask(READABLE[circuit])
    assert torch.equal(grid.values == 1, written)  # at all positions
    # At r1 the token shown is on top before the bridge is written, the bridge ties with the other entities.
    assert grid.values[~written[:, 1], 1].eq(0.5).all()
    assert (grid.values <= grid.floor)[~written[:, 1], 1].all()
    assert (grid.floor < 0.8)[written[:, 1], 1].all()


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_the_lens_reads_the_token_shown_and_the_answer(circuit):
    lens = logit_lens(plant(circuit).model, TRAIN, ["h", "r1", "r2", "answer"])
    assert lens.grid("h").values[:, 0].eq(1).all()
    assert torch.equal(lens.grid("r1").values[:, 1] == 1, ~mask(READABLE[circuit])[:, 1])  # the bridge outranks it
    first = 4 if circuit == "bridge" else 2
    assert torch.equal(lens.grid("answer").values[:, 2] == 1, torch.arange(5) >= first)
    assert torch.equal(lens.grid("r2").values[:, 2] == 1, torch.arange(5) < first)


def traced(model, split=TRAIN):
    floor = same_bridge_counterfactuals(split, FACTS)
    return causal_tracing(model, split, composition_counterfactuals(split, FACTS, valid=True), floor)


@pytest.mark.parametrize("split", INFERRED)
@pytest.mark.parametrize(("circuit", "mix"), [("bridge", 0.25), ("memory", 0.25), *(("both", mix) for mix in MIXES)])
def test_tracing_finds_the_states_that_decide_and_no_other(circuit, mix, split):
    tracing = traced(plant(circuit, mix).model, SPLITS[split])
    like = circuit if circuit != "both" else "bridge" if mix < 0.5 else "memory"
    for measure in ("changed", "flipped", "rank"):
        grid = tracing.strength(measure)
        assert grid.n[0, 1:].gt(0).all()
        expected = mask(DECISIVE[like]).float().masked_fill(grid.n == 0, torch.nan)
        torch.testing.assert_close(grid.values, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mix", MIXES)
def test_the_logits_after_patching_the_bridge_are_the_mixing_weight(mix):
    tracing = traced(plant("both", mix).model)
    exists = tracing.exists[:, 1]
    assert exists.float().mean() > 0.5
    for step in (1, 2):
        truth, other = tracing.outcome.patched.logit[exists, 1, step].unbind(-1)
        torch.testing.assert_close(truth, torch.full_like(truth, 20 * mix))
        torch.testing.assert_close(other, torch.full_like(other, 20 * (1 - mix)))
        flipped = tracing.examples("flipped")[exists, step, 1]
        assert flipped.eq(float(mix < 0.5)).all()
    # From (20, 0) to (20 w, 20 (1 - w)); before the table has read r1 and after r2 has read the bridge: all, nothing.
    fall = tracing.strength("logit_difference").values[:, 1]
    torch.testing.assert_close(fall, torch.tensor([40, 40 * (1 - mix), 40 * (1 - mix), 0, 0]))


def test_another_fact_with_the_same_bridge_changes_nothing_once_it_is_looked_up():
    for circuit, unchanged in (("bridge", range(1, 5)), ("memory", range(1, 5)), ("both", range(1, 5))):
        floor = traced(plant(circuit).model).strength().floor[:, 1]
        assert floor[0] > 0.5  # the token itself does matter: h and another relation lead elsewhere
        assert floor[list(unchanged)].eq(0).all()


def write_off(model, split, nodes):
    """Logits of the answer with the given nodes' writes set to zero."""

    def tap(name, value):
        for step, component, position in nodes:
            if component == "mlp" and name == f"steps.{step}.hook_mlp_out":
                value = value.index_fill(1, torch.tensor([position]), 0)
            elif component != "mlp" and name == f"steps.{step}.attn.hook_z":
                value = value.clone()
                value[:, position, int(component[-1])] = 0
        return value

    return model(split.inputs, tap=tap)[:, 2].gather(1, split.targets[:, :1])[:, 0]


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_exactly_the_planted_nodes_matter(circuit):
    mix = {"bridge": 0.0, "memory": 1.0, "both": 0.25}[circuit]
    model = plant(circuit).model
    parts = {name: nodes for name, nodes in NODES.items() if circuit in (name, "both")}
    nodes = {(s, c, p) for s in range(4) for c in ("head0", "head1", "mlp") for p in range(3)}
    with torch.no_grad():
        for node in nodes:
            lost = (1 - mix) * (node in parts.get("bridge", ())) + mix * (node in parts.get("memory", ()))
            logit = write_off(model, TRAIN, [node])
            torch.testing.assert_close(logit, torch.full_like(logit, 20 * (1 - lost)), msg=f"{node}")
        alone = write_off(model, TRAIN, nodes - set().union(*parts.values()))
    torch.testing.assert_close(alone, torch.full_like(alone, 20.0))


def test_whatever_is_not_needed_is_zero_and_no_random_number_is_drawn():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    bridge = plant("bridge").model
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(bridge, LoopedTransformer)
    assert not bridge.training
    assert {parameter.dtype for parameter in bridge.parameters()} == {torch.float32}
    facts, e, r, p = len(FACTS.head), 12, 4, 3
    expected = {"embedding": e + r, "position": p, "head": 2 * e + r}
    expected |= {"blocks.0": 2 * p + 2 * e, "blocks.1": 4 * facts, "blocks.2": 2 * p + 2 * e, "blocks.3": 4 * facts}
    count = dict.fromkeys(expected, 0)
    for name, parameter in bridge.named_parameters():
        count[next(key for key in expected if name.startswith(key))] += int(parameter.count_nonzero())
    assert count == expected


def test_compositions_are_all_chains_of_two_facts():
    assert sorted(map(tuple, compositions(FACTS).tolist())) == sorted(truth_by_hand())


def test_bad_input_is_told_in_one_line():
    for wrong, match in (
        ({"circuit": "bridges"}, "circuit='bridges': use bridge, memory or both"),
        ({"mix": 1.0}, r"mix=1\.0: use a share"),
        ({"gain": 0}, "gain=0"),
        ({"queries": TRAIN.inputs[:, :2]}, r"queries=\(\d+, 2\): give a tensor \[Q, 3\]"),
        ({"queries": torch.zeros(1, 3, dtype=torch.int64)}, r"queries=\[0, 0, 0\]: 1 of 1 have no answer"),
        ({"task": replace(REGIME.task, tokens=5, outputs=5)}, "no such token: the task has 5"),
        ({"task": replace(REGIME.task, positions=2)}, "three positions"),
    ):
        with pytest.raises(BadInput, match=match) as error:
            planted(**{"circuit": "memory", "task": REGIME.task, "facts": FACTS, **wrong})
        assert "\n" not in str(error.value)


# A random model must give nothing. "The interval lies above the floor" cannot be asked of every cell: by chance it does
# in one cell of 40 at best, and more often (one in 13 of these random models) where examples share a bridge or the
# floor is as noisy as the value. So the same comparison is made in pairs, each example against its own floor, over all
# cells and seeds at once (Bonferroni): it would fail by chance for one choice of seeds in 100. One query per first
# fact, because queries that share a bridge are not independent; ranks among the entities, because a random model
# prefers its own tokens, whatever the bridge.
LARGER = TwoHopComposition(entities=60, relations=12, out_degree=4, phi=2, iid=0.1, ood=0.05)
SEEDS = range(4)


def one_query_per_first_fact():
    split = LARGER.splits["train_inferred"]
    first = {int(fact): row for row, fact in enumerate(split.truth["facts"][:, 0])}
    return split.take(torch.tensor(sorted(first.values())))


def lens_differences(model, split):
    """Reciprocal rank of the bridge less that of another query's bridge: `[N, S · T]`."""
    lens = logit_lens(model, split, ["bridge"], restrict=True)
    one, other = (1 / (side["bridge"].rank + 1.0) for side in (lens.readings, lens.shuffled))
    return (one - other).flatten(1)


def tracing_differences(model, split):
    """Whether a patch gives the counterfactual's answer, less whether it gives another example's: `[N, S · C]`."""
    real = composition_counterfactuals(split, LARGER.generated.facts, valid=True)
    swapped = []
    for one in real:
        rows, answer = one.exists.nonzero()[:, 0], one.answer.clone()
        answer[rows] = answer[rows.roll(1)]
        swapped.append(replace(one, answer=answer))
    one, other = (causal_tracing(model, split, cf, restrict=True).examples("flipped") for cf in (real, swapped))
    return (one - other).flatten(1)


def scores(differences):
    """z of the mean of each cell; NaN (no example, or never any difference) counts as 0."""
    known = (~differences.isnan()).sum(0)
    mean = differences.nanmean(0)
    deviation = ((differences - mean) ** 2).nanmean(0).sqrt()
    return (mean * known.sqrt() / deviation).nan_to_num(0, posinf=torch.inf)


def random_model(seed):
    torch.manual_seed(seed)
    return LoopedTransformer(LARGER.task, width=32, layers=2, loops=2, heads=2, init_std=0.1).eval()


@pytest.mark.parametrize("differences", [lens_differences, tracing_differences])
def test_a_random_model_gives_nothing_above_its_floor_where_a_planted_one_does(differences):
    split = one_query_per_first_fact()
    assert len(split) > 150
    random = torch.cat([scores(differences(random_model(seed), split)) for seed in SEEDS])
    assert (random != 0).float().mean() > 0.5  # the model does say something
    threshold = NormalDist().inv_cdf(1 - 0.01 / len(random))
    assert random.max() < threshold
    found = scores(differences(planted("bridge", LARGER.task, LARGER.generated.facts).model, split)) > threshold
    expected = READABLE["bridge"] if differences is lens_differences else DECISIVE["bridge"]
    assert torch.equal(found.view(5, 3), mask(expected))
