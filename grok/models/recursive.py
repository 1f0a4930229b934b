"""The recursive transformer: one small core refines a latent z_L under z_H, then z_H from z_L, again and again.

Shape legend: B query, T position, P prefix slot, A slot (a chosen position), D width, V output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grok.errors import Problem, insist
from grok.models.layers import Attention, SwiGLU, TokenMixing
from grok.models.steps import Memory, State, Step, StepModel, Tap, pick
from grok.task import Task

__all__ = ["RecursiveBlock", "RecursiveTransformer"]


class RecursiveBlock(nn.Module):
    """Post-norm block: token mixing or attention, then a gated MLP; the RMS norms have no parameters.

    As in the code of He et al. 2026, the norm after token mixing is taken over the positions of each channel.
    """

    def __init__(self, mixer: TokenMixing | Attention, mlp: SwiGLU) -> None:
        super().__init__()
        if isinstance(mixer, Attention):
            self.attn = mixer
        else:
            self.mix = mixer
        self.attends, self.mlp = isinstance(mixer, Attention), mlp

    def forward(
        self, x: Tensor, at: Tensor | None = None, position_ids: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`, or to `[B, A, D]` at positions `at` `[B, A]`."""
        tapped = tap or _untapped
        x = tapped("hook_resid_pre", x)
        if self.attends:
            written = tapped("hook_attn_out", self.attn(x, at, position_ids, tap))
            x = _normed((x if at is None else pick(x, at)) + written)
        else:
            x = _normed((x + tapped("hook_mix_out", self.mix(x, tap))).mT).mT
            x = x if at is None else pick(x, at)
        x = tapped("hook_resid_mid", x)
        return tapped("hook_resid_post", _normed(x + tapped("hook_mlp_out", self.mlp(x, tap))))


def _untapped(_: str, value: Tensor) -> Tensor:
    return value


def _normed(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, in float32 at least."""
    return F.rms_norm(_wide(x), x.shape[-1:], eps=1e-5).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class RecursiveTransformer(StepModel):
    """The Tiny Recursive Model as trained by He et al. 2026 (arXiv 2601.09049).

    A core f of `layers` blocks does everything. `high_cycles` times: `low_cycles` times z_L ← f(z_L + z_H + emb), then
    z_H ← f(z_H + z_L). Each use of f is a step: 14 steps and 28 block applications at the paper's size. Both latents
    start as fixed random vectors, the same at every position. The read-out sees z_H as the last norm leaves it. The
    model is not causal: every position sees every other.

    The defaults are the paper's (44,560,898 weights for its 2,206 tokens, the prefix vector apart), except that its
    `activations` are bfloat16. With `prefix=0` the model is *compact*: of the paper's 21 positions 16 are prefix slots,
    which cost as much as those of the input and, but for one learned vector, say nothing.

    The state holds the streams `z_H`, `z_L` and the injected embedding `emb` at the positions of the input, and beside
    them those of the prefix slots as `prefix_H`, `prefix_L` and `prefix`, so that position p means what it means in any
    model. Within a step the prefix slots stand *behind* the positions. Hooks of step i: `hook_z_L` or `hook_z_H`, what
    it leaves in that stream; and for block j `blocks.{j}.` with `hook_resid_pre`, `hook_mix_out` or `hook_attn_out`,
    `hook_resid_mid`, `hook_mlp_out`, `hook_resid_post`, `mix.hook_post`, `mlp.hook_post` and those of attention, over
    positions and prefix slots.

    Args:
        task: sizes, from the data.
        width: D.
        layers: blocks of the core.
        high_cycles: updates of z_H.
        low_cycles: updates of z_L before each of them.
        mixing: how positions exchange information: a gated MLP over `tokens`, or `attention`.
        positions: `none`; `rope` (attention only); or `learned`, added to the embeddings (their sum is divided by √2).
        heads: attention heads, a divisor of `width`.
        expansion: a gated MLP over n has 2/3 · `expansion` · n hidden units, rounded, then rounded up to a `multiple`.
        multiple: see `expansion`; the paper's 256 dominates a small model.
        prefix: P, slots before the input; the first holds a learned vector, zero at first (the puzzle embedding of the
            reference code, which gives it an optimizer of its own: see `groups` of `GrokModule`), the others zeros.
        gradient: `last_cycle`, training computes all cycles of z_H but the last without gradient, as the paper does; or
            `all`. In evaluation mode gradients flow everywhere, as attribution needs.
        halt: a head that tells from z_H at the first slot whether all answers are right, and its loss. Nothing halts.
        halt_weight: of that loss.
        halt_max_steps: 1; the paper never takes a second supervision step, and none is implemented.
        tied: read out with the token embedding.
        activations: `float32`, like the weights; or `bfloat16`: weights are cast where they are used, norms float32.
    """

    causal = False
    streams = ("z_H", "z_L")
    loops: int
    start_H: Tensor
    start_L: Tensor

    def __init__(
        self,
        task: Task,
        width: int = 1536,
        layers: int = 2,
        high_cycles: int = 2,
        low_cycles: int = 6,
        mixing: Literal["tokens", "attention"] = "tokens",
        positions: Literal["none", "rope", "learned"] = "none",
        heads: int = 8,
        expansion: float = 4.0,
        multiple: int = 256,
        prefix: int = 16,
        gradient: Literal["last_cycle", "all"] = "last_cycle",
        halt: bool = True,
        halt_weight: float = 0.5,
        halt_max_steps: int = 1,
        tied: bool = False,
        activations: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        sizes = (width, layers, high_cycles, low_cycles, mixing, positions, heads, expansion, multiple, prefix)
        insist(self.check(*sizes, halt_max_steps))
        self.task, self.loops, self.low_cycles, self.slots = task, high_cycles, low_cycles, prefix
        self.mixing, self.gradient, self.activations = mixing, gradient, activations
        self.auxiliary, self.halt_weight, self.rotary = halt, halt_weight, positions == "rope"
        self.embedding: nn.Embedding | nn.Linear = (
            nn.Embedding(task.tokens, width) if task.tokens is not None else nn.Linear(task.features or 0, width)
        )
        inner = task.positions + prefix
        self.position = nn.Embedding(inner, width) if positions == "learned" else None
        self.prefix = nn.Parameter(torch.zeros(width)) if prefix else None

        def hidden(size: int) -> int:
            return -(-round(expansion * size * 2 / 3) // multiple) * multiple

        self.blocks = nn.ModuleList()
        for _ in range(layers):
            mixer = (
                TokenMixing(inner, hidden(inner))
                if mixing == "tokens"
                else Attention(width, heads, causal=False, bias=False, rope=self.rotary)
            )
            self.blocks.append(RecursiveBlock(mixer, SwiGLU(width, hidden(width))))
        self.head = None if tied and task.tokens == task.outputs else nn.Linear(width, task.outputs, bias=False)
        self.halt_head = nn.Linear(width, 2) if halt else None  # halt, and go on, which one step never asks
        self.register_buffer("start_H", torch.empty(width))
        self.register_buffer("start_L", torch.empty(width))
        self._initialise()

    @staticmethod
    def check(
        width: int = 1536,
        layers: int = 2,
        high_cycles: int = 2,
        low_cycles: int = 6,
        mixing: str = "tokens",
        positions: str = "none",
        heads: int = 8,
        expansion: float = 4.0,
        multiple: int = 256,
        prefix: int = 16,
        halt_max_steps: int = 1,
    ) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        sizes = {"width": width, "layers": layers, "high_cycles": high_cycles, "low_cycles": low_cycles}
        sizes |= {"heads": heads, "multiple": multiple}
        problems = [Problem(name, size, "use 1 or more") for name, size in sizes.items() if size < 1]
        if expansion <= 0:
            problems.append(Problem("expansion", expansion, "use a positive number"))
        if prefix < 0:
            problems.append(Problem("prefix", prefix, "use 16 slots as the paper, or 0 for none"))
        if halt_max_steps != 1:
            fix = "use 1: the paper ran one supervision step; carrying states to a second one is not implemented"
            problems.append(Problem("halt_max_steps", halt_max_steps, fix))
        if mixing == "tokens" and positions == "rope":
            problems.append(Problem("positions", positions, "rotates queries and keys: use mixing=attention, or none"))
        if not problems and mixing == "attention":
            if width % heads:
                problems.append(Problem("heads", heads, f"use a divisor of width={width}"))
            elif positions == "rope" and width // heads % 2:
                fix = f"rotary positions need an even head width, not {width // heads}"
                problems.append(Problem("heads", heads, fix))
        return problems

    def _initialise(self) -> None:
        """Truncated normal: matrices by 1 / sqrt(inputs), embeddings by 1 / sqrt(D), first latents by 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _truncated(module.weight, 1 / math.sqrt(module.in_features))
            elif isinstance(module, nn.Embedding):
                _truncated(module.weight, 1 / math.sqrt(module.embedding_dim))
        if isinstance(self.embedding, nn.Linear):
            nn.init.zeros_(self.embedding.bias)
        if self.halt_head is not None:
            nn.init.zeros_(self.halt_head.weight)
            nn.init.constant_(self.halt_head.bias, -5.0)
        for start in self.buffers():
            _truncated(start, 1.0)

    @property
    def cycles(self) -> tuple[int, int]:
        """Cycles of z_H, which `with_loops` changes, and updates of z_L in each."""
        return self.loops, self.low_cycles

    @property
    def steps(self) -> Sequence[Step]:
        """For every cycle of z_H: the updates of z_L, then that of z_H."""
        high, low = self.cycles
        return [
            partial(self._step, stream, self.gradient == "last_cycle" and cycle < high - 1)
            for cycle in range(high)
            for stream in "L" * low + "H"
        ]

    def stream_at(self, index: int) -> str:
        """`z_L` after an update of z_L; `z_H` after one of z_H, and at the start."""
        return "z_L" if index % (self.cycles[1] + 1) else "z_H"

    def embed(self, inputs: Tensor, position_ids: Tensor | None = None) -> State:
        """See `StepModel.embed`; positions are 0, 1, 2, … unless given; prefix slots stand before them.

        Raises:
            ValueError: if token mixing has no weights for this number of positions.
        """
        if self.mixing == "tokens" and inputs.shape[1] != self.task.positions:
            raise ValueError(f"token mixing has weights for {self.task.positions} positions, not {inputs.shape[1]}")
        x = self.embedding(inputs.to(next(self.parameters()).dtype) if inputs.is_floating_point() else inputs)
        batch, places, width = x.shape
        prefix = None
        if self.prefix is not None:
            prefix = F.pad(self.prefix[None], (0, 0, 0, self.slots - 1))
        if self.position is not None:
            where = torch.arange(places, device=x.device) if position_ids is None else position_ids
            x = (x + self.position(where + self.slots)) / math.sqrt(2)
            prefix = None if prefix is None else (prefix + self.position.weight[: self.slots]) / math.sqrt(2)
        dtype = torch.bfloat16 if self.activations == "bfloat16" else x.dtype
        state = {"emb": (x * math.sqrt(width)).to(dtype)}
        for name, start in (("H", self.start_H), ("L", self.start_L)):
            state[f"z_{name}"] = start.to(dtype).expand(batch, places, -1)
            if prefix is not None:
                state[f"prefix_{name}"] = start.to(dtype).expand(batch, self.slots, -1)
        if prefix is not None:
            state["prefix"] = (prefix * math.sqrt(width)).to(dtype).expand(batch, -1, -1)
        return state if position_ids is None else {**state, "position_ids": position_ids}

    def _step(
        self,
        stream: str,
        free: bool,
        state: State,
        at: Tensor | None = None,
        tap: Tap | None = None,
        memory: Memory | None = None,
    ) -> State:
        tapped = tap or _untapped
        places = state["emb"].shape[1]
        with self._computing(state["emb"].device.type, free and self.training):
            x = self._joined(state, "z_L", "prefix_L") if stream == "L" else self._joined(state, "z_H", "prefix_H")
            other = self._joined(state, "z_H", "prefix_H") if stream == "L" else self._joined(state, "z_L", "prefix_L")
            x = x + (other + self._joined(state, "emb", "prefix") if stream == "L" else other)
            wanted = None
            if at is not None:  # the head that tells whether all is right looks at the first slot
                first = torch.full_like(at[:, :1], places if self.slots else 0)
                wanted = torch.cat([at, first], 1)
            for index, block in enumerate(self.blocks):
                last = index == len(self.blocks) - 1
                x = block(x, wanted if last else None, self._places(state), _inner(tap, f"blocks.{index}."))
        name = f"z_{stream}"
        if at is not None:
            rest = {key: value for key, value in self.picked(state, at).items() if key != name}
            changed = {name: tapped(f"hook_{name}", x[:, :-1])}
            return {**rest, **changed, **({"halt": x[:, -1:]} if stream == "H" else {})}
        changed = {name: tapped(f"hook_{name}", x[:, :places])}
        if self.slots:
            changed[f"prefix_{stream}"] = x[:, places:]
        return {**state, **changed}

    def _joined(self, state: State, name: str, prefix: str) -> Tensor:
        return torch.cat([state[name], state[prefix]], 1) if self.slots else state[name]

    def _places(self, state: State) -> Tensor | None:
        """Rotary positions `[B, T + P]`: the prefix comes first although it stands behind."""
        if not self.rotary:
            return None
        batch, places = state["emb"].shape[:2]
        ids = state.get("position_ids")
        device = state["emb"].device
        where = torch.arange(places, device=device).expand(batch, -1) if ids is None else ids
        return torch.cat([where + self.slots, torch.arange(self.slots, device=device).expand(batch, -1)], 1)

    @contextmanager
    def _computing(self, device: str, free: bool) -> Iterator[None]:
        """Precision and gradients of a step.

        Autocast keeps its casts of weights. Before torch 2.11 or so, one made without gradient is used again where
        gradients are wanted, and the weights get none: hence a step without gradient keeps no casts.
        """
        half, outer = self.activations == "bfloat16", torch.is_autocast_enabled(device)
        if not (half or free):
            yield
            return
        dtype = torch.bfloat16 if half else torch.get_autocast_dtype(device)
        precision = torch.autocast(device, dtype, enabled=half or outer, cache_enabled=False)
        with precision, torch.set_grad_enabled(torch.is_grad_enabled() and not free):
            yield

    def picked(self, state: State, at: Tensor) -> State:
        """See `StepModel.picked`; of the prefix, what the halting head sees is kept."""
        kept = {name: pick(state[name], at) for name in ("z_H", "z_L", "emb")}
        return {**kept, "halt": state["prefix_H" if self.slots else "z_H"][:, :1]}

    def readout(self, state: State, norm: bool = True) -> Tensor:
        """See `StepModel.readout`; every state has been normed, so that `norm` makes no difference."""
        x = state["z_H"]
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(x, weight.to(x.dtype))

    def halt_logits(self, state: State) -> Tensor:
        """`[B]`, positive where the model holds all its answers for right; from a state at all or at chosen positions.

        Raises:
            ValueError: if the model was made without `halt`.
        """
        if self.halt_head is None:
            raise ValueError("this model was made with halt=False")
        slot = state["halt"] if "halt" in state else state["prefix_H" if self.slots else "z_H"]
        head = self.halt_head
        return _wide(F.linear(slot[:, 0], head.weight.to(slot.dtype), head.bias.to(slot.dtype)))[:, 0]

    def auxiliary_loss(self, state: State, right: Tensor) -> Tensor:
        """See `StepModel.auxiliary_loss`: cross-entropy of the halting head, whose target is `right`."""
        logits = self.halt_logits(state)
        return self.halt_weight * F.binary_cross_entropy_with_logits(logits, right.to(logits.dtype), reduction="none")


def _inner(tap: Tap | None, prefix: str) -> Tap | None:
    return None if tap is None else lambda name, value: tap(prefix + name, value)


def _truncated(tensor: Tensor, std: float) -> None:
    """Normal numbers within two units, the unit chosen such that what is left has standard deviation `std`."""
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    unit = std / math.sqrt(1 - 4 * density / math.erf(math.sqrt(2)))
    nn.init.trunc_normal_(tensor, std=unit, a=-2 * unit, b=2 * unit)
