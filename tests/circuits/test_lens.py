"""The logit lens against its definition, and which ground truth it can look for."""

import pytest
import torch

from grok.circuits import column, columns, logit_lens, read
from grok.data import TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer

REGIME = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=2, iid=0.2, ood=0.1)
SPLIT = REGIME.splits["train_inferred"].take(slice(0, 30))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = LoopedTransformer(REGIME.task, width=16, layers=2, loops=2, heads=2, init_std=0.3).double()
    torch.nn.init.normal_(net.norm.weight, 1, 0.5)  # so that the final norm matters
    torch.nn.init.normal_(net.norm.bias, 0, 0.5)
    return net


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("restrict", [True, False])
def test_every_statistic_is_its_definition(model, norm, restrict):
    lens = logit_lens(model, SPLIT, ["bridge", "answer"], norm=norm, restrict=restrict, batch=7, top=2)
    for step, state in enumerate(model.states(SPLIT.inputs)):
        x = model.norm(state["resid"]) if norm else state["resid"]
        logits = (x @ model.embedding.weight.T).detach().float()
        if restrict:
            other = torch.ones(logits.shape[-1], dtype=torch.bool)
            other[SPLIT.labels] = False
            logits[..., other] = -torch.inf
        assert torch.equal(lens.readings["bridge"].top[:, step], logits.topk(2).indices.int())
        for name, tokens in (("bridge", SPLIT.truth["bridge"][:, 0]), ("answer", SPLIT.targets[:, 0])):
            order = logits.argsort(-1, descending=True)
            rank = (order == tokens[:, None, None]).int().argmax(-1)
            assert torch.equal(lens.readings[name].rank[:, step, :, 0], rank.int())
            probability = logits.softmax(-1).gather(-1, tokens[:, None, None].expand(-1, 3, 1))[..., 0]
            torch.testing.assert_close(lens.readings[name].probability[:, step, :, 0], probability)
            for place in range(3):
                cell = (f"S[{step}]", SPLIT.positions[place])
                mrr = (1 / (rank[:, place] + 1)).mean().item()
                assert lens.grid(name)[cell] == pytest.approx(mrr, abs=1e-6)
                share = (rank[:, place] < 3).float().mean().item()
                assert lens.grid(name, "recall@3")[cell] == pytest.approx(share, abs=1e-6)
                mean = probability[:, place].mean().item()
                assert lens.grid(name, "probability")[cell] == pytest.approx(mean, abs=1e-6)


def test_the_floor_is_the_ground_truth_of_other_queries(model):
    lens = logit_lens(model, SPLIT, ["bridge"], seed=5)
    logits = model.readout(model.states(SPLIT.inputs)[3])[:, 1].detach()
    # Ranks of all bridges in the state of one query: the floor's rank is one of them, and of another query.
    every = (logits[:, None] > logits[:, SPLIT.truth["bridge"][:, 0]][..., None]).sum(-1)  # [query, other]
    floor = lens.shuffled["bridge"].rank[:, 3, 1, 0]
    assert all(int(rank) in row.tolist() for rank, row in zip(floor, every, strict=True))
    assert not torch.equal(floor, lens.readings["bridge"].rank[:, 3, 1, 0])


def test_a_set_of_tokens_is_recalled_as_a_share():
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    found = read(logits, torch.tensor([[0, 2, 4, -1]]))
    assert found.rank.tolist() == [[0, 2, 4, -1]]
    assert found.logit[0, :3].tolist() == [5.0, 3.0, 1.0]
    assert found.probability[0, 3].isnan()
    labels = read(logits, torch.tensor([[2, 4]]), labels=torch.tensor([4, 2]), top=2)
    assert labels.rank.tolist() == [[0, 1]]
    assert labels.top.tolist() == [[2, 4]]
    assert labels.probability.sum() == pytest.approx(1)
    with pytest.raises(BadInput, match="no possible answer"):
        read(logits, torch.tensor([[0]]), labels=torch.tensor([4, 2]))


def test_equal_logits_share_the_better_rank():
    assert read(torch.zeros(1, 4), torch.tensor([[3]])).rank.tolist() == [[0]]


def test_columns_are_answer_truth_and_the_tokens_shown():
    assert columns(SPLIT) == ["answer", "bridge", "h", "r1", "r2"]
    assert torch.equal(column(SPLIT, "r1")[:, 0], SPLIT.inputs[:, 1])
    assert torch.equal(column(SPLIT, "bridge[0]"), SPLIT.truth["bridge"])
    for wrong, told in (
        ("b", "it has answer, bridge"),
        ("facts", "no such"),
        ("bridge[1]", "has 1 entries"),
        ("", "no such"),
    ):
        with pytest.raises(BadInput, match=told):
            column(SPLIT, wrong)
    with pytest.raises(BadInput, match="an atomic query has no bridge"):
        column(REGIME.splits["id_atomic"], "bridge")


@pytest.mark.parametrize("restrict", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_has_diverged_is_never_right(value, restrict):
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]]).repeat(3, 1)
    logits[1, 2] = value  # in the row of the token looked for, and the token itself
    logits[2] = value
    labels = torch.tensor([0, 2, 3]) if restrict else None
    found = read(logits, torch.tensor([[0, 2, -1]]).repeat(3, 1), labels, top=2)
    worse = 3 if restrict else 4  # than the worst of an honest row
    assert found.rank.tolist() == [[0, 1, -1], [worse, worse, -1], [worse, worse, -1]]
    assert found.top.tolist() == [[0, 2], [-1, -1], [-1, -1]]
    assert found.probability[1:].isnan().all()
    assert read(logits, torch.tensor([[0]] * 3)).top[1:].eq(-1).all()


def test_impossible_tokens_are_no_divergence():
    logits = torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf] * 3])
    found = read(logits, torch.tensor([[2, 1], [0, 1]]))
    assert found.rank.tolist() == [[0, 2], [3, 3]]  # where nothing is possible, nothing is right
    assert found.top.tolist() == [[2], [-1]]


def test_a_lens_on_a_diverged_model_shows_nothing():
    net = LoopedTransformer(REGIME.task, width=16, layers=1, loops=1, heads=2)
    with torch.no_grad():
        net.norm.weight.fill_(torch.nan)
    lens = logit_lens(net, SPLIT, ["bridge"])
    assert lens.grid("bridge").values.max() < 0.05
    assert lens.grid("bridge", "recall@3").values.eq(0).all()


def test_no_tokens_on_top_cannot_be_kept(model):
    with pytest.raises(BadInput, match=r"top=0: use 1 or more"):
        logit_lens(model, SPLIT, top=0)
