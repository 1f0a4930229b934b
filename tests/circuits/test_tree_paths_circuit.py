"""Paths in trees by a layer whose matrices are written down: it solves the task, and the measures say how."""

import pytest
import torch

from grok.circuits import group_mass, measures
from grok.circuits.tree_paths import key_query, rollouts, without_heads
from grok.data import TreePaths
from grok.models import LoopedTransformer


def layer(data, itself):
    return LoopedTransformer(
        data.task, width=None, heads=1 + max(field.head for field in data.task.fields), layers=1, mlp="none",
        norm="none", positions="none", projections="key_query", sees_itself=itself, scaled=False, residual=False,
        read_in="fixed", read_out="fixed", init="zero",
    )  # fmt: skip


@pytest.fixture
def backward():
    """Head 0 compares children, with a product of 20."""
    data = TreePaths("backward", depth=2, labels=9, test_depth=5, test_size=200)
    model = layer(data, itself=False)
    model.blocks[0].attn.key_query.data[0, 9:, 9:] = 20 * torch.eye(9)
    return data, model


@pytest.fixture
def forward():
    """Head 0 compares nodes, and from down looks at up, from up not at up; head 1 looks at its own stage, and at the
    root at its column."""
    data = TreePaths("forward", depth=2, labels=9, test_depth=5, test_size=200)
    model = layer(data, itself=True)
    matrices = model.blocks[0].attn.key_query.data
    for matrix, parents, children, stages in zip(
        matrices, (20, 0), (20, 20), ([[-20, 0], [20, -20]], [[15, 25], [-20, 20]]), strict=True
    ):
        matrix[:9, :9], matrix[9:18, 9:18] = parents * torch.eye(9), children * torch.eye(9)
        matrix[18:, 18:] = torch.tensor(stages)
    return data, model


def test_backward_by_hand(backward):
    data, model = backward
    for name, split in data.splits.items():
        assert rollouts(data, model, split, 64).min() == 1, name
    (grid,) = key_query(data, model)
    assert grid["head0", "child", "diagonal"] == 20
    assert grid["head0", "child", "off"] == 0


def test_forward_by_hand(forward):
    data, model = forward
    split = data.splits["irregular"]
    assert rollouts(data, model, split, 64).min() == 1
    assert rollouts(data, model, data.splits["perfect"], 64).min() == 1
    nodes, stage = key_query(data, model)
    assert nodes["head1", "child", "diagonal"] == 20
    assert nodes["head1", "parent", "diagonal"] == 0
    assert stage["head1", "from_up", "to_down"] == 25
    assert stage["head0", "from_down", "to_up"] == 20
    (grid,) = without_heads(data, model, split, 64)
    assert grid["nodes", "none"] == grid["stage", "none"] == 1
    assert grid["nodes", "head1"] == 1
    assert grid["stage", "head0"] == 1
    assert grid["nodes", "head0"] == 0  # of a turn, too, the root is to be written
    assert grid["stage", "head1"] < 0.7
    mass = group_mass(model, split, data.groups(split), 64)
    for head, group in (("0", "up_edge"), ("0", "down_written"), ("1", "up_stage"), ("1", "root"), ("1", "down_stage")):
        assert mass[f"0.head{head}", group] > 0.95, (head, group)
    assert max(mass["0.head1", "up_edge"], mass["0.head0", "up_stage"], mass["0.head0", "down_stage"]) < 0.05


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_are_measured_too(forward, kind):
    data, model = forward
    grids = {grid.name: grid for grid in measures(data, model.to(kind), "irregular", data.splits["irregular"])}
    assert grids["path"]["exact",] == 1


def test_a_path_counts_only_if_all_of_it_is_right(forward):
    data, model = forward
    split = data.splits["irregular"]
    blind = int(split.inputs[:, 0, 9:18].argmax(1).mode().values)  # the commonest root
    model.blocks[0].attn.key_query.data[0, blind] = 0  # its children are not found on the way down
    exact = rollouts(data, model, split, 64)
    assert (exact[split.inputs[:, 0, 9 + blind] == 1]).max() == 0
    grids = {grid.name: grid for grid in measures(data, model, "irregular", split, 64)}
    assert grids["path"]["exact",] == pytest.approx(float(exact.mean()))
    assert 0 < exact.mean() < 1
    by_depth = grids["path_by_depth"]
    assert by_depth.axes["depth"] == tuple(str(one) for one in split.truth["depth"].unique().tolist())
    deep = split.truth["depth"] == 2
    assert by_depth["2",] == pytest.approx(float(exact[deep].mean()))
    assert int(by_depth.n.sum()) == int(grids["path_by_branching"].n.sum()) == len(split)


def test_a_rollout_is_given_nothing_but_tree_and_goal(forward):
    data, model = forward
    split = data.splits["irregular"].take(slice(0, 50))
    hidden = split.inputs.clone()
    hidden[torch.arange(hidden.shape[1]) > split.at[:, :1]] = 7.0
    assert torch.equal(
        rollouts(data, model, split, 64),
        rollouts(data, model, type(split)(**{**vars(split), "inputs": hidden}), 64),
    )


def test_learned_projections_are_read_as_products():
    data = TreePaths("forward", depth=1, labels=4, test_depth=2, test_size=8)
    model = LoopedTransformer(data.task, width=8, heads=2, layers=1, loops=2, mlp="none", norm="none", positions="none")
    nodes, stage = key_query(data, model)
    read_in, attention = model.embedding, model.blocks[0].attn
    columns = read_in(torch.eye(data.width))
    query, key, _ = attention.qkv(columns).chunk(3, -1)
    product = (query[:, 4:] @ key[:, 4:].T).detach()  # head 1
    assert nodes["head1", "child", "diagonal"] == pytest.approx(float(product[4:8, 4:8].diagonal().mean()), abs=1e-6)
    assert stage["head1", "from_down", "to_up"] == pytest.approx(float(product[9, 8]), abs=1e-6)
    assert len(without_heads(data, model, data.splits["irregular"], 4)[0].axes["without"]) == 3


def test_a_model_that_sees_what_comes_after_is_not_rolled_out():
    data = TreePaths("forward", depth=1, labels=20, test_depth=1, test_size=8)  # more features than positions
    model = LoopedTransformer(data.task, width=8, heads=2, layers=1, causal=False)
    grids = measures(data, model, "irregular", data.splits["irregular"], 4)
    assert {grid.name for grid in grids} == {"key_query", "key_query_stage", "without_head"}
