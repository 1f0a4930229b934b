"""Paths in trees through the command line: learned, found without help on irregular trees, by heads with roles."""

import json
from pathlib import Path

import pytest

CONFIGS = Path(__file__).resolve().parents[2] / "configs/yang2025"


def last_values(run, split="irregular"):
    """The last value of every metric of a split."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["name"]: row["value"] for row in rows if row["split"] == split}


def test_a_small_layer_learns_to_climb_trees_it_has_not_seen(grok, tmp_path):
    run = tmp_path / "run"
    status, _, err = grok(
        "fit", "--config", CONFIGS / "tree_backward_small.yaml", "--run_dir", run, "--trainer.max_steps", 100,
        "--data.depth", 2, "--data.labels", 7, "--data.test_depth", 5, "--data.test_size", 100, "--data.batch", 32,
        "--groups.every", 100, "--measures.every", 100, "--evaluation.every", 50, "--series.every", 100,
        "--figures.enabled", "false",
    )  # fmt: skip
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    exact = [row["value"] for row in rows if row["name"] == "measures/path/exact"]
    assert exact[0] < 0.3
    assert exact[-1] == 1.0
    values = last_values(run)
    assert values["accuracy"] == 1.0
    assert values["groups/mass/0.head0/up_edge"] > 0.8
    assert values["measures/key_query/head0/child/diagonal"] > 3 > 0.5 > values["measures/key_query/head0/child/off"]
    assert values["measures/without_head/nodes/head0"] < 0.1


@pytest.mark.parametrize("config", ["yang2025/tree_backward_small.yaml", "khona2024/navigation_small.yaml"])
def test_a_model_that_would_read_the_answers_is_refused(grok, tmp_path, config):
    arguments = ("--config", CONFIGS.parent / config, "--run_dir", tmp_path / "run", "--model.net.causal", "false")
    status, _, errors = grok("fit", *arguments, "--measures.enabled", "false")
    assert (status, len(errors.strip().splitlines())) == (2, 1)
    assert "causal=False: the inputs of this data show answers further on: use a causal model" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_all_paths_of_irregular_trees_are_found_by_heads_with_roles(grok, tmp_path, direction, seed):
    run = tmp_path / "run"
    status, _, err = grok(
        "fit", "--config", CONFIGS / f"tree_{direction}_small.yaml", "--run_dir", run, "--seed_everything", seed,
        "--measures.examples", 1024, "--measures.every", 10_000, "--figures.enabled", "false",
    )  # fmt: skip
    assert (status, err) == (0, "")
    values = last_values(run)
    assert values["accuracy"] == values["measures/path/exact"] == 1.0
    roles = {
        head: {
            name.split("/")[-1]: value for name, value in values.items() if name.startswith(f"groups/mass/0.{head}/")
        }
        for head in ("head0", "head1")
    }
    assert roles["head0"]["up_edge"] > 0.9
    if direction == "forward":
        assert roles["head0"]["down_written"] > 0.85  # traversal: the edge going up, the column written going down
        assert min(roles["head1"][group] for group in ("up_stage", "root", "down_stage")) > 0.85  # stage control
        assert max(roles["head1"][group] for group in ("up_edge", "down_written")) < 0.1
        assert values["measures/without_head/nodes/head0"] < 0.1
        assert values["measures/without_head/nodes/head1"] == values["measures/without_head/stage/head0"] == 1.0
        assert values["measures/without_head/stage/head1"] < 0.7
