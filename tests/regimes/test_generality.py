"""Nothing is shaped by two-hop composition: three other regimes, trained by the real command line, with real bars."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

import grok.data
from grok.cli import main
from grok.models import LoopedTransformer

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def regimes_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CONFIG = {
    "trainer": {"accelerator": "cpu"},
    "model": {
        "net": {
            "class_path": "grok.models.LoopedTransformer",
            "init_args": {"width": 64, "heads": 4, "layers": 1, "activation": "relu"},
        },
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 0.003, "betas": [0.9, 0.98], "weight_decay": 0.1},
        },
        "schedule": {"class_path": "grok.training.Warmup", "init_args": {"warmup": 10}},
    },
    "evaluation": {"every": 50},
    "series": {"enabled": False},
    "figures": {"enabled": False},
}


def fit(tmp_path, regime, steps, *options):
    """Train `regime` with the command line; the run's summary and its arguments."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    run = tmp_path / "run"
    arguments = ["fit", "--config", str(tmp_path / "config.yaml"), "--run_dir", str(run), "--data", regime]
    assert main([*arguments, "--trainer.max_steps", str(steps), *options]) == 0
    return run, json.loads((run / "summary.json").read_text())


def trained_net(run, regime):
    """The network of a run, from its last checkpoint, in evaluation mode."""
    weights = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    net = LoopedTransformer(regime.task, **CONFIG["model"]["net"]["init_args"])
    net.load_state_dict({name.removeprefix("net."): w for name, w in weights.items() if name.startswith("net.")})
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "loops"), [("subtract", 1), ("multiply", 2)])
def test_modular_arithmetic_is_memorised(tmp_path, operation, loops):
    options = ("--data.operation", operation, "--data.modulus", "17", "--data.batch", "87")
    run, summary = fit(tmp_path, "grok.data.ModularArithmetic", 100, *options, "--model.net.loops", str(loops))
    assert summary["queries_in_split"] == {"train": 87, "test": 202}
    assert summary["steps_per_epoch"] == 1
    assert summary["accuracy"]["train"] >= 0.95
    assert summary["memorised_step"] is not None
    assert summary["accuracy"]["test"] < 0.5  # memorised, and not more
    assert main(["test", str(run)]) == 0
    assert main(["predict", str(run)]) == 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 17**2
    right = {"subtract": lambda a, b: (a - b) % 17, "multiply": lambda a, b: a * b % 17}[operation]
    for line in lines:
        a, b, equals = line["input"]
        assert (equals, line["target"]) == ("=", [str(right(int(a), int(b)))])


@pytest.mark.parametrize("form", ["flag", "yaml"])
def test_linear_regression_beats_the_best_constant(tmp_path, form):
    if form == "flag":
        options, steps = ["--model.objective", "grok.training.SquaredError"], 100
    else:
        (tmp_path / "more.yaml").write_text("model: {objective: {class_path: grok.training.SquaredError}}\n")
        options, steps = ["--config", str(tmp_path / "more.yaml")], 5
    run, summary = fit(tmp_path, "linear_regression.LinearRegression", steps, "--data.features", "1", *options)
    module = sys.modules["linear_regression"]
    variance = float(module.LinearRegression(features=1).splits["fresh"].targets.var())
    assert 0.8 < variance < 1.2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["value"] for row in rows if (row["split"], row["name"]) == ("fresh", "loss")]
    assert losses[-1] == summary["loss"]["fresh"]
    assert summary["accuracy"]["fresh"] is None
    assert summary.get("memorised_step") is None
    assert "steps_per_epoch" not in summary  # an endless stream
    if form == "flag":
        assert losses[-1] < 0.5 * variance
    assert main(["predict", str(run)]) == 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    errors = torch.tensor([line["answer"][0] - line["target"][0] for line in lines])
    assert float(errors.square().mean()) == pytest.approx(losses[-1], rel=1e-4)


def test_a_fresh_stream_is_a_pure_function_of_the_step():
    from linear_regression import LinearRegression

    stream, again, other = (LinearRegression(seed=seed).generated.train for seed in (3, 3, 4))
    assert torch.equal(stream.batch(7).queries.inputs, again.batch(7).queries.inputs)
    assert not torch.equal(stream.batch(7).queries.inputs, stream.batch(8).queries.inputs)
    assert not torch.equal(stream.batch(7).queries.inputs, other.batch(7).queries.inputs)
    query = stream.batch(7).queries
    x, y = query.inputs[..., :2], query.inputs[:, :-1, 2]
    w = torch.linalg.lstsq(x[:, :-1], y[..., None]).solution  # five examples determine two weights
    torch.testing.assert_close((x[:, -1:] @ w)[:, 0], query.targets, atol=1e-2, rtol=1e-3)


def test_an_answer_of_two_tokens_by_rollout(tmp_path):
    from two_token_answer import TwoDigitSum

    run, summary = fit(tmp_path, "two_token_answer.TwoDigitSum", 150)
    assert summary["queries_in_split"] == {"trained": 80, "held_out": 20}
    assert summary["accuracy"]["trained"] >= 0.95
    regime = TwoDigitSum()
    net = trained_net(run, regime)
    for name, split in regime.splits.items():
        # Only the prompt is given: what stands after it must not matter.
        answer = net.generate(split.inputs[:, :2], torch.full((len(split),), 2), 2)
        tens, ones = answer.unbind(1)
        rolled_out = (10 * tens + ones == split.truth["sum"]).float().mean()
        assert float(rolled_out) == pytest.approx(summary["accuracy"][name], abs=1e-6)


def test_half_an_answer_is_not_an_answer(tmp_path):
    from two_token_answer import TwoDigitSum

    run, summary = fit(tmp_path, "two_token_answer.TwoDigitSum", 30)
    regime = TwoDigitSum()
    net = trained_net(run, regime)
    for name, split in regime.splits.items():
        with torch.no_grad():
            right = net(split.inputs, at=split.at).argmax(-1) == split.targets
        assert float(right.float().mean()) > summary["accuracy"][name]  # slots; some queries have one right
        answer = net.generate(split.inputs[:, :2], torch.full((len(split),), 2), 2)
        exact = (answer == split.targets).all(1).float().mean()
        assert float(exact) == pytest.approx(summary["accuracy"][name], abs=1e-6)


SHARED = {"blocks", "datamodule", "encoding", "keyed", "split", "stream"}
"""Modules of `grok.data` that belong to no regime."""
OF_REGIMES = {"TwoHopComposition", "KnowledgeGraph", "Hops", "ReferenceJSON", "write_reference_json"}
SHARED_BY = {
    "affine_recurrence": SHARED,
    "nonlinear_regression": SHARED,
    "graph_navigation": SHARED | {"navigation_graphs", "navigation_queries"},
    "comparison": SHARED | {"attribute_regime", "pool"},
    "complex_reasoning": SHARED | {"attribute_regime", "attribute_values", "order"},
    "retrieval_copying": SHARED | {"retrieval_queries"},
    "tree_paths": SHARED | {"trees"},
    "pattern_composition": SHARED | {"pattern_prompts", "step_transitions"},
    "real_facts": SHARED | {"fact_files", "fact_graph", "fact_regime", "fact_tasks", "knowledge_graph"},
}
"""What a regime shares with others of its family."""


@pytest.mark.parametrize(
    "path",
    [
        *(Path(grok.data.__file__).parent / f"{name}.py" for name in ("modular_arithmetic", *SHARED_BY)),
        HERE / "linear_regression.py",
        HERE / "two_token_answer.py",
    ],
    ids=lambda path: path.stem,
)
def test_a_regime_imports_no_other_regime(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("grok")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grok"):
            if node.module.startswith("grok.data."):
                assert node.module.removeprefix("grok.data.") in SHARED_BY.get(path.stem, SHARED)
            else:
                assert node.module in ("grok.data", "grok.errors", "grok.task")
                assert not {alias.name for alias in node.names} & OF_REGIMES


FURTHER = [grok.data.Comparison, grok.data.ComplexReasoning, grok.data.ImplicitReasoning, grok.data.ThreeHopComposition]
FURTHER += [grok.data.TwoTokenComposition, grok.data.RealFacts, grok.data.SyntheticKnowledge, grok.data.TreePaths]
FURTHER += [grok.data.PatternComposition, grok.data.GraphNavigation]
FURTHER += [grok.data.AffineRecurrence, grok.data.NonlinearRegression]
FURTHER += [grok.data.RetrievalCopying]


def test_training_and_the_command_line_know_no_regime_by_name():
    root = Path(grok.data.__file__).parents[1]
    for path in [*(root / "training").glob("*.py"), root / "cli.py", root / "lightning_cli.py"]:
        assert not [one for one in FURTHER if one.__name__ in path.read_text()], path
    for regime in FURTHER:
        assert len(Path(sys.modules[regime.__module__].__file__).read_text().splitlines()) <= 200
