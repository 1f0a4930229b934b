"""Pattern composition through the command line: attention finds the right columns, chains of thought become right."""

from pathlib import Path

import pytest
import yaml

from grok.records import RunRecord

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "configs/li2024/cot_small.yaml"
GROUP = "groups/mass/0.head0/same_pattern_same_step"


def series(run, split, name):
    """Values of a measure by step."""
    return {row["step"]: row["value"] for row in RunRecord(run).rows(name) if row["split"] == split}


@pytest.fixture
def tiny(tmp_path):
    """The small configuration made tiny."""
    config = yaml.safe_load(SMALL.read_text())
    sizes = {"dim": 8, "train_patterns": 6, "test_patterns": 4, "examples": 6, "test_examples": 20, "test_size": 60}
    config["data"]["init_args"] |= {**sizes, "batch": 32}
    config["trainer"] |= {"max_steps": 120, "logger": False}
    config |= {"evaluation": {"every": 120}, "series": {"every": 120}, "figures": {"enabled": False}}
    config["groups"]["every"], config["measures"]["every"] = 40, 120
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_attention_comes_to_the_same_pattern_and_step_and_errors_fall(grok, tiny, tmp_path):
    status, _, errors = grok("fit", "--config", tiny, "--run_dir", tmp_path / "run")
    assert (status, errors) == (0, "")
    mass = series(tmp_path / "run", "train_patterns", GROUP)
    other = series(tmp_path / "run", "train_patterns", GROUP.replace("same_pattern", "other_pattern"))
    assert mass[0] < 0.3
    assert mass[120] > 0.55
    assert max(other, key=other.get) not in (0, 120)  # first the step is found, then the pattern
    error = series(tmp_path / "run", "test_cot", "measures/error_by_examples/cot/20")
    assert error[120] < 0.7 * error[0]
    summary = RunRecord(tmp_path / "run").summary()
    assert set(summary["accuracy"]) == {"train_patterns", "test_cot", "test_icl", "violated_cot", "violated_icl"}
    names = {row["name"] for row in RunRecord(tmp_path / "run").rows()}
    told = {
        "error_alpha_by_examples/alpha=0.4/5",
        "error_tau_by_examples/tau=0.7/20",
        "error_rho_by_examples/rho=0.4/10",
        "key_query/0.head0/across",
    }
    assert {f"measures/{name}" for name in told} <= names


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("measures.splits", "[test_icl]", "splits='test_icl': holds examples without their steps"),
        ("model.net.causal", "false", "causal=False: only a causal model generates answer by answer"),
    ],
)
def test_measures_that_cannot_be_are_refused_in_a_line(grok, tiny, tmp_path, argument, value, message):
    status, _, errors = grok("fit", "--config", tiny, "--run_dir", tmp_path / "run", f"--{argument}", value)
    assert (status, len(errors.strip().splitlines())) == (2, 1)
    assert message in errors
    assert not (tmp_path / "run").exists()


def test_columns_are_measured_in_a_true_precision(grok, tiny, tmp_path):
    arguments = ("--trainer.precision", "64-true", "--trainer.max_steps", 2, "--measures.splits", "[violated_cot]")
    status, _, errors = grok("fit", "--config", tiny, "--run_dir", tmp_path / "run", *arguments)
    assert (status, errors) == (0, "")
    assert set(series(tmp_path / "run", "violated_cot", "measures/error_by_examples/cot/20")) == {0, 2}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_condition_1_violated_chains_of_thought_are_right_and_more_examples_do_harm_without(grok, tmp_path, seed):
    options = ("--seed_everything", seed, "--trainer.logger", "false", "--figures.enabled", "false")
    status, _, errors = grok("fit", "--config", SMALL, "--run_dir", tmp_path / "run", *options)
    assert (status, errors) == (0, "")
    last = RunRecord(tmp_path / "run").summary()["step"]
    assert series(tmp_path / "run", "train_patterns", GROUP)[last] >= 0.85
    error = {
        (split, prompt, number): series(tmp_path / "run", split, f"measures/error_by_examples/{prompt}/{number}")[last]
        for split in ("test_cot", "violated_cot")
        for prompt in ("cot", "icl")
        for number in (10, 40, 160)
    }
    assert error["violated_cot", "cot", 160] < 0.1
    icl = [error["violated_cot", "icl", number] for number in (10, 40, 160)]
    assert icl == sorted(icl)
    assert icl[-1] > icl[0] + 0.15
    for prompt in ("cot", "icl"):  # where Condition 1 holds, both fall
        assert error["test_cot", prompt, 160] < 0.5 * error["test_cot", prompt, 10]
