"""From the weights of the released GPT-2 to ours."""

import torch


def ours(name: str) -> str:
    """Our name of a weight of GPT-2."""
    parts = {
        "transformer.wte": "embedding", "transformer.wpe": "position", "transformer.ln_f": "norm",
        "transformer.h.": "blocks.", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.out", "ln_1": "norm1", "ln_2": "norm2",
    }  # fmt: skip
    for theirs, our in parts.items():
        name = name.replace(theirs, our)
    return name


def transposed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """GPT-2 stores the matrices of its blocks input × output."""
    return tensor.T if ".h." in name and tensor.ndim == 2 else tensor


def recursive(name: str) -> str:
    """Our name of a weight or buffer of the recursive model of He et al. 2026."""
    parts = {
        "inner.": "", "embed_tokens.embedding_weight": "embedding.weight", "lm_head": "head", "q_head": "halt_head",
        "L_level.layers": "blocks", "mlp_t": "mix", "self_attn.qkv_proj": "attn.qkv", "self_attn.o_proj": "attn.out",
        "gate_up_proj": "gate_up", "down_proj": "out", "H_init": "start_H", "L_init": "start_L",
    }  # fmt: skip
    for theirs, our in parts.items():
        name = name.replace(theirs, our)
    return name


def behind(name: str, tensor: torch.Tensor, prefix: int = 16) -> torch.Tensor:
    """A weight of the recursive model with the prefix slots behind the positions, where ours stand."""
    if name.endswith("mlp_t.gate_up_proj.weight"):
        return tensor.roll(-prefix, 1)
    return tensor.roll(-prefix, 0) if name.endswith("mlp_t.down_proj.weight") else tensor
