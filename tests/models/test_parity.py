"""Number by number against the GPT-2 that Wang et al. 2024 released, plain and with its stack run twice."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from grok.models import LoopedTransformer
from grok.models.exchange import from_gpt2
from grok.task import Task

FIXTURES = Path(__file__).parent / "fixtures"


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach() - b).norm() / b.norm())


@pytest.fixture(params=["gpt2_plain", "gpt2_shared_two_passes"])
def released(request):
    with safe_open(FIXTURES / f"{request.param}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def model(released):
    config, tensors = released
    task = Task(positions=config["n_positions"], outputs=config["vocab_size"], tokens=config["vocab_size"])
    net = LoopedTransformer(
        task, width=config["n_embd"], layers=config["n_layer"], heads=config["n_head"],
        loops=2 if config["add_recurrence"] else 1,
    )  # fmt: skip
    weights = {name.removeprefix("weights."): w for name, w in tensors.items() if name.startswith("weights.")}
    net.load_state_dict(from_gpt2(weights))
    return net


def test_hidden_states_logits_loss_and_gradients_equal_the_released_code(released, model):
    config, tensors = released
    states = model.states(tensors["input_ids"])
    hidden = [state["resid"] for state in states[:-1]] + [model.norm(states[-1]["resid"])]
    expected = [tensors[name] for name in sorted(tensors) if name.startswith("hidden.")]
    assert len(hidden) == len(expected) == config["n_layer"] * (2 if config["add_recurrence"] else 1) + 1
    for mine, theirs in zip(hidden, expected, strict=True):
        assert distance(mine, theirs) < 1e-5

    logits = model(tensors["input_ids"])
    assert distance(logits, tensors["logits"]) < 1e-5
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tensors["labels"][:, 1:].flatten())
    assert distance(loss, tensors["loss"]) < 1e-5

    loss.backward()
    gradients = from_gpt2({n.removeprefix("grad."): g for n, g in tensors.items() if n.startswith("grad.")})
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, gradients[name]) < 1e-5, name


def test_the_fused_kernel_for_longer_inputs_agrees_with_the_released_code(released, model, monkeypatch):
    _, tensors = released
    monkeypatch.setattr("grok.models.layers._FEW_KEYS", 0)
    assert distance(model(tensors["input_ids"]), tensors["logits"]) < 1e-5
