"""Rank by rank against the tracing script that Wang et al. 2024 released, on an 8-layer GPT-2."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from grok.circuits import Counterfactual, causal_tracing, composition_counterfactuals, logit_lens
from grok.data import ReferenceJSON
from grok.models import LoopedTransformer
from grok.models.exchange import from_gpt2
from grok.task import Task

FIXTURES = Path(__file__).parent / "fixtures"
DATA = Path(__file__).parents[1] / "data/fixtures/composition_json"
LAYERS = range(1, 8)


@pytest.fixture(scope="module")
def model():
    with safe_open(FIXTURES / "model.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    task = Task(positions=config["n_positions"], outputs=config["vocab_size"], tokens=config["vocab_size"])
    net = LoopedTransformer(task, width=config["n_embd"], layers=config["n_layer"], heads=config["n_head"])
    net.load_state_dict(from_gpt2({name.removeprefix("weights."): weight for name, weight in weights.items()}))
    return net.eval()


@pytest.fixture(scope="module")
def regime():
    return ReferenceJSON(DATA / "composition.60.12.4.0_factaug_h1ratio0.0_h1k0_h2ratio0.0_h2k0")


@pytest.fixture(scope="module")
def records():
    return json.loads((FIXTURES / "tracing.json").read_text())


@pytest.fixture(scope="module")
def queries(regime, records):
    split = regime.splits["train_inferred"]
    place = {"".join(regime.tokens(row)): index for index, row in enumerate(split.inputs)}
    return split.take(torch.tensor([place[record["query"]] for record in records]))


def tokens(regime, text):
    vocabulary = {name: index for index, name in enumerate(regime.files.vocabulary)}
    return [vocabulary[part + ">"] for part in text.split(">")[:-1]]


def test_every_rank_of_the_lens_is_equal(model, queries, records):
    lens = logit_lens(model, queries, ["bridge", "r2", "answer"], batch=50)
    bridge, r2, answer = (lens.readings[name].rank[..., 0] for name in lens.columns)
    for layer in LAYERS:
        assert bridge[:, layer, 1].tolist() == [record[f"b_rank_pos1_{layer}"] for record in records]
        assert r2[:, layer, 2].tolist() == [record[f"r2_rank_pos2_{layer}"] for record in records]
    assert answer[:, 8, 2].tolist() == [record["rank_before"] for record in records]


@pytest.mark.parametrize("batch", [7, 100_000], ids=["one example at a time", "all at once"])
def test_every_rank_after_a_patch_is_equal(model, queries, records, regime, batch):
    counterfactuals = []
    for position, name in enumerate(("h", "r1", "r2")):
        inputs = queries.inputs.clone()
        for row, record in enumerate(records):
            prefix = torch.tensor(tokens(regime, record["perturbed"][name]))
            assert len(prefix) == position + 1
            inputs[row, : position + 1] = prefix
        everywhere = torch.ones(len(queries), dtype=torch.bool)
        counterfactuals.append(Counterfactual(name, inputs, (position,), queries.targets[:, 0], everywhere))
    tracing = causal_tracing(model, queries, counterfactuals, steps=LAYERS, batch=batch)
    for index, name in enumerate(tracing.names):
        for place, layer in enumerate(LAYERS):
            ranks = tracing.outcome.patched.rank[:, index, place, 0].tolist()
            assert ranks == [record[f"{name}_{layer}"] for record in records], (name, layer)
    assert tracing.outcome.clean.rank[:, 0, 0].tolist() == [record["rank_before"] for record in records]


def test_the_authors_perturbed_prompts_are_counterfactuals_by_our_rule_too(regime, queries, records):
    facts = regime.generated.facts
    h, r1, r2 = queries.inputs[:, :3].unbind(1)
    for name in ("h", "r1", "r2"):
        theirs = torch.tensor([tokens(regime, record["perturbed"][name])[-1] for record in records])
        path = {"h": (theirs, r1, r2), "r1": (h, theirs, r2), "r2": (h, r1, theirs)}[name]
        outcome = facts.follow(facts.follow(path[0], path[1]), path[2])
        assert (outcome != queries.targets[:, 0]).all()
        assert (theirs != {"h": h, "r1": r1, "r2": r2}[name]).all()
    ours = composition_counterfactuals(queries, facts)
    assert [one.positions for one in ours] == [(0,), (1,), (2,)]
    assert all(one.exists.all() for one in ours)
