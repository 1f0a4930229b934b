"""The lazy mode asks the same questions as the materialised one, from the fact table alone."""

import pytest
import torch

from grok.data import FillIn, TwoHopComposition, lazy
from grok.data.knowledge_graph import Hops
from grok.errors import BadInput

SMALL = {"entities": 60, "relations": 15, "out_degree": 8, "phi": 3.0, "ood": 0.1, "iid": 0.1, "batch": 256}


def pairs(hops: Hops) -> set[tuple[int, int]]:
    return set(zip(hops.first.tolist(), hops.second.tolist(), strict=True))


@pytest.fixture
def both():
    return TwoHopComposition(**SMALL), TwoHopComposition(**SMALL, lazy=True)


@pytest.fixture
def drawn(both):
    """100,000 training queries of the lazy mode."""
    return both[1].generated.train.hops(torch.arange(100_000))


def test_same_facts_and_same_evaluation_splits(both):
    materialised, lazily = both
    assert torch.equal(materialised.graph.tails, lazily.graph.tails)
    assert torch.equal(materialised.graph.relations, lazily.graph.relations)
    assert list(materialised.splits) == list(lazily.splits)
    for name, split in materialised.splits.items():
        if name != "train_inferred":
            assert torch.equal(split.inputs, lazily.splits[name].inputs)
            assert torch.equal(split.targets, lazily.splits[name].targets)
            assert torch.equal(split.truth["facts"], lazily.splits[name].truth["facts"])


def test_training_never_sees_what_is_held_out(both, drawn):
    graph = both[0].graph
    composed = drawn.take(drawn.second >= 0)
    assert graph.in_distribution(composed).all()
    assert not graph.held_out(0.1, composed).any()
    assert torch.equal(graph.tail(composed.first), graph.head(composed.second))
    held_out = {tuple(row) for row in both[0].splits["test_inferred_iid"].truth["facts"].tolist()}
    assert held_out
    assert not held_out & pairs(composed)


def test_phi_holds_in_expectation(both, drawn):
    materialised, _ = both
    train = materialised.queries().train
    sample, composed = pairs(train.take(train.second >= 0)), pairs(drawn.take(drawn.second >= 0))
    assert abs(len(composed) / len(sample) - 1) < 0.05
    # Both samples go by one hash: one is inside the other, but for what the exact count adds or removes.
    assert len(composed - sample) == 0 or len(sample - composed) < 5


def test_atomic_facts_are_as_frequent_as_in_the_table(both, drawn):
    table = both[0].queries().train
    expected = (table.second < 0).double().mean()
    assert abs((drawn.second < 0).double().mean() - expected) < 0.008
    counts = drawn.first[drawn.second < 0].bincount(minlength=both[0].graph.facts).double()
    assert 0.7 < counts.var() / counts.mean() < 1.3  # uniform over all facts, in and out of distribution
    composed = drawn.take(drawn.second >= 0)
    _, counts = (composed.first * both[0].graph.facts + composed.second).unique(return_counts=True)
    assert 0.7 < counts.double().var() / counts.double().mean() < 1.3


def test_a_batch_is_a_function_of_the_step(both):
    stream = both[1].generated.train
    together = [batch.queries.inputs for batch in stream.batches(0, 100)]
    for step in (0, 63, 64, 99):
        assert torch.equal(stream.batch(step).queries.inputs, together[step])
    assert not torch.equal(together[0], together[1])
    other = TwoHopComposition(**SMALL, lazy=True, order_seed=1).generated.train
    assert not torch.equal(other.batch(0).queries.inputs, together[0])


def test_ranks_share_a_batch(both):
    stream = both[1].generated.train
    whole, parts = stream.batch(5), [stream.batch(5, rank, 3) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.queries.inputs, whole.queries.inputs[rank::3])
        assert int(part.supervised) == int(whole.supervised) == 256


def test_supervised_positions_are_counted_per_query():
    regime = TwoHopComposition(**SMALL, lazy=True, encoding=FillIn())
    batch = regime.generated.train.batch(0)
    assert int(batch.supervised) == int(batch.queries.mask.sum()) < batch.queries.mask.numel()
    assert torch.equal(batch.queries.labels, regime.splits["id_atomic"].labels)


def test_a_rare_composition_is_found_or_refused():
    rare = TwoHopComposition(**{**SMALL, "phi": 0.1}, lazy=True)  # 1.1 % of the draws
    batch = rare.generated.train.batch(0).queries
    assert len(batch) == 256
    with pytest.raises(BadInput, match=r"phi=0\.01: .* use at least 0\.0"):
        TwoHopComposition(**{**SMALL, "phi": 0.01}, lazy=True).setup()


def test_drawing_is_bounded(both, monkeypatch):
    stream = both[1].generated.train
    monkeypatch.setattr(lazy, "DRAWING_ROUNDS", 1)
    stream._attempts = 1
    with pytest.raises(BadInput, match=r"phi=3\.0"):
        stream.batch(0)


def test_splits_of_large_graphs_are_drawn(both, monkeypatch):
    materialised, lazily = both
    monkeypatch.setattr("grok.data.composition.ENUMERATED_AT_MOST", 0)
    monkeypatch.setattr(lazy, "DRAWN_AT_ONCE", 1000)
    lazily = TwoHopComposition(**SMALL, lazy=True, test_size=10)
    graph = materialised.graph
    wanted = {"iid": (0, 0), "ood": (1, 1), "io": (0, 1), "oi": (1, 0)}
    for name, hops in wanted.items():
        split = lazily.splits[f"test_inferred_{name}"]
        assert len(split) == 10
        assert (split.truth["ood"] == torch.tensor(hops)).all()
        assert len(split.truth["facts"].unique(dim=0)) == 10
    facts = lazily.splits["test_inferred_iid"].truth["facts"]
    assert graph.held_out(0.1, Hops(facts[:, 0], facts[:, 1])).all()
    facts = lazily.splits["train_inferred"].truth["facts"]
    assert not graph.held_out(0.1, Hops(facts[:, 0], facts[:, 1])).any()


def test_a_split_that_drawing_cannot_fill(monkeypatch):
    monkeypatch.setattr("grok.data.composition.ENUMERATED_AT_MOST", 0)
    monkeypatch.setattr(lazy, "DRAWN_AT_ONCE", 1000)
    monkeypatch.setattr(lazy, "DRAWN_AT_MOST", 3000)
    with pytest.raises(BadInput, match=r"test_size=3000: drawing found \d+ queries of"):
        TwoHopComposition(**SMALL, lazy=True).setup()


def test_no_out_of_distribution_fact():
    assert list(TwoHopComposition(**{**SMALL, "ood": 0.0}, lazy=True).splits) == [
        "id_atomic",
        "train_inferred",
        "test_inferred_iid",
    ]


@pytest.mark.gpu
def test_the_same_batches_on_a_gpu(both):
    stream = both[1].generated.train
    on_gpu = stream.to("cuda").batch(3).queries
    assert on_gpu.inputs.is_cuda
    assert torch.equal(on_gpu.inputs.cpu(), stream.batch(3).queries.inputs)


@pytest.mark.slow
def test_a_million_entities():
    regime = TwoHopComposition(entities=10**6, lazy=True)
    assert all(len(split) == 3000 for split in regime.splits.values())
    assert len(regime.generated.train.batch(0).queries) == 512
