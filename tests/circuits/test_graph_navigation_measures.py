"""Measures of graph navigation, of models that walk by a table: what is right and which mistake is made is known."""

import pytest
import torch

from grok.circuits import measures
from grok.circuits.graph_navigation import walks_of
from grok.circuits.navigation_rule import follows_rule, next_node_rule
from grok.data import GraphNavigation
from grok.models import LoopedTransformer, StepModel

REGIME = GraphNavigation("hierarchical", layers=5, width=6, edge_prob=0.3, seed=1, test_size=80)
SPLIT = REGIME.splits["held_out_pairs"]
GRAPH, (TARGET, PATH, NO_PATH, END) = REGIME.graph, REGIME.queries.special


class ByTable(StepModel):
    """Takes the next token from `table[goal, last token]`."""

    steps = ()

    def __init__(self, table):
        super().__init__()
        self.task, self.table = REGIME.task, torch.nn.Parameter(table.float(), requires_grad=False)

    def embed(self, inputs, position_ids=None):
        return {"resid": torch.stack([inputs[:, 1:2].expand_as(inputs), inputs], 2)}

    def readout(self, state, norm=True):
        goal, last = state["resid"].unbind(2)
        return torch.nn.functional.one_hot(self.table[goal, last].long(), REGIME.task.outputs).float() * 50


def right_table():
    """A walk to the goal and `PATH`, or to a dead end and `NOPATH`."""
    nodes = len(GRAPH)
    table = torch.full((nodes + 4, nodes + 4), END)
    for goal in range(nodes):
        for node in range(nodes):
            after = GRAPH.adjacency[node].nonzero()[:, 0].tolist()
            good = [n for n in after if GRAPH.distance[n, goal] >= 0] or after
            table[goal, node] = PATH if node == goal else good[-1] if good else NO_PATH
    return table


def grids_of(table, split=SPLIT):
    return {grid.name: grid for grid in measures(REGIME, ByTable(table), "held_out_pairs", split, 512)}


def test_a_model_that_is_right():
    grids = grids_of(right_table())
    assert grids["verdict"].values.tolist() == [1, 1, 1]
    assert grids["verdict"].n.tolist() == [len(SPLIT), len(SPLIT) // 2, len(SPLIT) // 2]
    assert grids["edge_accuracy"]["all",] == 1
    assert grids["outcome"].values.tolist() == [1, 0, 0]
    assert set(grids["reached_by_gap"].axes["gap"]) <= {"2", "3", "4"}
    assert (grids["reached_by_gap"].values == 1).all()
    assert (grids["walk_length"].values == grids["walk_length"].values[0]).all()  # of layers: all have the same
    gap = GRAPH.layer[SPLIT.truth["goal"]] - GRAPH.layer[SPLIT.truth["start"]]
    assert grids["walk_length"]["shortest",] == pytest.approx(float(gap[: len(gap) // 2].float().mean()))
    assert grids["samples_by_temperature"].values[0].tolist() == [1] * 7  # the table is sure of itself
    assert grids["samples_by_temperature"].values[1].tolist() == pytest.approx([0.01] * 7)


def test_sampled_walks_do_not_depend_on_how_many_are_computed_at_once():
    found = [
        {grid.name: grid for grid in measures(REGIME, one_layer(layers=2), "x", SPLIT, batch)}["samples_by_temperature"]
        for batch in (512, 7)
    ]
    assert torch.equal(found[0].values, found[1].values)
    assert found[0]["unique_valid", "3"] < 0.5


def test_missteps_and_failures_to_plan_are_told_apart():
    connected = SPLIT.take(slice(0, len(SPLIT) // 2))
    start, goal = connected.truth["start"], connected.truth["goal"]
    nearest = GRAPH.adjacency.nonzero()
    planless = right_table()  # takes the first successor, whatever the goal
    for node, after in reversed(nearest.tolist()):
        planless[torch.arange(len(planless)) != node, node] = after
    walks = walks_of(REGIME, ByTable(planless), connected, batch=7)
    assert walks.exists[walks.nodes >= 0].all()
    assert not walks.misstep.any()
    by_hand = []
    for node, aim in zip(start.tolist(), goal.tolist(), strict=True):
        while node != aim and GRAPH.adjacency[node].any():
            node = int(GRAPH.adjacency[node].nonzero()[0])
        by_hand.append(node == aim)
    assert walks.reached.tolist() == by_hand
    assert 0 < sum(by_hand) < len(by_hand)
    share = sum(by_hand) / len(by_hand)
    assert grids_of(planless)["outcome"].values.tolist() == pytest.approx([share, 0, 1 - share])
    astray = right_table()
    astray[:-4, :6] = torch.arange(len(GRAPH))[:, None]  # from the first layer straight to the goal
    walks = walks_of(REGIME, ByTable(astray), connected)
    assert torch.equal(walks.misstep, start < 6)
    assert torch.equal(walks.reached, start >= 6)
    assert (walks.verdict == PATH).all()  # it says so all the same
    everything = walks_of(REGIME, ByTable(astray), SPLIT)
    edges = (everything.nodes >= 0).sum()
    wrong = (SPLIT.truth["start"] < 6).sum()
    assert grids_of(astray)["edge_accuracy"]["all",] == pytest.approx(float(1 - wrong / edges))


def test_a_model_that_never_ends_has_no_verdict():
    table = torch.zeros(len(GRAPH) + 4, len(GRAPH) + 4, dtype=torch.long)
    walks = walks_of(REGIME, ByTable(table), SPLIT)
    assert (walks.verdict == -1).all()
    assert grids_of(table)["verdict"].values.tolist() == [0, 0, 0]


def test_a_direct_answer_has_a_verdict_and_no_walk():
    regime = GraphNavigation("tree", nodes=15, protocol="direct")
    torch.manual_seed(0)
    model = LoopedTransformer(regime.task, width=8, heads=1, layers=1)
    split = regime.splits["held_out_pairs"]
    grids = {grid.name: grid for grid in measures(regime, model, "held_out_pairs", split, 9)}
    assert set(grids) == {"verdict", "verdict_by_gap"}
    with torch.no_grad():
        said = model(split.inputs, at=split.at)[:, 0].argmax(-1)
    assert grids["verdict"]["all",] == pytest.approx(float((said == split.targets[:, 0]).float().mean()))


def one_layer(**options):
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "layers": 1, "mlp": "none", "bias": False, "init_std": 0.5}
    return LoopedTransformer(REGIME.task, **{**sizes, **options}).eval()


def rank_correlation(x, y):
    """Of two lists, ties at their mean rank."""
    ranks = [[sum(b < a for b in z) + (sum(b == a for b in z) + 1) / 2 for a in z] for z in (x, y)]
    return float(torch.corrcoef(torch.tensor(ranks))[0, 1])


def test_the_rule_is_made_of_the_values_of_goal_and_current_node():
    model, split = one_layer(), SPLIT.take(slice(0, len(SPLIT) // 2))
    assert follows_rule(model)
    assert not follows_rule(one_layer(layers=2))
    assert not follows_rule(one_layer(mlp="mlp"))
    rule, goal_score = next_node_rule(REGIME, model, split, batch=7)
    block, nodes = model.blocks[0], len(GRAPH)
    with torch.no_grad():
        stream = block.norm1(model.embed(split.inputs)["resid"])
        value = stream @ block.attn.qkv.weight[32:].T @ block.attn.out.weight.T  # [N, T, D]
        at_slots = value.gather(1, split.at[..., None].expand(-1, -1, 16))
        both = model.norm(value[:, 1:2] + at_slots) @ model.embedding.weight.T
        own = model(split.inputs, at=split.at)
        of_goal = model.norm(value[:, 1]) @ model.embedding.weight[:nodes].T
    choice, own = both[..., :nodes].argmax(-1), own[..., :nodes].argmax(-1)
    shares = {name: [] for name in rule.axes["share"]}
    for row, goal in enumerate(split.truth["goal"].tolist()):
        steps = int((split.targets[row] < nodes).sum())
        here = split.inputs[row, 2 : 2 + steps]
        shares["agreement"].append((choice[row] == own[row])[:steps].float().mean())
        for name, taken in (("", choice), ("model_", own)):
            edge = GRAPH.adjacency[here, taken[row, :steps]]
            leads = edge & (GRAPH.distance[taken[row, :steps], goal] >= 0)
            shares[f"{name}edge"].append(edge.float().mean())
            shares[f"{name}leads_to_goal"].append(leads.float().mean())
    for name, values in shares.items():
        assert rule[name,] == pytest.approx(float(torch.stack(values).mean()), abs=1e-6)
    by_goal = {}
    for row, goal in enumerate(split.truth["goal"].tolist()):
        known = GRAPH.distance[:, goal] >= 0
        if known.sum() > 3:
            by_goal[goal] = rank_correlation(of_goal[row, known].tolist(), GRAPH.distance[known, goal].tolist())
    assert goal_score["distance",] == pytest.approx(sum(by_goal.values()) / len(by_goal), abs=1e-4)


def test_a_graph_without_far_goals_has_no_correlation_with_distance():
    regime = GraphNavigation("tree", nodes=14, graph_seed=3)
    near = regime.queries.encode(torch.tensor([[0, 5], [0, 6]]), torch.tensor([True, True]), 0)  # three nodes reach it
    torch.manual_seed(0)
    model = LoopedTransformer(regime.task, width=8, heads=1, layers=1, mlp="none")
    assert [grid.name for grid in next_node_rule(regime, model, near)] == ["rule"]


def test_the_rule_is_measured_where_it_can_be():
    names = [
        {grid.name for grid in measures(REGIME, model, "x", SPLIT, 512)} for model in (one_layer(), one_layer(layers=2))
    ]
    assert names[0] - names[1] == {"rule", "goal_score"}
