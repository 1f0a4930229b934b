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
