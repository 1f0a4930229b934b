"""Number by number against the recursive model of the code released with He et al. 2026."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from grok.data import Batch, Split
from grok.models import RecursiveTransformer
from grok.models.exchange import from_recursive
from grok.task import Task
from grok.training import GrokModule, Stablemax

FIXTURES = Path(__file__).parent / "fixtures"


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach() - b).norm() / b.norm())


class WithTable(RecursiveTransformer):
    """The fixtures have two rows of puzzle vectors; which one a query gets is not our model's business."""

    vectors: torch.Tensor

    def embed(self, inputs, position_ids=None):
        state = super().embed(inputs, position_ids)
        first = self.vectors[:, None] * math.sqrt(self.vectors.shape[1])
        return {**state, "prefix": torch.cat([first, state["prefix"][:, 1:]], 1)}


@pytest.fixture(params=["trm_token_mixing", "trm_attention_rope"])
def released(request):
    with safe_open(FIXTURES / f"{request.param}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def module(released):
    config, tensors = released
    task = Task(positions=config["seq_len"], outputs=config["vocab_size"], tokens=config["vocab_size"])
    net = partial(
        WithTable, width=config["hidden_size"], layers=config["L_layers"], high_cycles=config["H_cycles"],
        low_cycles=config["L_cycles"], mixing="tokens" if config["mlp_t"] else "attention",
        positions=config["pos_encodings"], heads=config["num_heads"], expansion=config["expansion"],
    )  # fmt: skip
    module = GrokModule(task, net, objective=Stablemax(), reduction="queries")
    weights = {name.removeprefix("weights."): w for name, w in tensors.items() if name.startswith("weights.")}
    module.net.vectors = weights.pop("inner.puzzle_emb.weights")[tensors["puzzle_identifiers"]]
    module.net.load_state_dict({**from_recursive(weights), "prefix": torch.zeros(config["hidden_size"])})
    return module


def batch_of(tensors) -> Batch:
    """The labels as slots; where a query has one label, its second slot is masked."""
    labels = tensors["labels"]
    at = torch.tensor([[2, 3]]).expand(len(labels), -1)
    targets = labels.gather(1, at)
    assert int((labels >= 0).sum()) == int((targets >= 0).sum())  # no label elsewhere
    names = tuple(map(str, range(labels.shape[1])))
    split = Split(tensors["inputs"], at, targets.clamp(min=0), targets >= 0, names)
    return Batch(split, split.mask.sum(), size=len(split))


def test_all_states_and_logits_equal_the_released_code(released, module):
    config, tensors = released
    net = module.net
    states = net.states(tensors["inputs"])
    expected = [tensors[name] for name in sorted(tensors) if name.startswith("state.")]
    assert len(states) - 1 == len(net.steps) == len(expected) == config["H_cycles"] * (config["L_cycles"] + 1)
    for index, theirs in enumerate(expected, start=1):
        stream = net.stream_at(index)
        prefix = states[index][stream.replace("z_", "prefix_")]
        assert distance(torch.cat([prefix, states[index][stream]], 1), theirs) < 1e-5, index
    assert distance(net(tensors["inputs"]), tensors["logits"]) < 1e-5
    assert distance(net.halt_logits(states[-1]), tensors["q_halt_logits"]) < 1e-5


@pytest.mark.parametrize("read_out", ["supervised", "everywhere"])
def test_losses_and_gradients_equal_the_released_code(released, module, read_out):
    _, tensors = released
    module.read_out, batch = read_out, batch_of(tensors)
    loss = module.loss(batch)
    queries = len(batch.queries)
    assert distance(loss * queries, tensors["loss"][0]) < 1e-5
    module.net.halt_weight = 0.0
    assert distance(module.loss(batch) * queries, tensors["lm_loss"][0]) < 1e-5
    module.net.halt_weight = 1.0
    assert distance(module.loss(batch) * queries, tensors["lm_loss"][0] + tensors["q_halt_loss"][0]) < 1e-5

    (loss * queries).backward()
    gradients = from_recursive({n.removeprefix("grad."): g for n, g in tensors.items() if n.startswith("grad.")})
    learnt = dict(module.net.named_parameters())
    assert gradients.keys() == learnt.keys() - {"prefix"}
    for name, gradient in gradients.items():
        assert distance(learnt[name].grad, gradient) < 1e-5, name


def test_the_fused_kernel_for_longer_inputs_agrees_with_the_released_code(released, module, monkeypatch):
    _, tensors = released
    monkeypatch.setattr("grok.models.layers._FEW_KEYS", 100)  # 26 keys: the other branch is the one used above
    assert distance(module.net(tensors["inputs"]), tensors["logits"]) < 1e-5
