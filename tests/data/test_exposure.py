"""Fact-level augmentation: one OOD hop each, no test in training, and regimes that differ in nothing else."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from grok.data import FactExposure, FillIn, ReferenceJSON, TwoHopComposition, write_reference_json
from grok.data.exposure import Exposure
from grok.errors import BadInput

SMALL = {"entities": 40, "relations": 12, "out_degree": 6, "phi": 2.0, "ood": 0.1, "iid": 0.1}
REGIMES = ("natural", "both_full", "both_half", "hop1_full", "hop2_full")


def pairs(hops):
    """Queries as pairs of fact rows."""
    return set(zip(hops.first.tolist(), hops.second.tolist(), strict=True))


def untrained(queries):
    return {name: pairs(hops) for name, hops in queries.evaluation.items() if name.startswith(("test", "id", "ood"))}


@settings(deadline=None, max_examples=25)
@given(
    entities=st.integers(20, 40),
    degree=st.integers(2, 6),
    ood=st.floats(0.05, 0.3),
    iid=st.floats(0, 0.2),
    k=st.integers(2, 7),
    seed=st.integers(0, 10**6),
)
def test_regimes_differ_in_the_injected_compositions_only(entities, degree, ood, iid, k, seed):
    sizes = {"entities": entities, "relations": 8, "out_degree": degree, "phi": 0.5, "ood": ood, "iid": iid}
    regimes = {name: FactExposure(name, k=k, **sizes, seed=seed) for name in REGIMES}
    try:
        queries = {name: regime.queries() for name, regime in regimes.items()}
        plain = TwoHopComposition(**sizes, seed=seed).queries()
    except BadInput:  # phi beyond the pool
        reject()
    graph = regimes["natural"].graph
    shared = len(plain.train.first)
    tests = untrained(queries["natural"])
    whole = graph.compositions()
    oo = whole.take(graph.ood[whole.first] & graph.ood[whole.second])
    injected = {name: regime.injected() for name, regime in regimes.items()}
    for name, asked in queries.items():
        assert torch.equal(asked.train.first[:shared], plain.train.first)
        assert torch.equal(asked.train.second[:shared], plain.train.second)
        assert untrained(asked) == tests
        first, second = injected[name]
        assert len(asked.train.first) == shared + len(first.first) + len(second.first)
        table = pairs(asked.train)
        assert len(table) == len(asked.train.first)  # no row twice
        assert not any(table & test for kind, test in tests.items() if kind.startswith("test"))
        assert (graph.ood[first.first] & ~graph.ood[first.second]).all()
        assert (~graph.ood[second.first] & graph.ood[second.second]).all()
        for hops in (first, second):
            assert torch.equal(graph.tail(hops.first), graph.head(hops.second))
        most = {"natural": 0, "both_half": k // 2}.get(name, k)
        for rows, tested in ((first.first, oo.first), (second.second, oo.second)):
            facts, counts = rows.unique(return_counts=True)
            assert (counts <= most).all()
            assert torch.isin(facts, tested).all()
            if name == "both_half":
                assert len(facts) <= round(0.5 * len(tested.unique()))
    held_out = whole.take(graph.held_out(iid, whole))
    for name, io in (("test_inferred_io", (False, True)), ("test_inferred_oi", (True, False))):
        mixed = held_out.take((graph.ood[held_out.first] == io[0]) & (graph.ood[held_out.second] == io[1]))
        assert tests[name] == pairs(mixed)
    for hop in (0, 1):
        sets = {name: pairs(injected[name][hop]) for name in REGIMES}
        assert sets["natural"] == set()
        assert sets["both_half"] <= sets["both_full"]
        assert sets["both_full"] == sets["hop1_full" if hop == 0 else "hop2_full"]
        assert sets["hop2_full" if hop == 0 else "hop1_full"] == set()


def test_every_exposed_fact_gets_all_there_is_up_to_k():
    regime = FactExposure("both_full", k=3, **{**SMALL, "ood": 0.2})
    graph, whole = regime.graph, regime.graph.compositions()
    allowed = whole.take(~graph.held_out(0.1, whole))
    ood1, ood2 = graph.ood[allowed.first], graph.ood[allowed.second]
    tested = whole.take(graph.ood[whole.first] & graph.ood[whole.second])
    first, second = regime.injected()
    for facts, ours, available in (
        (tested.first, first.first, allowed.first[ood1 & ~ood2]),
        (tested.second, second.second, allowed.second[~ood1 & ood2]),
    ):
        size = graph.facts
        there = available.bincount(minlength=size).clamp(max=3)
        there[~torch.isin(torch.arange(size), facts)] = 0
        assert torch.equal(ours.bincount(minlength=size), there)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counts_at_paper_size(seed):
    # Printed by the released code for one graph: 22,697 and 21,492, of 1,273 and 1,284 exposed facts. Each held-out
    # share costs 0.5 %; the rest is the number of OOD-OOD compositions of a graph, about 2,000.
    full, half = FactExposure("both_full", seed=seed), FactExposure("both_half", seed=seed)
    first, second = full.injected()
    facts1, facts2 = len(first.first.unique()), len(second.second.unique())
    assert 1150 < facts1 < 1450
    assert 1150 < facts2 < 1450
    assert 17.5 < len(first.first) / facts1 < 18  # 17.8 as printed
    assert 16.3 < len(second.first) / facts2 < 17.2  # 16.7 as printed
    half1, half2 = half.injected()
    assert len(half1.first.unique()) == round(facts1 / 2)
    assert 8.9 < len(half1.first) / len(half1.first.unique()) <= 9
    assert 8.7 < len(half2.first) / len(half2.second.unique()) <= 9


def test_injected_compositions_are_trained_and_scored():
    natural, full = FactExposure(**SMALL), FactExposure("both_full", **SMALL)
    assert "train_inferred_oi" not in natural.splits
    assert natural.generated.train.rows == TwoHopComposition(**SMALL).generated.train.rows
    table = {tuple(row) for row in full.generated.train.table.inputs.tolist()}
    for name, hops in (("train_inferred_io", (0, 1)), ("train_inferred_oi", (1, 0))):
        split = full.splits[name]
        assert len(split)
        assert (split.truth["ood"] == torch.tensor(hops)).all()
        assert {tuple(row) for row in split.inputs.tolist()} <= table
        assert not {tuple(row) for row in full.splits["test" + name[5:]].inputs.tolist()} & table
    assert not natural.generated.facts.composed[natural.graph.ood].any()
    assert full.generated.facts.composed[full.graph.ood].any()


def test_overrides():
    regime = FactExposure("hop1_full", k=6, h1ratio=0.5, h2ratio=1.0, h2k=1, **SMALL)
    assert (regime.hop1, regime.hop2) == (Exposure(0.5, 6), Exposure(1.0, 1))
    _, counts = regime.injected()[1].second.unique(return_counts=True)
    assert (counts == 1).all()
    assert FactExposure("both_half", k=9, **SMALL).hop2 == Exposure(0.5, 4)


def test_bad_arguments_are_told_at_once():
    with pytest.raises(BadInput) as raised:
        FactExposure("both_full", k=0, h1ratio=2, h2k=-1, lazy=True, phi=-1, batch=0)
    assert {problem.key for problem in raised.value.problems} == {"k", "h1ratio", "h2k", "lazy", "phi", "batch"}
    with pytest.raises(BadInput, match="regime='both': use natural, both_full"):
        FactExposure("both")
    with pytest.raises(BadInput, match="h1k=0: give both h1ratio and h1k"):
        FactExposure(h1ratio=0.5)
    with pytest.raises(BadInput, match="h2k=0"):
        FactExposure("both_half", k=1, h1k=1)
    with pytest.raises(BadInput, match="inject nothing"):
        FactExposure("hop1_full", avoid_exposing_ood_test_bridges=True)
    assert FactExposure.check(regime="both_full", avoid_exposing_ood_test_bridges=True, seed=1, encoding=None) == []
    with pytest.raises(BadInput, match="no lazy mode"):
        FactExposure(entities=10**6)


def test_written_files_are_read_back_with_the_injected_compositions(tmp_path):
    regime = FactExposure("both_full", k=3, encoding=FillIn(), **SMALL)
    write_reference_json(regime, tmp_path / "files")
    read = ReferenceJSON(tmp_path / "files", encoding=FillIn())
    assert torch.equal(read.generated.train.table.inputs, regime.generated.train.table.inputs)
    assert set(read.splits) == set(regime.splits)
    for name, split in regime.splits.items():
        assert torch.equal(read.splits[name].inputs, split.inputs)
        assert torch.equal(read.splits[name].truth["bridge"], split.truth["bridge"])


def test_the_released_code_keeps_the_same_bounds():
    files = "composition_json/composition.60.12.4.0_factaug_h1ratio0.5_h1k9_h2ratio0.5_h2k9"
    data = ReferenceJSON(Path(__file__).parent / "fixtures" / files)
    hops = data.facts.hops(data.files.train.symbols[data.files.train.inferred])
    ood = data.facts.is_ood(hops)
    tested = data.facts.hops(data.files.valid.symbols)
    for hop, exposed in ((0, hops.first[ood[:, 0] == 1]), (1, hops.second[ood[:, 1] == 1])):
        facts, counts = exposed.unique(return_counts=True)
        assert (counts <= 9).all()
        assert torch.isin(facts, tested[hop]).all()
        assert len(facts) <= round(0.5 * len(tested[hop].unique()))
    assert not (ood == 1).all(1).any()
