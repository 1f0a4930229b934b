"""A `LoopedTransformer` as a model of TransformerLens: its tools for what it can represent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from grok.errors import BadInput, Problem
from grok.models.layers import MLP, SwiGLU
from grok.models.steps import StepModel
from grok.models.transformer import Block, LoopedTransformer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["to_transformer_lens"]

_TAKEN = ("loops", "causal", "tied", "norm", "positions", "mlp", "activation", "bias")
"""Options whose values need not be those of GPT-2."""

_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
_NORMS = {"LayerNorm": "LN", "RMSNorm": "RMS", "Identity": None}
_OUTER = {"embedding": "embed", "position": "pos_embed", "norm": "ln_final", "head": "unembed"}
_INNER = {
    "norm1": ("ln1",), "attn.qkv": ("attn.q", "attn.k", "attn.v"), "attn.out": ("attn.o",), "norm2": ("ln2",),
    "mlp.up": ("mlp.in",), "mlp.gate_up": ("mlp.gate", "mlp.in"), "mlp.out": ("mlp.out",),
}  # fmt: skip


def to_transformer_lens(model: StepModel) -> TransformerBridge:
    """The `TransformerBridge` of TransformerLens 4 that computes what `model` does in evaluation mode.

    Loops are written out: `blocks.{i}` is application `i` of a block, as in `StepModel.run_with_cache`, and its own
    `run_with_cache` gives the same values under the same names. Every application has a copy of the weights: what is
    done to one (folding a norm, say) reaches neither another nor `model`. Positions are 0, 1, 2, …; as in `model` there
    is no padding mask, so that inputs of a causal model are padded on the right.

    Two things differ: with rotary positions `hook_q` and `hook_k` are taken before the rotation, with the features that
    are rotated together in pairs instead of half a head apart; and RMSNorm computes in float32.

    Args:
        model: a `LoopedTransformer` over tokens, with options that TransformerLens has.

    Raises:
        BadInput: naming every option that it has not, or if TransformerLens is not installed.
    """
    other = "use model.run_with_cache, or nnsight, which take any model"
    if not isinstance(model, LoopedTransformer):
        raise BadInput(f"{type(model).__name__}: TransformerLens has no such model; {other}")
    wrong = _unlike(model)
    if wrong:
        raise BadInput(f"TransformerLens has no such model; {other}", *wrong)
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is missing; pip install 'grok-circuits[interpretability]'") from None
    some = next(model.parameters())
    bridge = TransformerBridge.boot_native(_configuration(model), device=some.device, dtype=some.dtype)
    weights = dict(_weights(model))
    absent = {name: tensor.new_zeros(tensor.shape) for name, tensor in bridge.state_dict().items() if _may_lack(name)}
    bridge.load_state_dict(absent | weights)
    return bridge.eval()


def _unlike(model: LoopedTransformer) -> list[Problem]:
    wrong = [
        Problem(key, value, f"TransformerLens has {wanted}")
        for key, value, wanted in model.unlike_gpt2()
        if key not in _TAKEN
    ]
    mlp = getattr(model.blocks[0], "mlp", None)
    if model.task.tokens is None:
        wrong.append(Problem("task.tokens", None, "TransformerLens embeds tokens, this model reads columns"))
    if isinstance(mlp, MLP) and model.activation not in _ACTIVATIONS:
        wrong.append(Problem("activation", model.activation, f"TransformerLens has {', '.join(_ACTIVATIONS)}"))
    if isinstance(mlp, SwiGLU) and model.bias:
        wrong.append(Problem("bias", True, "TransformerLens has none with mlp=swiglu"))
    return wrong


def _configuration(model: LoopedTransformer) -> dict[str, Any]:
    block, task = cast(Block, model.blocks[0]), model.task
    mlp = getattr(block, "mlp", None)
    gated = isinstance(mlp, SwiGLU)
    return {
        "d_model": block.attn.width, "n_heads": block.attn.heads, "d_head": block.attn.width // block.attn.heads,
        "n_layers": len(model.blocks) * model.loops, "n_ctx": task.positions,
        "d_vocab": task.tokens, "d_vocab_out": task.outputs,
        "attn_only": mlp is None, "gated_mlp": gated, "d_mlp": None if mlp is None else mlp.out.in_features,
        "act_fn": "silu" if gated else _ACTIVATIONS.get(model.activation, "relu"),
        "normalization_type": _NORMS[type(model.norm).__name__], "eps": 1e-5,
        "attention_dir": "causal" if model.causal else "bidirectional",
        "positional_embedding_type": "standard" if block.attn.rope_theta is None else "rotary",
        "rotary_base": block.attn.rope_theta or 1.0,
        "seed": 0,  # else it would draw from the caller's random numbers
    }  # fmt: skip


def _weights(model: LoopedTransformer) -> Iterator[tuple[str, Tensor]]:
    """Weights by their names there, those of a block once for each of its uses."""
    layers = len(model.blocks)
    for name, tensor in model.state_dict().items():
        part, kind = name.rsplit(".", 1)
        if not part.startswith("blocks."):
            yield f"{_OUTER[part]}.{kind}", tensor
            continue
        _, index, part = part.split(".", 2)
        pieces = dict(zip(_INNER[part], tensor.chunk(len(_INNER[part])), strict=True))
        for use in range(int(index), layers * model.loops, layers):
            for there, piece in pieces.items():
                yield f"blocks.{use}.{there}.{kind}", _paired(piece, model) if there in ("attn.q", "attn.k") else piece
    if model.head is None:
        yield "unembed.weight", cast(nn.Embedding, model.embedding).weight


def _paired(rows: Tensor, model: LoopedTransformer) -> Tensor:
    """Rows `[H·K, …]` with those that are rotated together next to each other; here they are half a head apart."""
    attention = cast(Block, model.blocks[0]).attn
    if attention.rope_theta is None:
        return rows
    return rows.view(attention.heads, 2, -1, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


def _may_lack(name: str) -> bool:
    """Whether zeros stand for what `LoopedTransformer` can do without, and TransformerLens cannot."""
    return name.endswith(".bias") or name == "pos_embed.weight"
