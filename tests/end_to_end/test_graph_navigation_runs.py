"""Graph navigation through the command line: edges and plans are learned and measured."""

from pathlib import Path

import pytest
import yaml
from seeds import SEEDS
from tiny_configuration import TINY

from grok.records import RunRecord

CONFIGS = Path(__file__).resolve().parents[2] / "configs/khona2024"
SIZES = {"graph": "tree", "nodes": 31, "batch": 32}
HELD_OUT = "held_out_pairs"


def values(run, name, split=HELD_OUT):
    """Value of a measure at every step at which it was recorded."""
    return {row["step"]: row["value"] for row in RunRecord(run).rows(f"measures/{name}") if row["split"] == split}


@pytest.fixture
def tiny(tmp_path):
    """A configuration of a tree, one attention layer."""
    config = yaml.safe_load(TINY)
    config["trainer"]["max_steps"] = 120
    config["data"] = {"class_path": "grok.data.GraphNavigation", "init_args": SIZES}
    config["model"]["net"]["init_args"] = {"width": 32, "heads": 1, "layers": 1, "mlp": "none"}
    config["model"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    config["measures"] = {"enabled": True, "every": 120}
    config["groups"] = {"enabled": True, "every": 120}
    config["evaluation"] = {"every": 120}
    (tmp_path / "tree.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "tree.yaml"


def test_a_tree_is_learned_and_measured(grok, tiny, tmp_path):
    status, _, errors = grok("fit", "--config", tiny, "--run_dir", tmp_path / "run")
    assert (status, errors) == (0, "")
    edges = values(tmp_path / "run", "edge_accuracy/all")
    assert set(edges) == {0, 120}
    assert edges[120] > max(0.9, edges[0])
    verdict = values(tmp_path / "run", "verdict/all")
    assert verdict[120] > 0.7
    outcomes = [values(tmp_path / "run", f"outcome/{name}")[120] for name in ("reached", "misstep", "planning_failure")]
    assert sum(outcomes) == pytest.approx(1)
    assert values(tmp_path / "run", "rule/model_edge")[120] > 0.8
    groups = {row["name"] for row in RunRecord(tmp_path / "run").rows() if row["name"].startswith("groups/")}
    assert groups == {f"groups/mass/0.head0/{group}" for group in ("goal", "current", "other")}
    summary = RunRecord(tmp_path / "run").summary()
    assert summary["sizes"]["edges"] == 30
    assert set(summary["accuracy"]) == {"train_pairs", HELD_OUT}


def test_a_direct_answer_is_trained_too(grok, tiny, tmp_path):
    arguments = ("--data.protocol", "direct", "--trainer.max_steps", 20)
    status, _, errors = grok("fit", "--config", tiny, "--run_dir", tmp_path / "run", *arguments)
    assert (status, errors) == (0, "")
    accuracy = RunRecord(tmp_path / "run").summary()["accuracy"][HELD_OUT]
    assert values(tmp_path / "run", "verdict/all")[20] == pytest.approx(accuracy)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_stepwise_is_better_and_edges_come_before_plans(grok, tmp_path, seed):
    for protocol in ("stepwise", "direct"):
        arguments = ("--config", CONFIGS / "navigation_small.yaml", "--run_dir", tmp_path / protocol)
        arguments += ("--seed_everything", seed, "--data.protocol", protocol, "--figures.enabled", "false")
        status, _, errors = grok("fit", *arguments)
        assert (status, errors) == (0, "")
    last = {protocol: values(tmp_path / protocol, "verdict/all")[1000] for protocol in ("stepwise", "direct")}
    assert last["stepwise"] >= last["direct"] + 0.05
    edges, reached = (values(tmp_path / "stepwise", name) for name in ("edge_accuracy/all", "outcome/reached"))
    learned = min(step for step, value in edges.items() if value >= 0.95)
    planned = min((step for step, value in reached.items() if value >= 0.9), default=float("inf"))
    assert planned >= learned + 100
    assert reached[1000] >= 0.7
