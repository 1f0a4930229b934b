"""Attention on columns as they are, and the other options of theory papers, against their formulas."""

import pytest
import torch
from torch.testing import assert_close

from grok.circuits.groups import group_mass, head_roles
from grok.data.split import Split, nearest, snap
from grok.errors import BadInput
from grok.models import LoopedTransformer
from grok.models.columns import ColumnAttention
from grok.task import Field, Task
from grok.training import SquaredError

FIELDS = (Field("a", 3), Field("b", 2, matched=False, head=1), Field("c", 2, head=1))
TASK = Task(5, outputs=2, features=7, fields=FIELDS, answer=3)
THEORY = {"width": None, "layers": 1, "heads": 2, "mlp": "none", "norm": "none", "positions": "none", "residual": False,
          "projections": "key_query", "read_in": "fixed", "read_out": "fixed", "scaled": False}  # fmt: skip


def columns(rows=4):
    return torch.randn(rows, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sees_itself", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_column_attention_is_its_formula(causal, sees_itself):
    attention = ColumnAttention(FIELDS, 2, causal, sees_itself)
    torch.nn.init.normal_(attention.key_query, generator=torch.Generator().manual_seed(1))
    x, written = columns(), torch.zeros(4, 5, 7)
    for head, mine in ((0, slice(0, 3)), (1, slice(3, 7))):
        matrix = attention.key_query[head].clone()
        for rows, others in ((slice(0, 3), slice(3, 7)), (slice(5, 7), slice(0, 5))):
            matrix[rows, others] = 0
        matrix[3:5] = 0
        scores = x @ matrix @ x.mT
        for query in range(5):
            seen = [k for k in range(5) if (k <= query or not causal) and (sees_itself or k != query)] or [0]
            weights = scores[:, query, seen].softmax(-1)
            written[:, query, mine] = (weights[..., None] * x[:, seen]).sum(1)[:, mine]
    if not causal and not sees_itself:  # the first position always sees itself
        written[:, 0], ours = 0, attention(x).clone()
        ours[:, 0] = 0
        assert_close(ours, written)
    else:
        assert_close(attention(x), written)
    at = torch.tensor([[4, 1]]).expand(4, -1)
    assert_close(attention(x, at), attention(x)[:, [4, 1]])


def test_a_fixed_read_in_and_read_out_leave_the_matrix_as_the_only_weights():
    model = LoopedTransformer(TASK, **THEORY, init="zero")
    assert {name for name, _ in model.named_parameters()} == {"blocks.0.attn.key_query"}
    x = columns()
    mean = torch.stack([x[:, : t + 1].mean(1) for t in range(5)], 1)  # zero scores: uniform attention
    assert_close(model(x), mean[..., 3:5])


def test_identity_weights_compare_columns_and_copy_them():
    model = LoopedTransformer(
        Task(5, outputs=2, features=7, answer=3), **{**THEORY, "heads": 1, "projections": "no_output"}, bias=False,
        init="identity", init_std=0.2,
    )  # fmt: skip
    x = columns()
    scores = (0.04 * x @ x.mT).masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf)
    assert_close(model(x), (scores.softmax(-1) @ x)[..., 3:5])
    assert {tuple(p.shape) for p in model.parameters()} == {(21, 7)}


def test_a_vector_is_right_if_every_part_is_nearest_to_the_right_code():
    codes = (torch.eye(3), torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))
    outputs = torch.tensor([[0.2, 0.9, 0.1, 0.4, 0.0], [0.2, 0.9, 0.1, -1.5, 0.0], [0.9, 0.2, 0.0, 1.0, 0.0]])
    assert nearest(outputs, codes).tolist() == [[1, 0], [1, 1], [0, 0]]
    target = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]).expand(3, -1)
    assert_close(snap(outputs, codes)[0], target[0])
    objective = SquaredError()
    assert objective.correct(outputs[:, None], target[:, None], codes)[:, 0].tolist() == [True, False, False]
    assert_close(objective(outputs[:, None], target[:, None])[:, 0], (outputs - target).square().sum(1))
    assert_close(objective(outputs[:, None, :1], target[:, None, 0]), (outputs - target)[:, None, 0].square())


@pytest.mark.parametrize("autocast", [True, False])
def test_vectors_in_other_precisions_are_near_to_the_same_codes(autocast):
    codes = (torch.tensor([[0.0], [1.0], [1.01]]),)  # halves of codes differ by less than a rounding of bfloat16
    vectors = torch.tensor([[0.25], [0.875], [1.0078125]])  # exact in bfloat16
    for kind in (torch.float64, torch.bfloat16):
        with torch.autocast("cpu", enabled=autocast):
            assert nearest(vectors.to(kind), codes)[:, 0].tolist() == [0, 1, 2]


def test_options_that_would_be_ignored_are_refused_or_heeded():
    with pytest.raises(BadInput, match="positions='rope': projections=key_query compares columns as they are"):
        LoopedTransformer(TASK, **{**THEORY, "positions": "rope"})
    assert LoopedTransformer(TASK, **THEORY, dropout=0.5).blocks[0].attn.dropout == 0.5


def test_the_mass_on_a_group_is_the_mean_over_the_slots_that_have_one():
    model = LoopedTransformer(TASK, **THEORY, init="zero")
    at, mask = torch.tensor([[4, 2], [4, 2]]), torch.tensor([[True, True], [True, False]])
    split = Split(columns(2), at, torch.zeros(2, 2), mask, tuple("vwxyz"))
    members = torch.zeros(2, 2, 5, dtype=torch.bool)
    members[:, 0, :2] = True  # of the first slot two of five positions, of the second one of three, or none
    some, none = members.clone(), torch.zeros_like(members)
    some[:, 1, 0] = True
    grid = group_mass(model, split, {"some": some, "first": members, "none": none}, batch=1)
    assert grid.axes == {"head": ("0.head0", "0.head1"), "group": ("some", "first", "none")}
    assert grid["0.head1", "some"] == pytest.approx(((2 / 5 + 1 / 3) / 2 + 2 / 5) / 2)
    assert grid["0.head0", "first"] == pytest.approx(2 / 5)
    assert grid.values[:, 2].isnan().all()
    assert_close(grid.floor[:, :2], grid.values[:, :2])
    assert set(head_roles(grid).values()) == {"first"}


def test_a_rollout_writes_what_follows_and_answers_at_the_last_of_it():
    model = LoopedTransformer(Task(6, outputs=5, tokens=5), width=16, layers=1, heads=2, init_std=0.5)
    prompt, at = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([1, 0])
    written = []

    def following(outputs, k):
        written.append(outputs.argmax(-1))
        return torch.stack([torch.full_like(written[-1], k), written[-1]], 1)

    outputs = model.rollout(prompt, at, 3, following)
    first, second = ([*prompt[row, : at[row] + 1].tolist()] for row in (0, 1))
    for k in range(3):
        for row, sequence in enumerate((first, second)):
            assert_close(outputs[row, k], model(torch.tensor([sequence]))[0, -1].detach())
            sequence += [k, int(outputs[row, k].argmax())]
    assert len(written) == 2
    with pytest.raises(ValueError, match="7 positions needed, the model has 6"):
        model.rollout(prompt, torch.tensor([2, 0]), 3, following)


def test_tokens_are_drawn_by_temperature_among_the_likeliest_and_by_the_seed_alone():
    model = LoopedTransformer(Task(8, outputs=5, tokens=5), width=16, layers=1, heads=2, init_std=0.5)
    prompt, length = torch.tensor([[1, 2]]).repeat(400, 1), torch.full((400,), 2)
    drawn = model.generate(prompt, length, 1, temperature=2.0, seed=3)[:, 0]
    torch.manual_seed(9)
    assert torch.equal(model.generate(prompt, length, 1, temperature=2.0, seed=3)[:, 0], drawn)
    expected = (model(prompt[:1])[0, -1] / 2).softmax(-1)
    assert_close(torch.bincount(drawn, minlength=5) / 400, expected.detach(), atol=0.08, rtol=0)
    best = set(model(prompt[:1])[0, -1].topk(2).indices.tolist())
    assert set(model.generate(prompt, length, 1, temperature=5.0, top_k=2)[:, 0].tolist()) == best
    cold = model.generate(prompt[:2], length[:2], 4, temperature=1e-4)
    assert torch.equal(cold, model.generate(prompt[:2], length[:2], 4))
