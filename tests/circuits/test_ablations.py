"""Folded ablations are what one forward pass per node gives; the planted nodes, and only they, matter."""

from dataclasses import replace

import pytest
import torch

from grok.circuits.ablations import ablate, ablation, edge_ablation, random_change
from grok.circuits.counterfactuals import other_queries, same_query
from grok.circuits.nodes import Edge, Node, nodes_of
from grok.circuits.planted import planted
from grok.data import NextToken, Split, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer
from grok.models.steps import StepModel, pick
from grok.models.transformer import Block

REGIME = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, ood=0.1)
SPLIT = REGIME.splits["train_inferred"].take(slice(0, 24))
ANSWER = SPLIT.targets[:, :1]
OTHER = other_queries(SPLIT)[0]
VARIANTS = [
    {},
    {"layers": 4, "loops": 1},
    {"positions": "rope", "re_embed": True},
    {"norm": "rms", "mlp": "swiglu", "tied": False},
    {"mlp": "none"},
    {"causal": False},
]


def make(task=REGIME.task, **options) -> LoopedTransformer:
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 2, "loops": 2, "heads": 2, "init_std": 0.3}
    return LoopedTransformer(task, **{**sizes, **options}).double().eval()


class CoreCalls(StepModel):
    """Three core calls that show no heads and no MLP to a tap: each mixes all positions, linearly or not."""

    causal = False
    streams = ("resid", "memory")

    def __init__(self, linear: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.nn.Parameter(torch.randn(*shape, generator=generator).double() / 3)  # noqa: E731
        self.task, self.linear = REGIME.task, linear
        self.embedding, self.mix, self.map = draw(REGIME.task.tokens, 6), draw(3, 3), draw(6, 6)

    @property
    def steps(self):
        return [self.step] * 3

    def step(self, state, at=None, tap=None, memory=None):
        x = self.mix @ (state["resid"] + state["memory"]) @ self.map
        x = x if self.linear else x.tanh()
        after = {"resid": state["resid"] + x, "memory": state["memory"] - x.flip(1)}
        return after if at is None else {name: pick(stream, at) for name, stream in after.items()}

    def embed(self, inputs, position_ids=None):
        return {"resid": self.embedding[inputs], "memory": torch.zeros(*inputs.shape, 6).double()}

    def readout(self, state, norm=True):
        return state["resid"] @ self.embedding.T


def hook(node):
    return f"steps.{node.step}." + ("hook_mlp_out" if node.component == "mlp" else "attn.hook_z")


def entry(node):
    return node.position if node.component == "mlp" else (node.position, int(node.component[4:]))


def written(model, inputs):
    """Values of all hooks in a forward pass."""
    values = {}
    model(inputs, tap=lambda name, value: values.setdefault(name, value))
    return values


def one_by_one(model, split, nodes, source):
    """Logits `[N, V]` at the answer with what `nodes` write taken from `source`: the definition, without folding."""

    def tap(name, value):
        value = value.clone()
        for node in nodes:
            if name == hook(node):
                place = (slice(None), *([entry(node)] if node.component == "mlp" else entry(node)))
                value[place] = source[name][place]
        return value

    return pick(model(split.inputs, position_ids=split.position_ids, tap=tap), split.at[:, :1])[:, 0]


def watch_rows(monkeypatch, rows):
    """Note the number of rows that every embedding, block and read-out sees."""

    def watched(method):
        def watching(self, x, *arguments, **options):
            rows.append(len(x["resid"] if isinstance(x, dict) else x))
            return method(self, x, *arguments, **options)

        return watching

    for owner, name in ((LoopedTransformer, "readout"), (LoopedTransformer, "embed"), (Block, "forward")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))


def source_of(model, how, split=SPLIT, other=OTHER):
    values = written(model, other.inputs if how == "resample" else split.inputs)
    change = {"zero": torch.zeros_like, "mean": lambda x: x.mean(0, keepdim=True).expand_as(x), "resample": torch.clone}
    return {name: change[how](value) for name, value in values.items()}


def clean_logits(model, split=SPLIT):
    return pick(model(split.inputs, position_ids=split.position_ids), split.at[:, :1])[:, 0]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
@torch.no_grad()
def test_folded_ablations_equal_one_forward_pass_per_node(options, how):
    model = make(**options)
    nodes = nodes_of(model, SPLIT)
    sets = [*([node] for node in nodes), nodes[:3], [nodes[1], nodes[-1]], []]
    outcome, source, clean = ablate(model, SPLIT, sets, how, OTHER), source_of(model, how), clean_logits(model)
    for index, parts in enumerate(sets):
        expected = one_by_one(model, SPLIT, parts, source)
        drop = (clean - expected).gather(1, ANSWER)[:, 0].float()
        torch.testing.assert_close(outcome.effect("logit")[:, index], drop, atol=1e-6, rtol=1e-5)
        changed = (expected.argmax(1) != clean.argmax(1)).float()
        assert outcome.effect("changed")[:, index].tolist() == changed.tolist()
        flipped = (expected.argmax(1) == OTHER.answer).float()
        assert outcome.effect("flipped")[:, index].tolist() == flipped.tolist()
        right = ((clean.argmax(1) == ANSWER[:, 0]).float() - (expected.argmax(1) == ANSWER[:, 0]).float()).tolist()
        assert outcome.effect("accuracy")[:, index].tolist() == right
        loss = clean.log_softmax(1) - expected.log_softmax(1)
        torch.testing.assert_close(
            outcome.effect("loss")[:, index], loss.gather(1, ANSWER)[:, 0].float(), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_zero_ablation_of_a_head_is_zeroing_its_part_of_the_output_weights():
    model = make(layers=3, loops=1)
    outcome = ablate(model, SPLIT, [[Node(1, "head1", position) for position in range(3)]], "zero")
    clean = clean_logits(model)
    model.blocks[1].attn.out.weight[:, 8:] = 0
    expected = (clean - clean_logits(model)).gather(1, ANSWER).float()
    torch.testing.assert_close(outcome.effect("logit"), expected)
    assert expected.abs().max() > 0.1


@torch.no_grad()
def test_all_nodes_from_another_query_leave_its_writes_on_the_own_embedding():
    model = make(norm="none")
    outcome = ablate(model, SPLIT, [nodes_of(model, SPLIT)], "resample", OTHER)
    own, there = model.embed(SPLIT.inputs)["resid"], model.states(OTHER.inputs)
    last = own + there[-1]["resid"] - there[0]["resid"]
    expected = model.readout({"resid": last})[:, 2]
    drop = (clean_logits(model) - expected).gather(1, ANSWER).float()
    torch.testing.assert_close(outcome.effect("logit"), drop, atol=1e-5, rtol=1e-5)


def test_replacing_by_itself_or_nothing_changes_nothing():
    model = make()
    nodes = nodes_of(model, SPLIT)
    for parts, how in ((nodes, "resample"), ([], "zero")):
        grid = ablation(model, SPLIT, [parts], how, "logit", same_query(SPLIT)[0])
        assert grid.values.abs().max() < 1e-5
        assert grid.floor.abs().max() < 1e-5


def test_the_nodes_are_those_that_the_answer_can_see():
    parts = ("head0", "head1", "mlp")
    assert nodes_of(make(layers=1), SPLIT) == [
        *(Node(0, part, position) for position in range(3) for part in parts),
        *(Node(1, part, 2) for part in parts),
    ]
    assert {node.component for node in nodes_of(make(mlp="none"), SPLIT)} == {"head0", "head1"}
    encoding = NextToken(pad=6)
    regime = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, encoding=encoding)
    for causal, count in ((True, 3), (False, 6)):
        model = make(regime.task, causal=causal)
        found = nodes_of(model, regime.splits["train_inferred"])
        assert sorted({node.position for node in found if node.step == 0}) == list(range(count))
        assert {node.position for node in found if node.step == 3} == {2}
    assert nodes_of(CoreCalls(False), SPLIT) == [
        *(Node(step, "step", position) for step in (0, 1) for position in range(3)),
        Node(2, "step", 2),
    ]


@pytest.mark.parametrize("options", [{}, {"positions": "rope"}, {"causal": False}], ids=str)
@torch.no_grad()
def test_queries_may_be_padded_have_explicit_positions_and_differ_in_where_the_answer_is(options):
    regime = TwoHopComposition(
        entities=20, relations=5, out_degree=4, phi=2, iid=0.2, encoding=NextToken(pad=6, supervise_eos=True)
    )
    two_hop, atomic = (regime.splits[name].take(slice(0, 5)) for name in ("train_inferred", "id_atomic"))
    together = (
        torch.cat([getattr(s, name) for s in (atomic, two_hop)]) for name in ("inputs", "at", "targets", "mask")
    )
    split = Split(*together, two_hop.positions, position_ids=torch.arange(6).expand(10, -1).flip(1))
    model = make(regime.task, **options)
    nodes = nodes_of(model, split)
    assert {node.position for node in nodes if node.step == 3} == {1, 2}
    outcome = ablate(model, split, [[node] for node in nodes], "zero", batch=23)
    source, clean = source_of(model, "zero", split), clean_logits(model, split)
    for index, node in enumerate(nodes):
        drop = (clean - one_by_one(model, split, [node], source)).gather(1, split.targets[:, :1])[:, 0].float()
        torch.testing.assert_close(outcome.effect("logit")[:, index], drop, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
@torch.no_grad()
def test_a_core_call_is_a_node_of_all_its_streams(how):
    model = CoreCalls(linear=False)
    nodes = nodes_of(model, SPLIT)
    outcome = ablate(model, SPLIT, [[node] for node in nodes], how, OTHER)
    states = model.states(SPLIT.inputs)
    given = model.states(OTHER.inputs) if how == "resample" else states
    for index, node in enumerate(nodes):
        after = {name: stream.clone() for name, stream in states[node.step + 1].items()}
        for name in model.streams:
            write = (given[node.step + 1][name] - given[node.step][name])[:, node.position]
            write = {"zero": torch.zeros_like(write), "mean": write.mean(0), "resample": write}[how]
            after[name][:, node.position] = states[node.step][name][:, node.position] + write
        expected = model.readout(model.run(after, node.step + 1))[:, 2]
        drop = (clean_logits(model) - expected).gather(1, ANSWER)[:, 0].float()
        torch.testing.assert_close(outcome.effect("logit")[:, index], drop, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
@torch.no_grad()
def test_edge_ablation_replaces_one_entry_of_the_pattern(how):
    model = make()
    edges = [Edge(step, head, source, 2) for step in range(4) for head in range(2) for source in range(3)]
    grid = edge_ablation(model, SPLIT, edges, how, "logit", OTHER)
    values, clean = source_of(model, how), clean_logits(model)
    for index, edge in enumerate(edges):
        place = (slice(None), edge.head, edge.target, edge.source)

        def tap(name, value, edge=edge, place=place):
            if name == f"steps.{edge.step}.attn.hook_pattern":
                value = value.clone()
                value[place] = values[name][place]
            return value

        drop = (clean - model(SPLIT.inputs, tap=tap)[:, 2]).gather(1, ANSWER).float().mean()
        torch.testing.assert_close(grid.values[index], drop, atol=1e-6, rtol=1e-5)
    assert grid.axes["edge"][:2] == ("0.head0:h→r2", "0.head0:r1→r2")
    assert not grid.floor.isnan().any()


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_batch_bounds_memory_and_changes_no_result(how, monkeypatch):
    model, rows = make(), []
    whole = ablation(model, SPLIT, how=how, measure="logit")
    watch_rows(monkeypatch, rows)
    for batch in (7, 60):
        rows.clear()
        pieces = ablation(model, SPLIT, how=how, measure="logit", batch=batch)
        assert batch - 24 < max(rows) <= batch
        torch.testing.assert_close(whole.values, pieces.values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole.floor, pieces.floor, atol=1e-5, rtol=1e-5)


def test_the_floor_is_a_random_change_of_the_same_size_that_belongs_to_the_query():
    change = torch.randn(50, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    change[0] = 0
    query = torch.arange(50)
    drawn = random_change(change, query, 0, 1)
    torch.testing.assert_close(drawn.norm(dim=-1), change.norm(dim=-1))
    assert torch.equal(drawn.flip(0), random_change(change.flip(0), query.flip(0), 0, 1))
    assert not torch.equal(drawn[1:], random_change(change, query, 1, 1)[1:])
    cosine = torch.nn.functional.cosine_similarity(drawn[1:], change[1:], dim=-1)
    assert abs(float(cosine.mean())) < 0.1
    assert float((drawn[1:] / drawn[1:].norm(dim=-1, keepdim=True)).mean((0, 1, 2)).abs().max()) < 0.1
    model, backwards = make(), torch.arange(len(SPLIT)).flip(0)
    one, other = (ablation(model, split, how="mean", measure="logit") for split in (SPLIT, SPLIT.take(backwards)))
    torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.floor, other.floor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("circuit", ["bridge", "memory", "both"])
@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_only_planted_nodes_matter_and_they_are_above_the_floor(circuit, how):
    made = planted(circuit, REGIME.task, REGIME.generated.facts)
    nodes = nodes_of(made.model, SPLIT)
    grid = ablation(made.model, SPLIT, how=how, measure="logit")
    matter = {node for node, value in zip(nodes, grid.values.tolist(), strict=True) if value > 0}
    assert matter == set(made.nodes)
    changed = ablation(made.model, SPLIT, how=how)
    above = {node for node, flag in zip(nodes, changed.above_floor.tolist(), strict=True) if flag}
    if circuit != "both":  # where the two circuits stand in for each other
        assert above == set(made.nodes)
    others = [index for index, node in enumerate(nodes) if node not in made.nodes]
    assert changed.values[others].eq(0).all()


@pytest.mark.parametrize("circuit", ["bridge", "memory"])
def test_only_planted_attention_edges_matter(circuit):
    made = planted(circuit, REGIME.task, REGIME.generated.facts)
    edges = [
        Edge(i, head, source, to) for i in range(4) for head in (0, 1) for to in range(3) for source in range(to + 1)
    ]
    grid = edge_ablation(made.model, SPLIT, edges, "zero")
    expected = {
        "bridge": {Edge(0, 0, 0, 1), Edge(2, 0, 1, 2)},
        "memory": {Edge(0, 0, 1, 2), Edge(0, 1, 0, 2)},
    }[circuit]
    assert {edge for edge, flag in zip(edges, grid.above_floor.tolist(), strict=True) if flag} == expected
    assert {edge for edge, value in zip(edges, grid.values.tolist(), strict=True) if value} == expected


@pytest.mark.parametrize("how", ["mean", "resample"])
def test_ablations_of_a_random_model_are_not_above_the_floor(how):
    torch.manual_seed(1)
    model = LoopedTransformer(REGIME.task, width=32, layers=2, loops=2, heads=2, init_std=0.15)
    grids = [ablation(model, REGIME.splits["train_inferred"], how=how, seed=seed) for seed in range(4)]
    # Nodes do change the prediction, but no more than any push as hard; a few of 30 cells are above by chance.
    assert all(grid.values.max() > 0.05 for grid in grids)
    assert torch.stack([grid.above_floor for grid in grids]).float().mean() < 0.1


def test_training_mode_and_gradients_are_left_alone():
    model = make(dropout=0.5).train()
    first, second = (ablation(model, SPLIT, how="mean", measure="logit").values for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_examples_without_another_query_do_not_count():
    lonely = SPLIT.take(torch.zeros(4, dtype=torch.int64))
    grid = ablation(make(), lonely, how="resample")
    assert grid.n.eq(0).all()
    assert grid.values.isnan().all()


def test_what_does_not_exist_is_named():
    model = make()
    for wrong in (Node(4, "mlp", 0), Node(0, "head2", 0), Node(0, "mlp", 3), Node(-1, "mlp", 0), Edge(0, 5, 0, 1)):
        with pytest.raises(BadInput, match=r"no such node; step 0 has head0, head1, mlp; .*positions are 0 to 2"):
            ablate(model, SPLIT, [[wrong]])
    with pytest.raises(BadInput, match=r"how='none'.*zero, mean, resample"):
        ablation(model, SPLIT, how="none")
    with pytest.raises(BadInput, match=r"measure='none'.*changed, accuracy"):
        ablation(model, SPLIT, measure="none")
    with pytest.raises(BadInput, match=r"nodes=\[\]"):
        ablation(model, SPLIT, [])
    with pytest.raises(BadInput, match=r"examples=0"):
        ablation(model, SPLIT.take(slice(0, 0)))
    values = Split(SPLIT.inputs, SPLIT.at, SPLIT.targets.float(), SPLIT.mask, SPLIT.positions)
    with pytest.raises(BadInput, match="answers are values"):
        ablation(model, values)


@pytest.mark.parametrize("measure", ["flipped", "logit_difference"])
@pytest.mark.parametrize("how", ["mean", "resample"])
@torch.no_grad()
def test_the_floor_of_an_edge_looks_for_the_same_two_answers(how, measure):
    model = make()
    edges = [Edge(step, head, source, 2) for step in range(4) for head in range(2) for source in range(3)]
    other = replace(OTHER, answer=clean_logits(model).argmax(1))  # so that `flipped` is not 0 everywhere
    grid = edge_ablation(model, SPLIT, edges, how, measure, other)
    same = other_queries(SPLIT, same_answer=True)[0]
    assert 0 < same.exists.sum() <= len(SPLIT)
    source, clean = written(model, same.inputs), clean_logits(model)

    def difference(logits):
        return (logits.gather(1, ANSWER) - logits.gather(1, other.answer[:, None]))[:, 0]

    for index, edge in enumerate(edges):
        place = (slice(None), edge.head, edge.target, edge.source)

        def tap(name, value, edge=edge, place=place):
            if name == f"steps.{edge.step}.attn.hook_pattern":
                value = value.clone()
                value[place] = source[name][place]
            return value

        after = model(SPLIT.inputs, tap=tap)[:, 2]
        flipped = (after.argmax(1) == other.answer).double()
        expected = flipped if measure == "flipped" else difference(clean) - difference(after)
        expected = expected[same.exists].mean().float()
        torch.testing.assert_close(grid.floor[index], expected, atol=1e-5, rtol=1e-5)
    assert grid.floor.abs().max() > 1e-3
