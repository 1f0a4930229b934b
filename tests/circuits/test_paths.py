"""Path patching against its definition, attribution against finite differences, and both on planted circuits."""

import math

import pytest
import torch
from test_ablations import ANSWER, OTHER, REGIME, SPLIT, CoreCalls, clean_logits, entry, hook, make, watch_rows, written

from grok.circuits.ablations import ablation
from grok.circuits.attribution import agreement, attribution_patching, exact_patching
from grok.circuits.counterfactuals import composition_counterfactuals
from grok.circuits.nodes import Node, nodes_of
from grok.circuits.paths import path_patching
from grok.circuits.planted import planted
from grok.data import NextToken, Split, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer
from grok.models.steps import pick


def place(node):
    return (slice(None), node.position) if node.component == "mlp" else (slice(None), *entry(node))


def sent(model, node, clean, other):
    """`[N, D]` change of what a node writes, by the output weights of a head."""
    change = other[hook(node)][place(node)] - clean[hook(node)][place(node)]
    if node.component == "mlp":
        return change
    head, size = int(node.component[4:]), change.shape[1]
    weight = model.blocks[node.step % len(model.blocks)].attn.out.weight
    return change @ weight[:, head * size : (head + 1) * size].T


def one_path(model, split, sender, receiver, clean, other):
    """Logits `[N, V]` at the answer after one path is patched: the definition, with two whole forward passes."""
    change = sent(model, sender, clean, other)
    if receiver == "logits":
        last = model.states(split.inputs)[-1]["resid"].clone()
        last[:, sender.position] += change
        return pick(model.readout({"resid": last}), split.at[:, :1])[:, 0]
    read = f"steps.{receiver.step}.hook_resid_{'mid' if receiver.component == 'mlp' else 'pre'}"

    def send(name, value):
        if name == read:
            value = value.clone()
            value[:, sender.position] += change
        kept[name] = value
        return value

    def receive(name, value):
        if name == hook(receiver):
            value = value.clone()
            value[place(receiver)] = kept[name][place(receiver)]
        return value

    kept = {}
    model(split.inputs, tap=send)
    return pick(model(split.inputs, tap=receive), split.at[:, :1])[:, 0]


def is_earlier(sender, receiver):
    """In the order in which a block computes; the definition says nothing of paths backwards."""
    if receiver == "logits":
        return True
    if sender.step == receiver.step:
        return sender.component != "mlp" and receiver.component == "mlp"
    return sender.step < receiver.step


OPTIONS = [{"layers": 2, "loops": 1}, {"layers": 1, "causal": False, "norm": "rms"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_path_patching_equals_its_definition(options):
    model = make(**options)
    split, other = SPLIT.take(slice(0, 10)), OTHER.take(slice(0, 10))
    nodes = nodes_of(model, split)
    clean, there, before = written(model, split.inputs), written(model, other.inputs), clean_logits(model, split)
    grid = path_patching(model, split, other, measure="logit", floor=False, batch=70)
    assert grid.axes["receiver"][-1] == "logits"
    for row, sender in enumerate(nodes):
        for column, receiver in enumerate([*nodes, "logits"]):
            found = grid.values[row, column]
            if not is_earlier(sender, receiver):
                assert found.isnan()
                continue
            after = one_path(model, split, sender, receiver, clean, there)
            drop = (before - after).gather(1, ANSWER[:10]).float()
            # No direct path: the definition finds nothing, and the grid says so.
            torch.testing.assert_close(found.nan_to_num(), drop.mean(), atol=1e-5, rtol=1e-4)
            assert not found.isnan() or drop.abs().max() < 1e-9
    assert grid.values.isnan().any(1).any()
    assert (grid.values.nan_to_num().abs() > 1e-3).sum() > len(nodes)


@torch.no_grad()
def test_direct_effects_of_all_nodes_add_up_without_a_norm():
    model = make(norm="none")
    direct = path_patching(model, SPLIT, OTHER, receivers=["logits"], measure="logit", floor=False)
    last = [node for node in nodes_of(model, SPLIT) if node.position == 2]
    shown = [not value for value in direct.values[:, 0].isnan().tolist()]
    assert shown == [node in last for node in nodes_of(model, SPLIT)]
    states, others = model.states(SPLIT.inputs), model.states(OTHER.inputs)
    change = others[-1]["resid"] - others[0]["resid"] - states[-1]["resid"] + states[0]["resid"]
    drop = -model.readout({"resid": change})[:, 2].gather(1, ANSWER).mean().float()
    torch.testing.assert_close(direct.values.nansum(), drop, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_core_calls_send_and_receive_all_their_streams():
    model = CoreCalls(linear=False)
    nodes = nodes_of(model, SPLIT)
    grid = path_patching(model, SPLIT, OTHER, measure="logit", floor=False)
    states, others = model.states(SPLIT.inputs), model.states(OTHER.inputs)

    def plus(state, change, position):
        return {name: x.index_add(1, torch.tensor([position]), change[name][:, None]) for name, x in state.items()}

    for row, sender in enumerate(nodes):
        change = {
            name: (
                (others[sender.step + 1][name] - others[sender.step][name])
                - (states[sender.step + 1][name] - states[sender.step][name])
            )[:, sender.position]
            for name in model.streams
        }
        for column, receiver in enumerate(nodes):
            if sender.step >= receiver.step:
                assert grid.values[row, column].isnan()
                continue
            step, position = receiver.step, receiver.position
            changed = plus(states[step], change, sender.position)
            output = model.run(changed, step, step + 1)
            received = {name: (output[name] - changed[name])[:, position] for name in model.streams}
            was = {name: (states[step + 1][name] - states[step][name])[:, position] for name in model.streams}
            after = plus(states[step + 1], {name: received[name] - was[name] for name in was}, position)
            logits = model.readout(model.run(after, step + 1))[:, 2]
            drop = (clean_logits(model) - logits).gather(1, ANSWER).mean().float()
            torch.testing.assert_close(grid.values[row, column], drop, atol=1e-5, rtol=1e-4)


def edges_of(made):
    """(sender, receiver) of every planted direct path."""
    path = {
        "bridge": [("0.head0@r1", "1.mlp@r1"), ("1.mlp@r1", "2.head0@r2"), ("2.head0@r2", "3.mlp@r2")],
        "memory": [("0.head0@r2", "1.mlp@r2"), ("0.head1@r2", "1.mlp@r2")],
    }
    ends = {"bridge": [("3.mlp@r2", "logits")], "memory": [("1.mlp@r2", "logits")]}
    return {edge for name in path if made.circuit in (name, "both") for edge in path[name] + ends[name]}


@pytest.mark.parametrize("circuit", ["bridge", "memory", "both"])
def test_path_patching_shows_exactly_the_planted_edges(circuit):
    made = planted(circuit, REGIME.task, REGIME.generated.facts)
    grid = path_patching(made.model, SPLIT, OTHER, measure="logit", floor=False)
    shown = {labels for labels, cell in grid.cells() if cell["value"] not in (None, 0)}
    assert shown == edges_of(made)
    if circuit != "both":
        changed = path_patching(made.model, SPLIT, OTHER, measure="changed")
        above = changed.above_floor
        named = {
            labels
            for labels, _ in changed.cells()
            if above[tuple(axis.index(label) for axis, label in zip(changed.axes.values(), labels, strict=True))]
        }
        assert named == edges_of(made)


def test_path_patching_flips_the_answer_to_the_counterfactual_one():
    made = planted("bridge", REGIME.task, REGIME.generated.facts)
    r1 = composition_counterfactuals(SPLIT, REGIME.generated.facts, valid=True)[1]
    grid = path_patching(made.model, SPLIT, r1, measure="flipped", floor=False)
    assert grid["1.mlp@r1", "2.head0@r2"] == grid["2.head0@r2", "3.mlp@r2"] == grid["3.mlp@r2", "logits"] == 1
    assert grid["0.head0@r1", "1.mlp@r1"] == 0  # what it moves is h, the same in both queries


@torch.no_grad()
def test_batch_bounds_memory_and_answers_may_be_anywhere(monkeypatch):
    encoding = NextToken(pad=5, supervise_eos=True)
    regime = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, encoding=encoding)
    two_hop, atomic = (regime.splits[name].take(slice(0, 6)) for name in ("train_inferred", "id_atomic"))
    together = (
        torch.cat([getattr(s, name) for s in (atomic, two_hop)]) for name in ("inputs", "at", "targets", "mask")
    )
    split = Split(*together, two_hop.positions)
    order = torch.arange(12).roll(1)
    other = OTHER.take(slice(0, 12))
    other = type(other)("other", split.inputs[order], (0,), split.targets[order, 0], torch.ones(12, dtype=torch.bool))
    model, rows = make(regime.task, layers=2, loops=1), []
    whole = path_patching(model, split, other)
    clean, there = written(model, split.inputs), written(model, other.inputs)
    sender, receiver = Node(0, "head1", 0), Node(1, "head0", 1)
    logits = clean_logits(model, split) - one_path(model, split, sender, receiver, clean, there)
    drop = (logits.gather(1, split.targets[:, :1]) - logits.gather(1, other.answer[:, None])).mean().float()
    torch.testing.assert_close(torch.tensor(whole["0.head1@h", "1.head0@r1"]), drop, atol=1e-5, rtol=1e-4)
    assert whole.n[whole.axes["sender"].index("0.mlp@r1"), -1] == 6  # the examples whose answer is read there
    watch_rows(monkeypatch, rows)
    for batch in (5, 50):
        rows.clear()
        pieces = path_patching(model, split, other, batch=batch)
        assert batch - 12 < max(rows) <= batch
        torch.testing.assert_close(whole.values, pieces.values, atol=1e-4, rtol=1e-4, equal_nan=True)
        torch.testing.assert_close(whole.floor, pieces.floor, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_paths_of_a_random_model_are_not_above_the_floor():
    torch.manual_seed(1)
    model = LoopedTransformer(REGIME.task, width=32, layers=1, loops=2, heads=2, init_std=0.1)
    split = REGIME.splits["train_inferred"]
    order = torch.arange(len(split)).roll(1)
    other = type(OTHER)("other", split.inputs[order], (0,), split.targets[order, 0], torch.ones(len(split)).bool())
    grid = path_patching(model, split, other, measure="changed")
    paths = ~grid.values.isnan()
    assert grid.values[paths].max() > 0.05
    assert grid.above_floor[paths].float().mean() < 0.1


def effect_of_a_small_push(model, node, source, clean, size=1e-5):
    """Central difference of logit(answer) − logit(other answer) along counterfactual − clean."""
    found = []
    for sign in (1, -1):

        def tap(name, value, sign=sign):
            if name == hook(node):
                value = value.clone()
                value[place(node)] += sign * size * (source[name] - clean[name])[place(node)]
            return value

        logits = model(SPLIT.inputs, tap=tap)[:, 2]
        found.append(logits.gather(1, ANSWER)[:, 0] - logits.gather(1, OTHER.answer[:, None])[:, 0])
    return ((found[0] - found[1]) / (2 * size)).mean()


@pytest.mark.parametrize("options", [{}, {"positions": "rope", "re_embed": True}, {"causal": False}], ids=str)
@torch.no_grad()
def test_attribution_is_the_derivative_of_exact_patching(options):
    model = make(**options)
    grid = attribution_patching(model, SPLIT, OTHER, batch=11)
    clean, source = written(model, SPLIT.inputs), written(model, OTHER.inputs)
    for index, node in enumerate(nodes_of(model, SPLIT)):
        fall = -effect_of_a_small_push(model, node, source, clean).float()
        torch.testing.assert_close(grid.values[index], fall, atol=1e-4, rtol=1e-4)


def test_attribution_is_exact_where_the_model_is_linear():
    core = CoreCalls(linear=True)
    for model in (core, make(layers=1, loops=1, norm="none", activation="identity")):
        estimate, exact = attribution_patching(model, SPLIT, OTHER), exact_patching(model, SPLIT, OTHER)
        torch.testing.assert_close(estimate.values, exact.values, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(estimate.floor, exact.floor, atol=1e-4, rtol=1e-4)
        assert agreement(estimate, exact) == pytest.approx(1)
        assert exact.values.abs().max() > 0.02
    curved = make()
    assert agreement(attribution_patching(curved, SPLIT, OTHER), exact_patching(curved, SPLIT, OTHER)) < 0.999


@pytest.mark.parametrize("circuit", ["bridge", "memory", "both"])
def test_attribution_finds_the_planted_nodes(circuit):
    made = planted(circuit, REGIME.task, REGIME.generated.facts)
    estimate, exact = attribution_patching(made.model, SPLIT, OTHER), exact_patching(made.model, SPLIT, OTHER)
    nodes = nodes_of(made.model, SPLIT)
    for grid in (estimate, exact):
        assert {node for node, value in zip(nodes, grid.values.tolist(), strict=True) if value} == set(made.nodes)
    assert agreement(estimate, exact) > 0.95


def test_attribution_leaves_the_model_alone():
    model = make(dropout=0.5).train()
    model.requires_grad_(False)
    frozen = attribution_patching(model, SPLIT, OTHER)
    model.requires_grad_(True)
    with torch.inference_mode():  # as in Lightning's validation
        queries = SPLIT.take(torch.arange(len(SPLIT)))
        found = attribution_patching(model, queries, OTHER)
    assert torch.equal(frozen.values, found.values)
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_agreement_is_pearsons_correlation():
    model = make()
    one = ablation(model, SPLIT, how="mean", measure="logit")
    other = ablation(model, SPLIT, how="mean", measure="loss")
    x, y = one.values.double(), other.values.double()
    x, y = x - x.mean(), y - y.mean()
    assert agreement(one, other) == pytest.approx(float((x * y).sum() / (x.norm() * y.norm())))
    constant = ablation(model, SPLIT, how="mean", measure="flipped")  # no other query, no value
    assert math.isnan(agreement(one, constant))
    with pytest.raises(BadInput, match="axes"):
        agreement(one, ablation(model, SPLIT, [Node(0, "mlp", 0)]))


def test_what_does_not_exist_is_named():
    model = make()
    with pytest.raises(BadInput, match=r"receivers='answer'.*'logits'"):
        path_patching(model, SPLIT, OTHER, receivers=["answer"])
    for name in ("senders", "receivers"):
        with pytest.raises(BadInput, match=rf"{name}=\[\]"):
            path_patching(model, SPLIT, OTHER, **{name: []})
    with pytest.raises(BadInput, match="no such node"):
        path_patching(model, SPLIT, OTHER, senders=[Node(9, "mlp", 0)])
    with pytest.raises(BadInput, match=r"measure='none'"):
        path_patching(model, SPLIT, OTHER, measure="none")
    with pytest.raises(BadInput, match="no such node"):
        attribution_patching(model, SPLIT, OTHER, [Node(0, "step9", 0)])
