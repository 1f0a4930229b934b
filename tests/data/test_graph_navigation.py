"""Graph navigation: graphs, walks and pairs against enumeration, and what of an answer is supervised."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import GraphNavigation
from grok.data.navigation_graphs import DEAD_END, NavigationGraph, bernoulli_graph, binary_tree, hierarchical_graph
from grok.errors import BadInput

few = settings(deadline=None, max_examples=15)
kinds = st.sampled_from(
    [
        {"graph": "bernoulli", "nodes": 24, "edge_prob": 0.2},
        {"graph": "hierarchical", "layers": 5, "width": 4, "edge_prob": 0.3},
        {"graph": "tree", "nodes": 31},
    ]
)
regimes = st.builds(
    lambda kind, **rest: GraphNavigation(**kind, **rest),
    kind=kinds,
    nopath=st.sampled_from(["immediate", "deadend"]),
    path_sampling=st.sampled_from(["all_simple", "random_walk", "shortest"]),
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 9),
)


def random_graph(nodes, share, seed):
    drawn = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed)) < share
    return NavigationGraph(drawn.triu(1))


def all_paths(graph, start, goal):
    """Every path as the nodes after its start."""
    if start == goal:
        return [()]
    after = graph.adjacency[start].nonzero()[:, 0].tolist()
    return [(node, *rest) for node in after for rest in all_paths(graph, node, goal)]


def written(regime, split, row):
    """Goal, start, walk, and the rest of the answer, as a reader sees them."""
    tokens = [*regime.tokens(split.inputs[row]), regime.tokens(split.targets[row])[-1]]
    tokens = tokens[: tokens.index("END") + 1]
    walk = [int(token[1:]) for token in tokens[3:] if token[0] == "v"]
    assert tokens[0] == "TARGET"
    return int(tokens[1][1:]), int(tokens[2][1:]), walk, tokens[3 + len(walk) :]


@few
@given(st.integers(2, 9), st.floats(0.1, 0.9), st.integers(0, 10**6))
def test_distances_and_numbers_of_paths(nodes, share, seed):
    graph = random_graph(nodes, share, seed)
    for start in range(nodes):
        for goal in range(nodes):
            lengths = [len(path) for path in all_paths(graph, start, goal)]
            assert graph.distance[start, goal] == min(lengths, default=-1)
            assert graph.longest[start, goal] == max(lengths, default=-1)
            assert graph.paths[start, goal] == len(lengths)


@few
@given(st.integers(4, 9), st.floats(0.3, 0.9), st.integers(0, 10**6))
def test_which_edges_are_on_the_paths_of_pairs(nodes, share, seed):
    graph = random_graph(nodes, share, seed)
    pairs = graph.pairs[0][::2]
    on_paths = {
        edge
        for start, goal in pairs.tolist()
        for path in all_paths(graph, start, goal)
        for edge in zip((start, *path), path, strict=False)
    }
    assert set(map(tuple, graph.on_paths(pairs).nonzero().tolist())) == on_paths


@pytest.mark.parametrize("sampling", ["all_simple", "random_walk", "shortest"])
def test_how_often_each_path_is_walked(sampling):
    #  0 → 1 → 4, 0 → 2 → 3 → 4, 0 → 2 → 4, and a dead end 0 → 5
    graph = NavigationGraph(torch.zeros(6, 6, dtype=torch.bool))
    for edge in ((0, 1), (1, 4), (0, 2), (2, 3), (3, 4), (2, 4), (0, 5)):
        graph.adjacency[edge] = True
    draws = torch.rand(6000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    walks = graph.walks(torch.zeros(6000).long(), torch.full((6000,), 4), sampling, draws)
    paths, counts = walks.unique(dim=0, return_counts=True)
    found = dict(zip(map(tuple, paths.tolist()), (counts / 6000).tolist(), strict=True))
    third = {(1, 4, -1): 1 / 3, (2, 3, 4): 1 / 3, (2, 4, -1): 1 / 3}
    half = {(1, 4, -1): 1 / 2, (2, 3, 4): 1 / 4, (2, 4, -1): 1 / 4}
    shortest = {(1, 4, -1): 1 / 2, (2, 4, -1): 1 / 2}
    expected = {"all_simple": third, "random_walk": half, "shortest": shortest}[sampling]
    assert found == pytest.approx(expected, abs=0.025)
    ends = graph.walks(torch.zeros(6000).long(), torch.full((6000,), DEAD_END), sampling, draws)
    shares = {tuple(walk): 1 / 3 for walk in ([5, -1, -1], [1, 4, -1])} | {(2, 3, 4): 1 / 6, (2, 4, -1): 1 / 6}
    paths, counts = ends.unique(dim=0, return_counts=True)
    assert dict(zip(map(tuple, paths.tolist()), (counts / 6000).tolist(), strict=True)) == pytest.approx(
        shares, abs=0.025
    )


@few
@given(regimes)
def test_walks_verdicts_and_what_is_determined(regime):
    graph = regime.graph
    for split in (
        *regime.splits.values(),
        regime.queries.draw(regime.pairs["train_pairs"], torch.arange(9) % 2 == 0, 3),
    ):
        for row in range(0, len(split), 7):
            goal, start, walk, rest = written(regime, split, row)
            assert (goal, start) == (int(split.truth["goal"][row]), int(split.truth["start"][row]))
            paths = all_paths(graph, start, goal)
            assert rest == ["PATH" if paths else "NOPATH", "END"]
            assert all(graph.adjacency[edge] for edge in zip([start, *walk], walk, strict=False))
            if paths:
                assert max(map(len, paths)) >= 2
                assert walk[-1] == goal
            elif regime.nopath == "deadend":
                assert not graph.adjacency[walk[-1] if walk else start].any()
            else:
                assert not walk
            if regime.sampling == "shortest" and paths:
                assert len(walk) == min(map(len, paths))


@few
@given(regimes)
def test_evaluation_supervises_what_is_determined(regime):
    for split in regime.splits.values():
        half = len(split) // 2
        for row in (0, half - 1, half, len(split) - 1):
            goal, start, walk, _ = written(regime, split, row)
            passed, determined = [start, *walk], []
            for node in passed[:-1]:
                following = [
                    n for n in graph_successors(regime, node) if row >= half or all_paths(regime.graph, n, goal)
                ]
                if regime.sampling == "shortest" and row < half:
                    nearest = min(len(path) for path in all_paths(regime.graph, node, goal))
                    following = [n for n in following if min(map(len, all_paths(regime.graph, n, goal))) == nearest - 1]
                determined.append(len(following) == 1)
            slots = split.mask.shape[1]
            assert split.mask[row].tolist() == (determined + [True, True] + slots * [False])[:slots]


def graph_successors(regime, node):
    return regime.graph.adjacency[node].nonzero()[:, 0].tolist()


@few
@given(regimes)
def test_held_out_pairs_are_never_trained(regime):
    pairs = {name: [set(map(tuple, pool.tolist())) for pool in pools] for name, pools in regime.pairs.items()}
    for trained, held_out, everything in zip(
        pairs["train_pairs"], pairs["held_out_pairs"], regime.graph.pairs, strict=True
    ):
        assert len(trained) == round(0.5 * len(everything))
        assert trained | held_out == set(map(tuple, everything.tolist()))
        assert not trained & held_out
    for step in (0, 31, 32, 100):
        batch = regime.generated.train.batch(step).queries
        asked = [written(regime, batch, row) for row in range(len(batch))]
        connected = sum(rest[0] == "PATH" for *_, rest in asked)
        assert (len(asked), connected) == (regime.batch, (regime.batch + step % 2) // 2)
        assert {(start, goal) for goal, start, *_ in asked} <= pairs["train_pairs"][0] | pairs["train_pairs"][1]
        shown = [(int(s), int(g)) for s, g in zip(batch.inputs[:, 2], batch.inputs[:, 1], strict=True)]
        assert shown == [(start, goal) for goal, start, *_ in asked]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [2, 3])
def test_larger_gaps_are_a_split_of_their_own(seed, most):
    regime = GraphNavigation("hierarchical", layers=6, width=6, edge_prob=0.25, max_train_gap=most, seed=seed)
    for name, split in regime.splits.items():
        gap = regime.graph.layer[split.truth["goal"]] - regime.graph.layer[split.truth["start"]]
        assert ((gap > most) == (name == "longer_gaps")).all()
        assert (gap >= 2).all()
    assert set(regime.splits) == {"train_pairs", "held_out_pairs", "longer_gaps"}


def test_the_layout():
    regime = GraphNavigation("tree", nodes=15)
    row = regime.queries.encode(torch.tensor([[0, 9], [1, 13]]), torch.tensor([True, False]), 0)
    assert regime.tokens(row.inputs[0]) == ["TARGET", "v9", "v0", "v1", "v4", "v9", "PATH"]
    assert regime.tokens(row.targets[0]) == ["v1", "v4", "v9", "PATH", "END"]
    assert row.mask[0].all()
    assert row.positions == ("TARGET", "goal", "start", "n1", "n2", "n3", "n4")
    assert regime.tokens(row.targets[1])[2:4] == ["NOPATH", "END"]
    assert regime.task.tokens == regime.task.outputs == 19
    assert regime.task.positions == row.inputs.shape[1]
    direct = GraphNavigation("tree", nodes=15, protocol="direct")
    row = direct.queries.encode(torch.tensor([[0, 9], [1, 13]]), torch.tensor([True, False]), 0)
    assert [direct.tokens(tokens) for tokens in row.targets] == [["PATH", "END"], ["NOPATH", "END"]]
    assert direct.task.positions == 4
    assert direct.floor("held_out_pairs") == 0.5
    for split in direct.splits.values():
        assert int((split.targets[:, 0] == direct.queries.special[1]).sum()) * 2 == len(split)


def test_groups_say_where_goal_and_walk_are():
    regime = GraphNavigation("tree", nodes=15)
    split = regime.queries.encode(torch.tensor([[0, 9]]), torch.tensor([True]), 0)
    groups = regime.groups(split)
    assert groups["goal"][0].nonzero().tolist() == [[slot, 1] for slot in range(5)]
    assert groups["current"][0].nonzero().tolist() == [[slot, 2 + slot] for slot in range(5)]
    assert groups["other"][0, 2].nonzero()[:, 0].tolist() == [0, 2, 3]


def test_batches_are_a_function_of_the_step_and_the_seeds():
    one, again = (GraphNavigation(nodes=40, edge_prob=0.1, seed=3) for _ in range(2))
    late = again.generated.train.batch(70).queries.inputs  # asked in another order
    first = [one.generated.train.batch(step).queries.inputs for step in (0, 1, 70)]
    assert torch.equal(first[2], late)
    assert torch.equal(first[0], again.generated.train.batch(0).queries.inputs)
    assert not torch.equal(first[0], first[1])
    other = GraphNavigation(nodes=40, edge_prob=0.1, seed=4, graph_seed=3)
    assert torch.equal(one.graph.adjacency, other.graph.adjacency)
    assert torch.equal(one.splits["held_out_pairs"].inputs, other.splits["held_out_pairs"].inputs)
    assert not torch.equal(first[0], other.generated.train.batch(0).queries.inputs)
    assert not torch.equal(one.graph.adjacency, GraphNavigation(nodes=40, edge_prob=0.1, seed=4).graph.adjacency)


def test_a_batch_of_one_asks_for_either_kind_in_turn():
    stream = GraphNavigation("tree", nodes=15, batch=1, protocol="direct").generated.train
    verdicts = [int(stream.batch(step).queries.targets[0, 0]) for step in (0, 1, 2, 3, 2047, 2048, 2049)]
    assert verdicts == [17, 16, 17, 16, 16, 17, 16]  # NOPATH first


def test_a_large_batch_is_made_by_itself():
    regime = GraphNavigation("tree", nodes=15, batch=3001)
    connected = [int((regime.generated.train.batch(step).queries.targets == 16).any(1).sum()) for step in (0, 1)]
    assert connected == [1500, 1501]


def test_graphs_have_the_edges_they_should():
    random = bernoulli_graph(200, 0.05, 0)
    assert abs(float(random.adjacency.sum()) / (200 * 199 / 2) - 0.05) < 0.005
    assert not random.adjacency.tril().any()
    either = random.adjacency | random.adjacency.T
    assert ((torch.eye(200) + either.double()).matrix_power(200) > 0).all()
    assert min(int((~random.adjacency.any(side)).sum()) for side in (0, 1)) >= 3
    layered = hierarchical_graph(10, 20, 0.3, 0)
    start, goal = layered.adjacency.nonzero().T
    assert (goal // 20 == start // 20 + 1).all()
    assert abs(len(start) / (9 * 400) - 0.3) < 0.03
    tree = binary_tree(7)
    assert tree.adjacency.nonzero().tolist() == [[0, 1], [0, 2], [1, 3], [1, 4], [2, 5], [2, 6]]
    assert tree.layer.tolist() == [0, 1, 1, 2, 2, 2, 2]


def test_all_problems_are_told_at_once():
    with pytest.raises(BadInput) as error:
        GraphNavigation(
            "maze", nodes=3, edge_prob=0, train_pair_share=1, protocol="fast", nopath="?", path_sampling="all", batch=0
        )
    keys = ["graph", "protocol", "nopath", "path_sampling", "nodes", "edge_prob", "train_pair_share", "batch"]
    assert [problem.key for problem in error.value.problems] == keys
    with pytest.raises(BadInput, match=r"max_train_gap=3: a bernoulli graph has no layers"):
        GraphNavigation(max_train_gap=3)
    with pytest.raises(BadInput, match=r"width=200: use 1 to 50"):
        GraphNavigation("hierarchical", layers=10, width=200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 80, "edge_prob": 0.001}, r"edge_prob=0.001: no graph of 80 nodes that hangs together"),
        ({"graph": "hierarchical", "layers": 3, "width": 1, "edge_prob": 0.001}, "no connected pair in this graph"),
        ({"graph": "hierarchical", "layers": 4, "width": 5, "edge_prob": 0.999}, "no unconnected pair in this graph"),
    ],
)
def test_graphs_that_cannot_be_asked_about(arguments, message):
    with pytest.raises(BadInput, match=message):
        GraphNavigation(**arguments).setup()
