"""`grok export` and `grok import`: trained weights for other programs, and theirs for every analysis here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from grok.callbacks.console import say
from grok.configuration import config_files, take_options, with_run
from grok.errors import BadInput
from grok.files import sha256, write_atomically
from grok.lightning_cli import dump_config
from grok.loaded import instantiated, load_run
from grok.models.exchange import as_gpt2, translated

__all__ = ["export", "import_"]

EXPORT = """usage: grok export RUN DIRECTORY [--step N] [--as safetensors|huggingface]
The evaluated weights of a step of the series (by default the last) and the configuration; `huggingface` writes a
GPT2LMHeadModel, where the model is one (loops = 1, and GPT-2's options)."""

IMPORT = """usage: grok import CHECKPOINT RUN --config CONFIG [--step N, by default 1] [--KEY VALUE …]
Weights of a Hugging Face GPT-2, of one whose stack runs twice (net.loops = 2), of the recursive model of He et al.
2026 (TRM), or of this project, as a run: `grok trace RUN` examines it. The configuration says which model and which
data; CHECKPOINT is a .safetensors file, or what torch.save has written of tensors only."""


_INSIDE = ("state_dict", "model", "model_state_dict")
"""Where checkpoints of other programs keep their weights."""


def _step(text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise BadInput(f"--step {text}: give a number of optimizer steps")
    return None if text is None else int(text)


def _insist_on_two(words: Sequence[str], names: Sequence[str], usage: str) -> None:
    unknown = [word for word in words if word.startswith("-")]
    if unknown:
        raise BadInput(f"{unknown[0]}: no such option here", usage)
    if len(words) != 2:
        told = f"{names[len(words)]} is missing" if len(words) < 2 else f"{words[2]}: one word too many"
        raise BadInput(told, usage)


def export(argv: Sequence[str]) -> None:
    """Run `grok export`.

    Raises:
        BadInput: if it is not understood, the directory holds files, or the model is not what it should be exported as.
    """
    if "--help" in argv or "-h" in argv:
        say(EXPORT)
        return
    words, options = take_options(argv, ("step", "as"), EXPORT)
    kind = options.get("as", "safetensors")
    _insist_on_two(words, ("RUN", "DIRECTORY"), EXPORT)
    if kind not in ("safetensors", "huggingface"):
        raise BadInput(f"--as {kind}: use safetensors or huggingface")
    run, directory = load_run(words[0]), Path(words[1])
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory}: exists; give a new directory")
    step = _step(options.get("step"))
    model = run.model(step)
    if kind == "huggingface":
        weights, config = as_gpt2(model)
        write_atomically(directory / "generation_config.json", "{}\n")
    else:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        config = {"class": f"{type(model).__module__}.{type(model).__qualname__}", "task": _plain(vars(model.task))}
        write_atomically(directory / "config.yaml", (run.directory / "config.yaml").read_text())
    at = max(run.steps) if step is None else step
    written = save(weights, metadata={"format": "pt", "step": str(at)})
    write_atomically(directory / "model.safetensors", written)
    write_atomically(directory / "config.json", json.dumps(config, indent=1) + "\n")
    say(f"{directory}: step {at}, {sum(tensor.numel() for tensor in weights.values()):,} numbers, as {kind}")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, int | str | None)}


def import_(argv: Sequence[str]) -> None:
    """Run `grok import`.

    Raises:
        BadInput: if it is not understood, the directory holds files, or the checkpoint is of another model.
    """
    if "--help" in argv or "-h" in argv:
        say(IMPORT)
        return
    words, options = take_options(argv, ("step",), IMPORT)
    _insist_on_two(words[:2], ("CHECKPOINT", "RUN"), IMPORT)
    if not config_files(words):
        raise BadInput("--config is missing: name a configuration of the model and the data", IMPORT)
    checkpoint, run, step = Path(words[0]), Path(words[1]), _step(options.get("step", "1"))
    if step == 0:
        raise BadInput("--step 0: is the model before training; give the step at which it was saved, or leave it out")
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise BadInput(f"{run}: exists; give a new directory")
    weights = _read(checkpoint)
    cli = instantiated(with_run(["validate", *words[2:], "--run_dir", str(run)])[1:])
    model = cli.model.evaluated
    found = save(translated(weights, model), metadata={"step": str(step)})
    file = run / "series" / f"step_{step:09d}.safetensors"
    write_atomically(file, found)
    entries = [{"step": step, "file": file.name, "sha256": sha256(file)}]
    write_atomically(file.with_name("manifest.json"), json.dumps(entries, indent=1) + "\n")
    write_atomically(run / "config.yaml", dump_config(cli._parser(cli.subcommand), cli.options))
    say(f"{run}: {sum(tensor.numel() for tensor in weights.values()):,} numbers from {checkpoint}, as step {step}")
    say(f"  grok trace {run} --lens.enabled true --tracing.enabled true")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a checkpoint (.safetensors, .bin, .pt, .ckpt)")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise BadInput(
            f"{path}: not a checkpoint of tensors, or damaged ({str(error).splitlines()[0][:100]})"
        ) from error
    except Exception as error:  # pickle's own: it would run code
        raise BadInput(f"{path}: would run code when it is loaded; save only tensors") from error
    outer: dict[Any, Any] = found if isinstance(found, dict) else {}
    inner: dict[Any, Any] = next((outer[key] for key in _INSIDE if isinstance(outer.get(key), dict)), outer)
    tensors = {name: tensor for name, tensor in inner.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not tensors:
        raise BadInput(f"{path}: holds no tensors by name; give a state dict")
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise BadInput(f"{path}: not finite: {', '.join(broken[:5])}; give another checkpoint")
    return tensors
