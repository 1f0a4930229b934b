"""Weights of other people's checkpoints as ours, and ours as theirs: names, and how matrices lie.

GPT-2 as Hugging Face has it (run twice, as Wang et al. 2024 released it, it has the same weights), and the recursive
model that He et al. 2026 released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from grok.errors import BadInput, Problem
from grok.models.layers import MLP
from grok.models.recursive import RecursiveTransformer
from grok.models.steps import StepModel
from grok.models.transformer import Block, LoopedTransformer

__all__ = ["as_gpt2", "from_gpt2", "from_recursive", "translated"]

_GPT2 = {
    "wte": "embedding", "wpe": "position", "ln_f": "norm", "h.": "blocks.", "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.out", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.out", "ln_1": "norm1", "ln_2": "norm2",
}  # fmt: skip
_RECURSIVE = {
    "inner.": "", "embed_tokens.embedding_weight": "embedding.weight", "lm_head": "head", "q_head": "halt_head",
    "L_level.layers": "blocks", "mlp_t": "mix", "self_attn.qkv_proj": "attn.qkv", "self_attn.o_proj": "attn.out",
    "gate_up_proj": "gate_up", "down_proj": "out", "H_init": "start_H", "L_init": "start_L",
}  # fmt: skip
_MASKS = (".attn.bias", ".attn.masked_bias")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "transformer.")


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


def _is_matrix_of_block(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name.startswith(("h.", "blocks."))


def from_gpt2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `LoopedTransformer` from those of GPT-2, whose blocks have their matrices input × output."""
    bare = {_unwrapped(name): tensor for name, tensor in weights.items()}
    kept = {name: tensor for name, tensor in bare.items() if not name.endswith(_MASKS)}
    head = kept.pop("lm_head.weight", None)
    found = {
        _renamed(name, _GPT2): tensor.T.contiguous() if _is_matrix_of_block(name, tensor) else tensor
        for name, tensor in kept.items()
    }
    shown = kept.get("wte.weight")
    if head is not None and (shown is None or not torch.equal(head, shown)):
        found["head.weight"] = head
    return found


def from_recursive(weights: Mapping[str, Tensor], slots: int = 16, row: int = 0) -> dict[str, Tensor]:
    """Weights of `RecursiveTransformer` from those released with He et al. 2026.

    Theirs have the prefix slots before the positions, ours behind them; their table of puzzle vectors, of which the
    experiments use one row, is our prefix.

    Args:
        weights: by their names.
        slots: prefix slots.
        row: of the table.
    """
    found = {}
    for name, tensor in ((_unwrapped(name), tensor) for name, tensor in weights.items()):
        if name.endswith("puzzle_emb.weights"):
            found["prefix"] = tensor[row]
            continue
        if name.endswith("mlp_t.gate_up_proj.weight"):
            tensor = tensor.roll(-slots, 1)
        elif name.endswith("mlp_t.down_proj.weight"):
            tensor = tensor.roll(-slots, 0)
        found[_renamed(name, _RECURSIVE)] = tensor
    return found


def _unwrapped(name: str) -> str:
    """A name without what wrappers (data parallel, compiled, a Lightning module) put before it."""
    while wrapper := next((one for one in _WRAPPERS if name.startswith(one)), None):
        name = name.removeprefix(wrapper)
    return name


def translated(weights: Mapping[str, Tensor], model: StepModel) -> dict[str, Tensor]:
    """Weights for `model` from a checkpoint of ours, of GPT-2 or of the recursive model, whichever it is by its names.

    Positions that the data never shows are cut from a table of positions.

    Raises:
        BadInput: naming what is missing, left over, or of another size.
    """
    names = [_unwrapped(name) for name in weights]
    if any(name.endswith("attn.c_attn.weight") for name in names):
        found = from_gpt2(weights)
    elif any("L_level" in name for name in names):
        found = from_recursive(weights, model.slots if isinstance(model, RecursiveTransformer) else 0)
    else:
        found = {_unwrapped(name).removeprefix("net."): tensor for name, tensor in weights.items()}
    wanted = model.state_dict()
    key = "position.weight"
    if key in found and key in wanted and found[key].shape[1:] == wanted[key].shape[1:]:
        found[key] = found[key][: len(wanted[key])]
    problems = [f"{name}: not in the checkpoint" for name in wanted if name not in found]
    problems += [f"{name}: the model has no such weight" for name in found if name not in wanted]
    problems += [
        f"{name}: {list(found[name].shape)} in the checkpoint, {list(tensor.shape)} in the model"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        raise BadInput("the checkpoint is of another architecture than the configuration describes", *problems)
    return {name: found[name].to(tensor.dtype) for name, tensor in wanted.items()}


def as_gpt2(model: StepModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of the Hugging Face `GPT2LMHeadModel` that computes what `model` does.

    Raises:
        BadInput: naming every option by which the model is no GPT-2.
    """
    if not isinstance(model, LoopedTransformer):
        raise BadInput(f"{type(model).__name__} is no GPT-2: export it as safetensors")
    wrong = [Problem(key, value, f"GPT-2 has {wanted}") for key, value, wanted in model.unlike_gpt2()]
    if wrong:
        raise BadInput("this model is no GPT-2; export it as safetensors", *wrong)
    back = {ours: theirs for theirs, ours in sorted(_GPT2.items(), key=lambda item: -len(item[1]))}
    weights = {
        f"transformer.{_renamed(name, back)}": (tensor.T if _is_matrix_of_block(name, tensor) else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    first = cast(Block, model.blocks[0])
    task, hidden = model.task, cast(MLP, first.mlp).up.out_features
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": task.tokens,
        "n_positions": task.positions, "n_embd": first.attn.width,
        "n_layer": len(model.blocks), "n_head": first.attn.heads,
        "n_inner": hidden, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), model.dropout),
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    return weights, config
