"""Random graphs: distinct relations, exact shares, the same for a seed in every process."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data.knowledge_graph import Hops, KnowledgeGraph, keyed_sample

sizes = st.integers(1, 12).flatmap(lambda relations: st.tuples(st.just(relations), st.integers(1, relations)))


@settings(deadline=None, max_examples=40)
@given(entities=st.integers(1, 30), size=sizes, ood=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_graph(entities, size, ood, seed):
    relations, degree = size
    graph = KnowledgeGraph.random(entities, relations, degree, ood, seed)
    assert graph.relations.shape == graph.tails.shape == (entities, degree)
    assert (graph.relations.diff(dim=1) > 0).all()  # ascending, so (head, relation) is unique
    assert graph.relations.min() >= 0
    assert graph.relations.max() < relations
    assert graph.tails.min() >= 0
    assert graph.tails.max() < entities
    assert int(graph.ood.sum()) == round(ood * graph.facts)


@settings(deadline=None, max_examples=20)
@given(entities=st.integers(1, 10), size=sizes, seed=st.integers(0, 99))
def test_facts_and_compositions_by_brute_force(entities, size, seed):
    relations, degree = size
    graph = KnowledgeGraph.random(entities, relations, degree, 0.3, seed)
    fact = torch.arange(graph.facts)
    table = {}
    for row in range(graph.facts):
        table[int(graph.head(fact[row])), int(graph.relation(fact[row]))] = row
    for head in range(entities):
        for relation in range(relations):
            found = int(graph.find(torch.tensor(head), torch.tensor(relation)))
            assert found == table.get((head, relation), -1)
    tails = graph.tail(fact).tolist()
    expected = [(a, b) for a in range(graph.facts) for b in range(graph.facts) if tails[a] == b // degree]
    hops = graph.compositions()
    assert list(zip(hops.first.tolist(), hops.second.tolist(), strict=True)) == expected
    assert graph.bridge(hops).tolist() == [tails[a] for a, _ in expected]
    assert graph.answer(hops).tolist() == [tails[b] for _, b in expected]
    flags = graph.ood.tolist()
    known = [not flags[a] and not flags[b] for a, b in expected]
    assert graph.in_distribution(hops).tolist() == known
    assert graph.in_distribution_compositions() == sum(known)


def test_absent_hops_are_minus_one():
    graph = KnowledgeGraph.random(5, 4, 2)
    hops = graph.atomic(torch.tensor([0, 3]))
    absent = Hops(hops.second, hops.second)
    assert graph.bridge(hops).tolist() == [-1, -1]
    assert torch.equal(graph.answer(hops), graph.tail(hops.first))
    for column in (graph.head, graph.relation, graph.tail, graph.is_ood):
        assert column(absent.first).tolist() == [-1, -1]


def test_relations_of_an_entity_are_a_uniform_choice():
    graph = KnowledgeGraph.random(20_000, 10, 3)
    counts = graph.relations.flatten().bincount(minlength=10)
    assert (counts - 6000).abs().max() < 6 * (6000 * 0.7) ** 0.5
    codes = (graph.relations * torch.tensor([100, 10, 1])).sum(1)
    assert len(codes.unique()) == 120  # every set of three relations occurs


def test_a_million_entities_need_no_dense_table():
    graph = KnowledgeGraph.random(200_000, 1_000_000, 2)  # entities × relations would be 200 GB
    fact = torch.arange(0, graph.facts, 1001)
    assert torch.equal(graph.find(graph.head(fact), graph.relation(fact)), fact)


def test_samples_are_exact_and_nested():
    hashes = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    small, large = keyed_sample(10, hashes), keyed_sample(100, hashes)
    assert torch.equal(large[:10], small)
    assert len(large) == len(large.unique()) == 100
    assert len(keyed_sample(5000, hashes)) == 1000


def test_independent_of_the_process_and_its_hash_seed():
    program = (
        "import sys, types\n"
        "package = types.ModuleType('grok.data')\n"  # the package itself would import Lightning
        "package.__path__ = ['grok/data']\n"
        "sys.modules['grok.data'] = package\n"
        "from grok.data.knowledge_graph import KnowledgeGraph\n"
        "graph = KnowledgeGraph.random(50, 20, 5, seed=3)\n"
        "hops = graph.compositions()\n"
        "print(graph.relations.tolist(), graph.tails.tolist(), graph.ood.tolist())\n"
        "print(graph.held_out(0.2, hops).tolist(), graph.order(hops).tolist())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    graph = KnowledgeGraph.random(50, 20, 5, seed=3)
    hops = graph.compositions()
    here = f"{graph.relations.tolist()} {graph.tails.tolist()} {graph.ood.tolist()}\n"
    here += f"{graph.held_out(0.2, hops).tolist()} {graph.order(hops).tolist()}\n"
    assert outputs == [here, here]
