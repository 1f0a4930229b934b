"""The cosine lens on states made by hand and by definition; maps of points in a plane."""

import math

import pytest
import torch
import torch.nn.functional as F

from grok.circuits.similarity import cosine_distances, cosine_lens, fact_map, mds
from grok.data import Split, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer

REGIME = TwoHopComposition(entities=12, relations=6, out_degree=5, phi=2, iid=0.2, ood=0.3)
ID, OOD = REGIME.splits["id_atomic"], REGIME.splits["ood_atomic"]


def make() -> LoopedTransformer:
    torch.manual_seed(0)
    return LoopedTransformer(REGIME.task, width=16, layers=2, loops=2, heads=2, init_std=0.3).double().eval()


def facts(tails):
    """Facts whose head is their own number, so that hand-made states can be looked up by it."""
    count = len(tails)
    inputs = torch.stack([torch.arange(count), torch.zeros(count).long()], 1)
    at = torch.ones(count, 1).long()
    return Split(inputs, at, torch.tensor(tails)[:, None], at.bool(), ("h", "r1"))


def angles(monkeypatch, model, known, unknown):
    """States at r1 are unit vectors of these angles (degrees), of lengths that differ; at h they are noise."""

    def states(inputs, position_ids=None):
        given = known if inputs[:, 1].eq(0).all() else unknown
        radians = torch.deg2rad(torch.tensor(given, dtype=torch.float64))[inputs[:, 0]]
        vectors = torch.stack([radians.cos(), radians.sin()], -1)
        return [{"resid": torch.stack([torch.randn_like(vectors), vectors], 1)}]

    monkeypatch.setattr(model, "states", states)


def test_analytic_cosines(monkeypatch):
    model = make()
    # Entity 7: ID at ±30°, so the centroid is at 0°; 9: one ID fact; 3 has no OOD fact, 5 no ID one.
    known, unknown = facts([7, 3, 7, 9]), facts([5, 7, 9, 7])
    unknown.inputs[:, 1] = 1
    angles(monkeypatch, model, [30, 77, -30, 45], [13, 60, 45 + 180, -90])
    lens = cosine_lens(model, known, unknown, steps=[0], batch=3)
    assert lens.entities.tolist() == [7, 9]
    assert lens.id_facts.tolist() == [2, 1]
    assert lens.ood_facts.tolist() == [2, 1]
    assert lens.single.tolist() == [False, True]
    torch.testing.assert_close(lens.cohesion, torch.tensor([[math.sqrt(3) / 2], [1.0]]))
    torch.testing.assert_close(lens.alignment, torch.tensor([[0.25], [-1.0]]))
    grid = lens.grid("alignment")
    assert grid["S[0]", "r1"] == pytest.approx(-0.375)
    assert grid.n.tolist() == [[2]]
    several = lens.grid("cohesion", least=2)
    assert several.n.tolist() == [[1]]
    assert several["S[0]", "r1"] == pytest.approx(math.sqrt(3) / 2)
    with pytest.raises(BadInput, match="at most 2"):
        lens.grid(least=3)
    with pytest.raises(BadInput, match="cohesion or alignment"):
        lens.grid("distance")


def test_a_centroid_is_the_mean_of_raw_vectors(monkeypatch):
    model = make()
    vectors = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()  # a mean of directions would be at 45°
    monkeypatch.setattr(
        model, "states", lambda inputs, ids=None: [{"resid": vectors[inputs[:, 0]][:, None].expand(-1, 2, -1)}]
    )
    lens = cosine_lens(model, facts([1, 1]), facts([1]), steps=[0])
    torch.testing.assert_close(lens.cohesion, torch.tensor([[(3 + 1) / math.sqrt(10) / 2]]))
    torch.testing.assert_close(lens.alignment, torch.tensor([[3 / math.sqrt(10)]]))


def test_every_state_by_definition_and_in_any_batch():
    model = make()
    lens = cosine_lens(model, ID, OOD, batch=7)
    both = sorted(set(ID.targets[:, 0].tolist()) & set(OOD.targets[:, 0].tolist()))
    assert lens.entities.tolist() == both
    with torch.no_grad():
        known, unknown = ([state["resid"][:, 1] for state in model.states(split.inputs)] for split in (ID, OOD))
    for row, entity in enumerate(both):
        for step in range(5):
            mine = known[step][ID.targets[:, 0] == entity]
            centroid = mine.mean(0, keepdim=True)
            other = unknown[step][OOD.targets[:, 0] == entity]
            assert float(lens.cohesion[row, step]) == pytest.approx(float(F.cosine_similarity(mine, centroid).mean()))
            assert float(lens.alignment[row, step]) == pytest.approx(float(F.cosine_similarity(other, centroid).mean()))
    assert lens.id_facts.tolist() == [int((ID.targets[:, 0] == entity).sum()) for entity in both]


def test_states_that_are_their_tails_stand_out_from_shuffled_tails(monkeypatch):
    model = make()
    truth = {
        tuple(row[:2]): tail
        for split in (ID, OOD)
        for row, tail in zip(split.inputs.tolist(), split.targets[:, 0].tolist(), strict=True)
    }
    noise = torch.Generator().manual_seed(0)

    def states(inputs, position_ids=None):
        tails = torch.tensor([truth[tuple(row[:2])] for row in inputs.tolist()])
        vectors = F.one_hot(tails, 12).double()[:, None].expand(-1, 3, -1)
        return [{"resid": torch.randn(vectors.shape, generator=noise).double()}, {"resid": vectors}]

    monkeypatch.setattr(model, "states", states)
    lens = cosine_lens(model, ID, OOD, steps=[0, 1])
    for measure in ("cohesion", "alignment"):
        grid = lens.grid(measure, least=2)
        assert grid.values[1, 0] == pytest.approx(1)
        assert grid.above_floor[1, 0]
    assert not lens.grid("alignment").above_floor[0, 0]
    assert torch.isclose(lens.alignment_floor[:, 1].mean(), lens.alignment[:, 0].mean(), atol=0.3)


def test_an_atomic_state_is_the_state_of_every_composition_that_begins_with_it():
    model = make()
    two_hop = REGIME.splits["train_inferred"]
    with torch.no_grad():
        atomic, composed = (model.states(split.inputs)[4]["resid"][:, 1] for split in (ID, two_hop))
    for row in range(10):
        same = (ID.inputs[:, :2] == two_hop.inputs[row, :2]).all(1)
        torch.testing.assert_close(atomic[same][0], composed[row])


def test_bad_input_of_the_cosine_lens():
    model = make()
    with pytest.raises(BadInput, match=r"ood_atomic='two-hop queries'"):
        cosine_lens(model, ID, REGIME.splits["train_inferred"])
    with pytest.raises(BadInput, match="none has the tail"):
        cosine_lens(model, facts([1]), facts([2]))
    with pytest.raises(BadInput, match=r"position='x'"):
        cosine_lens(model, ID, OOD, position="x")


@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_map_recovers_points_of_a_plane(count):
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(count)).double()
    distances = torch.cdist(points, points)
    found = mds(distances)
    torch.testing.assert_close(torch.cdist(found, found), distances, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.mean(0), torch.zeros(2).double())
    assert found[:, 0].square().sum() >= found[:, 1].square().sum()
    # Turned and mirrored, it is the same map.
    turned = points @ torch.tensor([[0.6, 0.8], [0.8, -0.6]]).double() + 3
    torch.testing.assert_close(mds(torch.cdist(turned, turned)), found, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.gather(0, found.abs().argmax(0, keepdim=True)), found.abs().amax(0, keepdim=True))


def test_maps_of_one_point_and_of_no_matrix():
    assert mds(torch.zeros(1, 1)).tolist() == [[0, 0]]
    for wrong in (torch.zeros(2, 3), torch.tensor([[0.0, 1.0], [2.0, 0.0]])):
        with pytest.raises(BadInput, match="symmetric"):
            mds(wrong)


def test_cosine_distances():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 1.0]])
    slant = 1 - 1 / math.sqrt(2)
    expected = [[0, 1, 2, slant], [1, 0, 1, slant], [2, 1, 0, 2 - slant], [slant, slant, 2 - slant, 0]]
    torch.testing.assert_close(cosine_distances(vectors), torch.tensor(expected).double())


def test_a_map_of_facts_is_the_same_in_any_batch(monkeypatch):
    model, rows = make(), []
    whole = fact_map(model, ID, OOD, entities=3)
    states = model.states
    monkeypatch.setattr(model, "states", lambda inputs, ids=None: rows.append(len(inputs)) or states(inputs, ids))
    pieces = fact_map(model, ID, OOD, entities=3, batch=2)
    assert max(rows) == 2
    torch.testing.assert_close(whole.place, pieces.place)
    assert len(whole.tail.unique()) == 3
    with pytest.raises(BadInput, match=r"entities=0: use 1 or more"):
        fact_map(model, ID, OOD, entities=0)
