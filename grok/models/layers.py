"""Attention, MLPs, norms: the parts of a block, each with the options that the papers vary.

Shape legend: B query, T position, A query position of attention (all, or those asked for), H head, K head width,
D width, M hidden width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grok.models.steps import Memory, Tap, pick

__all__ = ["MLP", "Attention", "SwiGLU", "TokenMixing", "activation", "make_norm"]

Norm = Literal["layer", "rms", "none"]
Activation = Literal["gelu_tanh", "gelu", "relu", "identity"]

# Up to this many keys, products written out element by element beat batched matrix products and the fused kernel on a
# CPU (three-token queries: 1.5 times faster per training step).
_FEW_KEYS = 8

# Hidden values of a token mixing from which they are computed again instead of kept, and rows of a piece on a CPU
# (512 x 1536 channels, 5 positions, 256 hidden units: 1.7 times faster and a third of the memory).
_MANY_HIDDEN = 1 << 24
_PIECE = 1024


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    """The function called `name`; `gelu_tanh` is GPT-2's `gelu_new`."""
    return {
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "gelu": F.gelu,
        "relu": F.relu,
        "identity": lambda x: x,
    }[name]


def make_norm(kind: Norm, width: int) -> nn.Module:
    """LayerNorm with gain and bias, RMSNorm with gain, or nothing; epsilon 1e-5 as in GPT-2."""
    if kind == "layer":
        return nn.LayerNorm(width, eps=1e-5)
    return nn.RMSNorm(width, eps=1e-5) if kind == "rms" else nn.Identity()


class Attention(nn.Module):
    """Multi-head self-attention; rows of `qkv` are all queries, all keys, all values.

    Args:
        width: D.
        heads: H, a divisor of D.
        causal: whether a position sees earlier positions only.
        bias: whether the projections have biases.
        dropout: on the attention pattern.
        rope: rotate queries and keys by position (Su et al. 2021), with base `rope_theta`.
        rope_theta: base of the rotation frequencies.
        output: whether there is a projection of what the heads have read; without one they write side by side.
        sees_itself: whether a position attends to itself; the first, which has nothing else, always does.
        scaled: divide scores by the square root of the head width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
        rope: bool = False,
        rope_theta: float = 10_000.0,
        output: bool = True,
        sees_itself: bool = True,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.heads, self.causal, self.dropout = width, heads, causal, dropout
        self.sees_itself, self.scaled = sees_itself, scaled
        self.rope_theta = rope_theta if rope else None
        self._make_weights(bias, output)

    def _make_weights(self, bias: bool, output: bool) -> None:
        self.qkv = nn.Linear(self.width, 3 * self.width, bias=bias)
        self.out = nn.Linear(self.width, self.width, bias=bias) if output else nn.Identity()

    def forward(
        self,
        x: Tensor,
        at: Tensor | None = None,
        position_ids: Tensor | None = None,
        tap: Tap | None = None,
        memory: Memory | None = None,
        ancestors: Tensor | None = None,
    ) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`, or `[B, A, D]` at positions `at` `[B, A]`; see `Step` for `memory`.

        With `ancestors` `[R, P]` there is one sequence `[1, R, D]` of prefixes (`PrefixTree`), each of which sees its
        own prefixes only.
        """
        query, key, value = self._project(x, at)
        before = 0 if memory is None else memory["attn.hook_k"].shape[1]
        place = torch.arange(before, before + x.shape[1], device=x.device)
        if self.rope_theta is not None:
            where = place.expand(x.shape[:2]) if position_ids is None else position_ids
            query = self._rotate(query, where if at is None else where.gather(1, at))
            key = self._rotate(key, where)
        if tap is not None:
            query, key, value = (
                tap(f"attn.hook_{name}", part) for name, part in (("q", query), ("k", key), ("v", value))
            )
        if memory is not None:
            key = torch.cat([memory["attn.hook_k"], key], 1)
            value = torch.cat([memory["attn.hook_v"], value], 1)
        seen = None
        if ancestors is not None:  # every row becomes a query of its own, over the keys of its prefixes
            asked = ancestors if at is None else ancestors[at[0]]
            query, seen, rows = query.transpose(0, 1), (asked >= 0)[:, None], asked.clamp(min=0).flatten()
            key, value = (part[0].index_select(0, rows).view(*asked.shape, *part.shape[2:]) for part in (key, value))
        elif self.causal or not self.sees_itself:  # [T, P + T], or [B, A, P + T] for chosen positions
            asked = place[:, None] if at is None else before + at[..., None]
            seen = self._seen(torch.arange(before + x.shape[1], device=x.device), asked)
        mixed = self._mix(query, key, value, seen, tap)
        if tap is not None:
            mixed = tap("attn.hook_z", mixed)
        if ancestors is not None:
            mixed = mixed.transpose(0, 1)
        return self._write(mixed)

    def _project(self, x: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, T, H, K]`; queries where they are asked for, keys and values everywhere."""
        if at is None:
            query, key, value = self._heads(self.qkv(x)).chunk(3, 2)
            return query, key, value
        width, weight, bias = self.width, self.qkv.weight, self.qkv.bias
        query = self._heads(F.linear(pick(x, at), weight[:width], None if bias is None else bias[:width]))
        key, value = self._heads(F.linear(x, weight[width:], None if bias is None else bias[width:])).chunk(2, 2)
        return query, key, value

    def _write(self, mixed: Tensor) -> Tensor:
        """What the heads have read, `[B, A, H, K]`, as it is written: `[B, A, D]`."""
        written: Tensor = self.out(mixed.flatten(2))
        return written

    def _heads(self, x: Tensor) -> Tensor:
        """`[B, T, n·D]` to `[B, T, n·H, K]`."""
        return x.view(*x.shape[:-1], -1, self.width // self.heads)

    def _seen(self, key: Tensor, asked: Tensor) -> Tensor:
        """Whether the positions `asked` `[…, 1]` see those of the keys `[T]`: `[…, T]` bool."""
        if self.sees_itself:
            return key <= asked
        others = key < asked if self.causal else key != asked
        return others | ((key == 0) & (asked == 0))

    def _rotate(self, x: Tensor, where: Tensor) -> Tensor:
        """Rotate the two halves of each head `[B, T, H, K]` by angles that grow with the position `where` `[B, T]`."""
        assert self.rope_theta is not None
        half = x.shape[-1] // 2
        frequency = self.rope_theta ** -(torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = where[..., None, None] * frequency
        first, second = x.chunk(2, -1)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, tap: Tap | None) -> Tensor:
        """Values mixed by attention: `[B, A, H, K]`."""
        few = key.shape[1] <= _FEW_KEYS and not key.is_cuda
        if tap is None and not few:
            mask = seen if seen is None or seen.ndim == 2 else seen[:, None]
            drop = self.dropout if self.training else 0.0
            q, k, v = (part.transpose(1, 2) for part in (query, key, value))
            scale = None if self.scaled else 1.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, scale=scale).transpose(1, 2)
        scale = 1 / math.sqrt(query.shape[-1]) if self.scaled else 1.0
        products = (query[:, :, None] * key[:, None]).sum(-1) if few else torch.einsum("bahk,bthk->bath", query, key)
        scores = products * scale  # [B, A, T, H]
        if seen is not None:
            scores = scores.masked_fill(~seen[..., None], float("-inf"))
        pattern = scores.softmax(2)
        if tap is not None:
            # TransformerLens order [B, H, A, T]
            pattern = tap("attn.hook_pattern", pattern.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        pattern = F.dropout(pattern, self.dropout, self.training)
        if few:
            return (pattern[..., None] * value[:, None]).sum(2)
        return torch.einsum("bath,bthk->bahk", pattern, value)


class MLP(nn.Module):
    """Two linear maps around an activation.

    Args:
        width: D.
        hidden: M.
        act: the activation.
        bias: whether the maps have biases.
    """

    def __init__(self, width: int, hidden: int, act: Activation = "gelu_tanh", bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.out = nn.Linear(hidden, width, bias=bias)
        self.act = activation(act)

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        hidden = self.act(self.up(x))
        if tap is not None:
            hidden = tap("mlp.hook_post", hidden)
        result: Tensor = self.out(hidden)
        return result


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer 2020): `out(silu(gate(x)) · up(x))`; rows of `gate_up` are gate, then up.

    Args:
        width: D.
        hidden: M.
        bias: whether the maps have biases.
    """

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=bias)
        self.out = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        gate, up = self.gate_up(x).chunk(2, -1)
        hidden = F.silu(gate) * up
        if tap is not None:
            hidden = tap("mlp.hook_post", hidden)
        result: Tensor = self.out(hidden)
        return result


class TokenMixing(SwiGLU):
    """Gated MLP over positions, the same for every channel; its weights belong to positions, whose number is fixed.

    It meets every channel of every query with some hundred hidden values: 0.8 GB in bfloat16 for each use at the size
    of He et al. 2026. From `_MANY_HIDDEN` on they are not kept for the backward pass but computed again, on a CPU in
    pieces that stay in its cache. The numbers are the same; gradients of the weights add up in another order.

    Args:
        positions: T.
        hidden: M.
    """

    def __init__(self, positions: int, hidden: int) -> None:
        super().__init__(positions, hidden)

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`; the hook `mix.hook_post` is `[B, D, M]`."""
        many = x.numel() // x.shape[1] * self.gate_up.out_features >= _MANY_HIDDEN
        if tap is None and many and not torch._C._functorch.is_batchedtensor(x):
            return self._in_pieces(x)
        named = None if tap is None else lambda _, value: tap("mix.hook_post", value)
        return super().forward(x.mT, named).mT

    def _in_pieces(self, x: Tensor) -> Tensor:
        batch, positions, width = x.shape
        rows = x.mT.reshape(-1, positions)
        parts = []
        for part in torch.split(rows, _PIECE if x.device.type == "cpu" else len(rows)):
            if torch.is_grad_enabled():
                parts.append(checkpoint(super().forward, part, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(super().forward(part))
        return torch.cat(parts).view(batch, width, positions).mT
