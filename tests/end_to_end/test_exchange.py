"""Weights go out and come in: Hugging Face's GPT-2 and the released checkpoints, and runs as Python objects."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import grok as package
from grok.errors import BadInput
from grok.models import RecursiveTransformer
from grok.records import RunRecord
from grok.task import Task

FIXTURES = Path(__file__).parents[1] / "models/fixtures"
GPT2 = {"layers": 2, "loops": 1, "width": 16, "heads": 2, "dropout": 0.0}


@pytest.fixture
def plain(tiny_config):
    """The tiny configuration with a model that is a GPT-2."""
    config = yaml.safe_load(tiny_config.read_text())
    config["model"]["net"]["init_args"] = GPT2
    config["trainer"]["max_steps"] = 10
    tiny_config.write_text(yaml.safe_dump(config))
    return tiny_config


def test_a_run_comes_back_as_objects_at_any_step(grok, tiny_config, tmp_path):
    run = tmp_path / "run"
    assert grok("fit", "--config", tiny_config, "--run_dir", run, "--lens.enabled", "true", "--lens.every", 30)[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    loaded = package.load_run(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.steps[-1] == 60
    split = loaded.data.splits["train_inferred"]
    model = loaded.model()
    outputs = model(split.inputs, at=split.at[:, :1])[:, 0]
    accuracy = (outputs.argmax(-1) == split.targets[:, 0]).float().mean()
    assert accuracy == pytest.approx(loaded.summary["accuracy"]["train_inferred"], abs=1e-6)
    assert not torch.equal(loaded.model(30)(split.inputs), model(split.inputs))
    assert "lens/test_inferred_iid/bridge/rank" in loaded.analysis(30)
    with pytest.raises(BadInput, match="step 31 was not kept; kept are 0, 1, 2"):
        loaded.model(31)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    logits, cache = model.run_with_cache(split.inputs)
    assert_close(logits, model(split.inputs).detach())
    assert cache["blocks.1.attn.hook_pattern"].shape == (len(split), 2, 3, 3)
    assert_close(cache["blocks.0.hook_resid_post"], cache["blocks.1.hook_resid_pre"])

    pandas = pytest.importorskip("pandas")
    frame = loaded.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame[(frame.name == "accuracy") & (frame.split == "train_inferred")].value.iloc[-1] == pytest.approx(
        accuracy
    )


def test_an_exported_model_has_the_weights_of_the_step_and_the_configuration(grok, plain, tmp_path):
    assert grok("fit", "--config", plain, "--run_dir", tmp_path / "run")[0] == 0
    status, out, err = grok("export", tmp_path / "run", tmp_path / "out", "--step", 4)
    assert status == 0, err
    assert "step 4," in out
    written, kept = (
        load_file(path)
        for path in (tmp_path / "out/model.safetensors", tmp_path / "run/series/step_000000004.safetensors")
    )
    assert written.keys() == kept.keys()
    assert all(torch.equal(written[name], kept[name]) for name in kept)
    assert (tmp_path / "out/config.yaml").read_text() == (tmp_path / "run/config.yaml").read_text()
    status, _, err = grok("export", tmp_path / "run", tmp_path / "out")
    assert (status, "exists; give a new directory" in err) == (2, True)


def test_a_gpt2_goes_to_hugging_face_and_back_with_the_same_logits(grok, plain, tmp_path):
    assert grok("fit", "--config", plain, "--run_dir", tmp_path / "run")[0] == 0
    assert grok("export", tmp_path / "run", tmp_path / "hf", "--as", "huggingface")[0] == 0
    status, _, err = grok(
        "import", tmp_path / "hf/model.safetensors", tmp_path / "back", "--config", plain, "--step", 10
    )
    assert status == 0, err
    run, back = (package.load_run(tmp_path / name) for name in ("run", "back"))
    inputs = run.data.splits["train_inferred"].inputs
    assert torch.equal(run.model()(inputs), back.model()(inputs))
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert (config["n_layer"], config["n_head"], config["n_embd"], config["n_inner"]) == (2, 2, 16, 64)


@pytest.mark.slow
def test_hugging_face_computes_the_same_logits(grok, plain, tmp_path):
    transformers = pytest.importorskip("transformers")
    assert grok("fit", "--config", plain, "--run_dir", tmp_path / "run")[0] == 0
    assert grok("export", tmp_path / "run", tmp_path / "hf", "--as", "huggingface")[0] == 0
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    run = package.load_run(tmp_path / "run")
    inputs = run.data.splits["train_inferred"].inputs
    with torch.no_grad():
        assert_close(theirs(inputs).logits, run.model()(inputs), atol=1e-5, rtol=1e-5)


def test_what_is_no_gpt2_is_told_option_by_option(grok, tiny_config, tmp_path):
    short = ("--trainer.max_steps", 2, "--model.net.init_args.activation", "relu")
    assert grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "run", *short)[0] == 0
    status, _, err = grok("export", tmp_path / "run", tmp_path / "hf", "--as", "huggingface")
    assert status == 2
    for told in ("loops=2: GPT-2 has 1", "activation='relu': GPT-2 has gelu_tanh"):
        assert told in err
    assert not (tmp_path / "hf").exists()


def describe(path, data, model, net):
    """Write the configuration of a released model."""
    path.write_text(yaml.safe_dump({
        "data": {"class_path": "grok.data.TwoHopComposition", "init_args": data},
        "model": {"net": {"class_path": f"grok.models.{model}", "init_args": net}},
        "figures": {"enabled": False},
    }))  # fmt: skip


@pytest.mark.parametrize(("released", "loops"), [("gpt2_plain", 1), ("gpt2_shared_two_passes", 2)])
def test_a_released_checkpoint_becomes_a_run_that_can_be_traced(grok, tmp_path, released, loops):
    with safe_open(FIXTURES / f"{released}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {name.removeprefix("weights."): w for name, w in tensors.items() if name.startswith("weights.")}
    checkpoint, config = tmp_path / "theirs.safetensors", tmp_path / "config.yaml"
    save_file({f"module.{name}": weight.contiguous() for name, weight in weights.items()}, checkpoint)
    data = {"entities": 39, "relations": 8, "out_degree": 8, "phi": 1, "ood": 0.1, "iid": 0.1}  # 53 symbols
    net = {"width": 32, "layers": 2, "heads": 4, "loops": loops}
    describe(config, data, "LoopedTransformer", net)
    status, _, err = grok("import", checkpoint, tmp_path / "run", "--config", config)
    assert status == 0, err
    model = package.load_run(tmp_path / "run").model()
    inputs = tensors["input_ids"][:, :3]
    assert_close(model(inputs).detach(), tensors["logits"][:, :3], atol=1e-5, rtol=1e-5)
    status, _, err = grok("trace", tmp_path / "run", "--lens.enabled", "true", "--lens.examples", 20)
    assert status == 0, err
    assert "lens/mrr/bridge/S[2,r1]" in (tmp_path / "run/metrics.jsonl").read_text()

    wrong = ["--model.net.init_args.layers", 3]
    status, _, err = grok("import", checkpoint, tmp_path / "other", "--config", config, *wrong)
    assert (status, "blocks.2.attn.out.bias: not in the checkpoint" in err) == (2, True)
    assert not (tmp_path / "other").exists()


def test_a_released_recursive_model_becomes_a_run_that_can_be_traced(grok, tmp_path):
    with safe_open(FIXTURES / "trm_attention_rope.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checkpoint, config = tmp_path / "step_100", tmp_path / "config.yaml"
    torch.save(
        {f"_orig_mod.model.{n.removeprefix('weights.')}": w for n, w in tensors.items() if n.startswith("weights.")},
        checkpoint,
    )
    encoding = {"class_path": "grok.data.FillIn"}
    data = {"entities": 28, "relations": 6, "out_degree": 6, "phi": 1, "ood": 0.1, "iid": 0.1, "encoding": encoding}
    net = {"width": 32, "low_cycles": 3, "mixing": "attention", "positions": "rope", "heads": 4}
    describe(config, data, "RecursiveTransformer", net)
    status, _, err = grok("import", checkpoint, tmp_path / "run", "--config", config)
    assert status == 0, err
    wide = RecursiveTransformer(Task(positions=10, outputs=41, tokens=41), **net)  # their queries are longer
    wide.load_state_dict(package.load_run(tmp_path / "run").model().state_dict())
    first = tensors["puzzle_identifiers"] == 0  # of their table of puzzle vectors the first row is taken
    assert_close(wide(tensors["inputs"][first]).detach(), tensors["logits"][first], atol=1e-4, rtol=1e-4)
    watched = ["--lens.enabled=true", "--tracing.enabled=true", "--lens.examples", 20, "--tracing.examples", 5]
    status, _, err = grok("trace", tmp_path / "run", *watched)
    assert status == 0, err
    names = {row["name"] for row in RunRecord(tmp_path / "run").rows()}
    assert {"lens/mrr/bridge/S[8,r1]", "tracing/changed/S[4,r1]"} <= names


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export"], "usage: grok export RUN DIRECTORY"),
        (["export", "nowhere", "out"], "nowhere"),
        (["export", "nowhere", "out", "--as", "onnx"], "--as onnx: use safetensors or huggingface"),
        (["export", "nowhere"], "DIRECTORY is missing"),
        (["export", "nowhere", "out", "more"], "more: one word too many"),
        (["export", "nowhere", "out", "--has", "x"], "--has: no such option here"),
        (["import", "x.bin"], "RUN is missing"),
        (["import", "x.bin", "run"], "--config is missing: name a configuration"),
        (["import", "x.bin", "run", "-c", "tiny.yaml"], "x.bin: no such file; give a checkpoint"),
        (["import", "x.bin", "run", "-c", "tiny.yaml", "--step", "0"], "--step 0: is the model before training"),
        (["import", "x.bin", "run", "-c", "tiny.yaml", "--step", "²"], "--step ²: give a number"),
        (["import", "x.bin", "run", "--config", "tiny.yaml"], "x.bin: no such file; give a checkpoint"),
    ],
)
def test_commands_that_cannot_be_are_told(grok, tiny_config, arguments, told):
    status, _, err = grok(*arguments)
    assert status == 2
    assert told in err


def test_a_checkpoint_that_would_run_code_is_not_loaded(grok, tiny_config, tmp_path):
    torch.save({"weight": shutil.rmtree}, tmp_path / "evil.pt")
    status, _, err = grok("import", tmp_path / "evil.pt", tmp_path / "run", "--config", tiny_config)
    assert status == 2
    assert "would run code when it is loaded" in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([torch.ones(2)], "holds no tensors by name"),
        (torch.ones(2), "holds no tensors by name"),
        ({1: torch.ones(2)}, "holds no tensors by name"),
        ({"state_dict": {"x": torch.tensor([torch.nan])}}, "not finite: x"),
        ({"h.0.attn.c_attn.weight": torch.ones(2, 6), "lm_head.weight": torch.ones(2, 2)}, "embedding.weight: not in"),
    ],
)
def test_what_is_no_state_dict_of_this_model_is_refused(grok, tiny_config, tmp_path, content, told):
    torch.save(content, tmp_path / "odd.pt")
    status, _, err = grok("import", tmp_path / "odd.pt", tmp_path / "run", "--config", tiny_config)
    assert status == 2, err
    assert told in err
    assert not (tmp_path / "run").exists()


def test_loading_a_run_leaves_no_trace_in_the_process(grok, tiny_config, tmp_path, monkeypatch, caplog):
    short = ("--trainer.max_steps", 2, "--trainer.deterministic", "true")
    assert grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "run", *short)[0] == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    torch.use_deterministic_algorithms(False)
    level, environment = logging.getLogger("lightning.fabric").level, dict(os.environ)
    caplog.clear()
    with caplog.at_level(logging.INFO, "lightning.fabric"), caplog.at_level(logging.INFO, "lightning.pytorch"):
        package.load_run(tmp_path / "run")
        assert logging.getLogger("lightning.fabric").level == logging.INFO
    assert logging.getLogger("lightning.fabric").level == level
    assert caplog.records == []
    assert not torch.are_deterministic_algorithms_enabled()
    assert {key: os.environ.get(key) for key in environment} == environment
    assert "PL_SEED_WORKERS" not in os.environ
