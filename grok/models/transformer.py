"""The looped transformer: `layers` blocks run `loops` times; one loop is an ordinary transformer.

Shape legend: B query, T position, A slot (a chosen position), D width, V output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grok.errors import Problem, insist
from grok.models.columns import ColumnAttention, problems_of_columns
from grok.models.layers import MLP, Activation, Attention, Norm, SwiGLU, make_norm
from grok.models.steps import Memory, State, Step, StepModel, Tap, pick
from grok.task import Task

__all__ = ["Block", "LoopedTransformer"]

MOST_BLOCKS = 4096
MOST_WEIGHTS = 10_000_000_000  # layers × width²; with MLP and attention, twelve times as many


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP, each added to the residual stream, or in the place of it."""

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module | None,
        norms: Sequence[nn.Module],
        dropout: float,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.residual = norms[0], attention, residual
        if mlp is not None:
            self.norm2, self.mlp = norms[1], mlp
        self.has_mlp, self.dropout = mlp is not None, dropout

    def forward(
        self,
        x: Tensor,
        at: Tensor | None = None,
        position_ids: Tensor | None = None,
        tap: Tap | None = None,
        memory: Memory | None = None,
        ancestors: Tensor | None = None,
    ) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`, or to `[B, A, D]` at positions `at` `[B, A]`; see `Attention.forward`."""
        tapped = tap or _untapped
        x = tapped("hook_resid_pre", x)
        written = tapped("hook_attn_out", self.attn(self.norm1(x), at, position_ids, tap, memory, ancestors))
        x = self._added(x if at is None else pick(x, at), written)
        if self.has_mlp:
            x = tapped("hook_resid_mid", x)
            written = tapped("hook_mlp_out", self.mlp(self.norm2(x), tap))
            x = self._added(x, written)
        return tapped("hook_resid_post", x)

    def _added(self, x: Tensor, written: Tensor) -> Tensor:
        written = F.dropout(written, self.dropout, self.training)
        return x + written if self.residual else written


def _untapped(_: str, value: Tensor) -> Tensor:
    return value


class LoopedTransformer(StepModel):
    """A GPT-2-like decoder whose stack of `layers` blocks is run `loops` times with the same weights.

    `layers=8, loops=1` is the model of Wang et al. 2024; `layers=4, loops=2` their parameter-sharing variant (appendix
    E.2): embeddings and positions are added once, the final norm is applied once. `layers=1, loops=L` is ALBERT's
    sharing. Weights are initialised as in GPT-2: N(0, 0.02), projections that write into the residual stream by
    0.02 / sqrt(2 · depth).

    Args:
        task: sizes, from the data.
        width: D, width of the residual stream; None takes that of the columns.
        layers: blocks stored.
        loops: times the stack is run; the depth is `layers · loops`.
        heads: attention heads, a divisor of `width`.
        mlp: `mlp`, `swiglu`, or `none` for attention only.
        hidden: hidden width of the MLP; None means 4 · `width`.
        activation: of the MLP.
        norm: `layer`, `rms` or `none`.
        positions: `learned`, `rope`, or `none`.
        causal: whether a position sees earlier positions only.
        tied: read out with the token embedding (continuous inputs always have a read-out of their own).
        bias: biases of attention and MLP.
        dropout: on embeddings, attention patterns and what blocks write.
        re_embed: between loops add the expected token embedding, softmax(logits / temperature) @ embedding (an
            undocumented option of the code of Wang et al. 2024).
        re_embed_temperature: of that softmax.
        init_std: standard deviation of the initial weights; of `identity` what queries and keys are multiplied by.
        init_depth: `stored` counts `layers` in the residual initialisation, as the reference code does even when the
            stack is run twice; `effective` counts `layers · loops`.
        init: `normal`, all-`zero`, or `identity` for queries, keys and values (needs `projections=no_output`).
        projections: those that attention has: `all`; `no_output`, queries, keys and values; or `key_query`, one
            consolidated matrix per head over columns as they are (`ColumnAttention`).
        sees_itself: whether a position attends to itself.
        scaled: divide attention scores by the square root of the head width.
        residual: add what blocks write to the stream; else it replaces the stream.
        read_in: of columns, `learned`, or `fixed`: they are the stream as they are.
        read_out: `learned`, or `fixed`: the answered features of the stream (`Task.answer`).
    """

    loops: int

    def __init__(
        self,
        task: Task,
        width: int | None = 768,
        layers: int = 8,
        loops: int = 1,
        heads: int = 12,
        mlp: Literal["mlp", "swiglu", "none"] = "mlp",
        hidden: int | None = None,
        activation: Activation = "gelu_tanh",
        norm: Norm = "layer",
        positions: Literal["learned", "rope", "none"] = "learned",
        causal: bool = True,
        tied: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
        re_embed: bool = False,
        re_embed_temperature: float = 1.0,
        init_std: float = 0.02,
        init_depth: Literal["stored", "effective"] = "stored",
        init: Literal["normal", "zero", "identity"] = "normal",
        projections: Literal["all", "no_output", "key_query"] = "all",
        sees_itself: bool = True,
        scaled: bool = True,
        residual: bool = True,
        read_in: Literal["learned", "fixed"] = "learned",
        read_out: Literal["learned", "fixed"] = "learned",
    ) -> None:
        super().__init__()
        as_they_are = {"read_in": read_in == "fixed", "read_out": read_out == "fixed"}
        insist(problems_of_columns(task, width, re_embed, as_they_are, projections, init))
        width = task.features or 1 if width is None else width
        insist(self.check(width, layers, loops, heads, hidden, positions, dropout, re_embed_temperature, projections))
        self.task, self.causal, self.loops, self.dropout = task, causal, loops, dropout
        self.re_embed, self.re_embed_temperature, self.sees_itself = re_embed, re_embed_temperature, sees_itself
        self.activation, self.bias, self.projections = activation, bias, projections
        self.embedding = _make_embedding(task, width, read_in == "fixed")
        self.position = nn.Embedding(task.positions, width) if positions == "learned" else None
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            attention: Attention
            if projections == "key_query":
                attention = ColumnAttention(task.fields, heads, causal, sees_itself, scaled, dropout)
            else:
                attention = Attention(
                    width, heads, causal, bias, dropout, rope=positions == "rope", output=projections == "all",
                    sees_itself=sees_itself, scaled=scaled,
                )  # fmt: skip
            inner = _make_mlp(mlp, width, hidden or 4 * width, activation, bias)
            self.blocks.append(Block(attention, inner, [make_norm(norm, width) for _ in range(2)], dropout, residual))
        self.norm = make_norm(norm, width)
        own = read_out == "learned" and not (tied and task.tokens == task.outputs)
        self.head = nn.Linear(width, task.outputs, bias=False) if own else None
        self.answered = slice(task.answer, task.answer + task.outputs) if read_out == "fixed" else None
        if init == "normal":
            self._initialise(init_std, layers * (loops if init_depth == "effective" else 1))
        else:
            self._initialise_as(init, init_std)

    @staticmethod
    def check(
        width: int | None = 768,
        layers: int = 8,
        loops: int = 1,
        heads: int = 12,
        hidden: int | None = None,
        positions: str = "learned",
        dropout: float = 0.0,
        re_embed_temperature: float = 1.0,
        projections: str = "all",
    ) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        sizes = {"width": width, "layers": layers, "loops": loops, "heads": heads, "hidden": hidden}
        problems = [
            Problem(name, size, "use 1 or more") for name, size in sizes.items() if size is not None and size < 1
        ]
        width = 2 * max(1, heads) if width is None else width  # that of the columns, which is not known here
        if not problems and width % heads and projections != "key_query":
            problems.append(Problem("heads", heads, f"use a divisor of width={width}"))
        elif not problems and positions == "rope" and width // heads % 2:
            problems.append(Problem("heads", heads, f"rotary positions need an even head width, not {width // heads}"))
        if projections == "key_query" and positions == "rope":
            fix = "projections=key_query compares columns as they are: use learned or none"
            problems.append(Problem("positions", positions, fix))
        if not problems and layers * loops > MOST_BLOCKS:
            problems.append(Problem("layers", layers, f"with loops={loops}: use at most {MOST_BLOCKS:,} blocks in all"))
        if not problems and layers * width**2 > MOST_WEIGHTS:
            fix = f"with layers={layers} more weights than any machine holds: use a smaller width"
            problems.append(Problem("width", width, fix))
        if not 0 <= dropout < 1:
            problems.append(Problem("dropout", dropout, "use a share in [0, 1)"))
        if re_embed_temperature <= 0:
            problems.append(Problem("re_embed_temperature", re_embed_temperature, "use a positive number"))
        return problems

    def _initialise(self, std: float, depth: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                writes = name.startswith("blocks.") and name.endswith("out.weight")
                nn.init.normal_(parameter, std=std / math.sqrt(2 * depth) if writes else std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _initialise_as(self, kind: str, factor: float) -> None:
        """All zero; or queries and keys `factor` times the identity, and values the identity."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        for name, parameter in self.named_parameters():
            if kind == "identity" and name.endswith("qkv.weight"):
                unit = torch.eye(parameter.shape[1])
                parameter.data.copy_(torch.cat([factor * unit, factor * unit, unit]))

    def unlike_gpt2(self) -> list[tuple[str, Any, Any]]:
        """Options, as key, value and the value that GPT-2 has, by which this is another architecture than GPT-2."""
        block = cast(Block, self.blocks[0])
        has: dict[str, tuple[Any, Any]] = {
            "loops": (self.loops, 1), "causal": (self.causal, True), "tied": (self.head is None, True),
            "norm": (type(self.norm).__name__, "LayerNorm"), "re_embed": (self.re_embed, False),
            "positions": ("none" if self.position is None else "learned", "learned"),
            "mlp": (type(getattr(block, "mlp", None)).__name__, "MLP"),
            "activation": (self.activation, "gelu_tanh"), "bias": (self.bias, True), "residual": (block.residual, True),
            "projections": (self.projections, "all"), "scaled": (block.attn.scaled, True),
            "sees_itself": (self.sees_itself, True), "read_out": (self.answered, None),
        }  # fmt: skip
        return [(key, value, wanted) for key, (value, wanted) in has.items() if value != wanted]

    @property
    def shares_prefixes(self) -> bool:
        """See `StepModel.shares_prefixes`; dropout would be drawn once for all queries that share a prefix."""
        alone = isinstance(self.embedding, nn.Embedding) and self.sees_itself
        return self.causal and alone and not (self.training and self.dropout)

    @property
    def steps(self) -> Sequence[Step]:
        """Every block application in order; re-embedding belongs to the first application of the next loop."""
        return [
            partial(self._step, cast(Block, block), self.re_embed and loop > 0 and index == 0)
            for loop in range(self.loops)
            for index, block in enumerate(self.blocks)
        ]

    def _step(
        self,
        block: Block,
        re_embed: bool,
        state: State,
        at: Tensor | None = None,
        tap: Tap | None = None,
        memory: Memory | None = None,
    ) -> State:
        x = state["resid"]
        if re_embed:
            expected = (self.readout(state) / self.re_embed_temperature).softmax(-1)
            x = x + expected @ cast(Tensor, self.embedding.weight)
        places, ancestors = state.get("position_ids"), state.get("ancestors")
        return {**state, "resid": block(x, at, places, tap, memory, ancestors)}

    def embed(self, inputs: Tensor, position_ids: Tensor | None = None) -> State:
        """See `StepModel.embed`; positions are 0, 1, 2, … unless given."""
        x = self.embedding(inputs.to(next(self.parameters()).dtype) if inputs.is_floating_point() else inputs)
        if self.position is not None:
            x = x + (self.position.weight[: x.shape[1]] if position_ids is None else self.position(position_ids))
        state = {"resid": F.dropout(x, self.dropout, self.training)}
        return state if position_ids is None else {**state, "position_ids": position_ids}

    def readout(self, state: State, norm: bool = True) -> Tensor:
        """See `StepModel.readout`: final norm, then the (tied) read-out."""
        x = self.norm(state["resid"]) if norm else state["resid"]
        if self.answered is not None:
            return cast(Tensor, x[..., self.answered])
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(x, cast(Tensor, weight))


def _make_embedding(task: Task, width: int, as_they_are: bool) -> nn.Embedding | nn.Linear | nn.Identity:
    if task.tokens is not None:
        return nn.Embedding(task.tokens, width)
    return nn.Identity() if as_they_are else nn.Linear(task.features or 0, width)


def _make_mlp(kind: str, width: int, hidden: int, act: Activation, bias: bool) -> nn.Module | None:
    if kind == "none":
        return None
    return SwiGLU(width, hidden, bias) if kind == "swiglu" else MLP(width, hidden, act, bias)
