"""Paths in trees: the trees are trees, the path is the one that a plain walk finds, and nothing is left to chance."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import TreePaths
from grok.data.trees import irregular_trees, most_nodes, perfect_trees
from grok.errors import BadInput

few = settings(deadline=None, max_examples=15)


@st.composite
def regimes(draw):
    depth = draw(st.integers(1, 3))
    labels = draw(st.integers(2 ** (depth + 1) - 1, 20))
    return TreePaths(
        direction=draw(st.sampled_from(["backward", "forward"])),
        depth=depth,
        labels=labels,
        test_depth=draw(st.integers(1, labels - 1)),
        test_children=draw(st.integers(1, 4)),
        test_size=12,
        batch=6,
        seed=draw(st.integers(0, 10**6)),
    )


def edges_of(columns):
    """Parents by child, as the columns of a tree show them."""
    return {child: parent for parent, child, _ in columns if parent >= 0}


def climb(parents, goal):
    path = [goal]
    while path[-1] in parents:
        path.append(parents[path[-1]])
    return path


@few
@given(regimes())
def test_columns_slots_and_answers_are_those_of_a_plain_walk(regime):
    splits = {"train": regime.generated.train.batch(3).queries, **regime.splits}
    forward = regime.direction == "forward"
    for name, split in splits.items():
        assert split.inputs.shape[1:] == (len(split.positions), regime.task.features)
        assert split.inputs.shape[1] <= regime.task.positions
        columns, answers = regime.symbols(split.inputs).tolist(), regime.symbols(split.targets).tolist()
        for i in range(len(split)):
            start, count = int(split.at[i, 0]), int(split.mask[i].sum())
            tree = columns[i][:start]
            parents = edges_of(tree)
            assert len(parents) == start - forward
            path = climb(parents, columns[i][start][1])
            root, depth = path[-1], len(path) - 1
            if forward:
                assert tree[0] == [-1, root, 1]
            walked = [[up, here, 0] for here, up in pairwise(path)]
            asked = [[-1, here, 0] for here in path[: depth + forward]]
            if forward:
                walked += [[-1, root, 1], *([up, here, 1] for up, here, _ in reversed(walked))]
                asked += [[here, -1, 1] for here in path[:0:-1]]
            assert split.mask[i].tolist() == [k < len(walked) for k in range(split.mask.shape[1])]
            assert answers[i][:count] == walked
            assert split.at[i, :count].tolist() == [start + 2 * k for k in range(count)]
            rest = columns[i][start : start + 2 * count - 1]
            assert rest[::2] == asked
            assert rest[1::2] == walked[:-1]
            assert not split.inputs[i, start + 2 * count - 1 :].any()
            if name != "train":
                assert int(split.truth["depth"][i]) == depth
                below = [sum(up == node for up in parents.values()) for node in path]
                assert int(split.truth["branching"][i]) == max(below)


@few
@given(regimes())
def test_what_follows_an_answer_is_what_stands_after_it(regime):
    split = regime.splits["irregular"]
    noise = torch.rand(split.targets.shape, generator=torch.Generator().manual_seed(0)) * 0.4  # same nearest codes
    for k in range(split.mask.shape[1] - 1):
        rows = split.mask[:, k + 1]
        following = regime.following(split.targets[:, k] * 0.9 + noise[:, k])
        index = torch.arange(len(split))[:, None], split.at[:, k, None] + torch.tensor([1, 2])
        assert torch.equal(following[rows], split.inputs[index][rows])


@few
@given(st.integers(1, 4), st.integers(1, 4), st.integers(3, 25), st.integers(0, 10**6))
def test_irregular_trees_keep_to_their_limits(depth, children, labels, seed):
    trees = irregular_trees(200, depth, children, labels, torch.Generator().manual_seed(seed))
    most = min(labels, most_nodes(depth, children))
    assert trees.size.min() >= 1
    assert int(trees.size.max()) <= most - 1
    assert len(trees.size.unique()) > (most - 1) / 2  # sizes vary
    for edges, path in zip(trees.edges.tolist(), trees.path.tolist(), strict=True):
        shown = [edge for edge in edges if edge[1] >= 0]
        assert edges[: len(shown)] == shown
        parents = {child: up for up, child in shown}
        assert len(parents) == len(shown)  # nobody has two parents
        ups = list(parents.values())
        assert max(ups.count(up) for up in ups) <= children
        assert len({*parents, *ups}) == len(shown) + 1  # one root
        walked = climb(parents, path[0])
        assert walked == [node for node in path if node >= 0]
        assert path[0] not in ups  # a leaf
        assert max(len(climb(parents, node)) - 1 for node in parents) <= depth


def test_perfect_trees_are_perfect_and_goals_and_labels_uniform():
    trees = perfect_trees(3000, 2, 9, torch.Generator().manual_seed(1))
    assert (trees.size == 6).all()
    assert (trees.depth == 2).all()
    ups = trees.edges[..., 0]
    assert ((ups[:, :, None] == ups[:, None]).sum(2) == 2).all()  # each parent twice
    for label in (trees.path[:, 0], trees.path[:, 2], trees.edges[:, 0, 1]):
        share = torch.bincount(label, minlength=9) / 3000
        assert (share - 1 / 9).abs().max() < 0.03


def test_the_order_of_edges_gives_nothing_away():
    trees = perfect_trees(4000, 2, 7, torch.Generator().manual_seed(2))
    of_goal = (trees.edges[..., 1] == trees.path[:, :1]).float().mean(0)
    assert (of_goal - 1 / 6).abs().max() < 0.03


@few
@given(regimes())
def test_groups_by_hand(regime):
    split = regime.splits["irregular"]
    groups = regime.groups(split)
    wanted = {"up_edge", "up_stage", "root", "down_written", "down_stage"}
    assert set(groups) == (wanted if regime.direction == "forward" else {"up_edge", "up_stage"})
    columns = regime.symbols(split.inputs).tolist()
    for i in range(4):
        start = int(split.at[i, 0])
        for k in split.mask[i].nonzero()[:, 0].tolist():
            at = int(split.at[i, k])
            parent, child, stage = columns[i][at]
            node, seen, expected = max(parent, child), list(enumerate(columns[i][: at + 1])), {}
            if stage == 0:
                expected["up_edge"] = [t for t, c in seen if t < start and c[1] == node and c[0] >= 0]
                expected["root"] = [t for t, c in seen if t < start and c[1] == node and c[0] < 0]
                steps = [t for t, c in seen if t >= start and c[2] == 0]
                expected["up_stage"] = steps if expected["up_edge"] else []
            else:
                expected["down_written"] = [t for t, c in seen if t >= start and c[0] == node and c[2] == 0]
                expected["down_stage"] = [t for t, c in seen if t == 0 or (t >= start and c[2] == 1)]
            for name, members in groups.items():
                assert members[i, k].nonzero()[:, 0].tolist() == expected.get(name, []), (name, i, k)


@few
@given(st.integers(0, 10**6))
def test_everything_is_a_function_of_the_seed(seed):
    def regime(**options):
        return TreePaths(depth=2, labels=9, test_size=20, batch=10, seed=seed, **options)

    one, same, reordered, other = regime(), regime(), regime(order_seed=seed + 1), TreePaths(depth=2, labels=9, seed=-1)
    for name, split in one.splits.items():
        assert torch.equal(split.inputs, same.splits[name].inputs)
        assert torch.equal(split.inputs, reordered.splits[name].inputs)
        assert not torch.equal(split.inputs, other.splits[name].inputs[:20])
    batches = [one.generated.train.batch(step).queries.inputs for step in (5, 6)]
    assert torch.equal(batches[0], same.generated.train.batch(5).queries.inputs)
    assert not torch.equal(*batches)
    assert not torch.equal(batches[0], reordered.generated.train.batch(5).queries.inputs)


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        TreePaths("sideways", depth=10, test_depth=31, test_children=0, test_size=0, batch=0)
    keys = [problem.key for problem in error.value.problems]
    assert keys == ["test_children", "test_size", "direction", "depth", "test_depth", "batch"]
    with pytest.raises(BadInput, match="labels=14: use 15, the nodes of a perfect tree of depth=3"):
        TreePaths(depth=3, labels=14)
