"""The fastest form of the same training step on the device at hand, decided on once, when training starts.

On a CPU, prefixes that queries share are computed once. On a CUDA device blocks are compiled, weights are cast to
bfloat16 once a step instead of at every use, and the whole step is replayed as one CUDA graph (`grok.training.graph`).
Weights, optimizer and checkpoints are those of the plain path.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from grok.data import Batch
from grok.models import StepModel
from grok.models.prefixes import PrefixTree, answers_sharing_prefixes
from grok.training.finite import scaler_of
from grok.training.graph import GraphedSteps, first_line
from grok.training.sharding import is_sharded

if TYPE_CHECKING:
    from grok.training.module import GrokModule

__all__ = ["FastSteps", "Plan", "WorkingCopy", "plan"]

MOST_POSITIONS = 8
"""Up to this many, attention over prefixes is computed element by element."""

WORTHWHILE = 0.75
"""Prefixes are shared where at most this share of the positions is left."""


@dataclass(frozen=True)
class Plan:
    """By which means training steps are done.

    Args:
        prefixes: compute prefixes that queries share once.
        cast: cast weights to bfloat16 once a step.
        compiled: compile the blocks.
        graph: replay steps as one CUDA graph.
        line: what applies, and why the rest does not.
    """

    prefixes: bool = False
    cast: bool = False
    compiled: bool = False
    graph: bool = False
    line: str = ""


def plan(module: GrokModule, batch: Batch) -> Plan:
    """The plan for a module on its device, whose trainer is about to train; `batch` stands for all batches."""
    if is_sharded(module.net):
        return Plan(line="fast: the plain path, as weights are spread over processes")
    if module.device.type == "cuda":
        return _plan_for_cuda(module)
    tree, why = _tree(module, batch)
    if tree is None:
        return Plan(line=f"fast: the plain path, as {why}, and compiled blocks and CUDA graphs need a GPU")
    said = f"{len(tree):,} distinct prefixes are computed instead of {batch.queries.inputs.numel():,} positions"
    return Plan(prefixes=True, line=f"fast: {said}; compiled blocks and CUDA graphs need a GPU")


def _tree(module: GrokModule, batch: Batch) -> tuple[PrefixTree | None, str]:
    """The prefixes of a batch if it pays to share them; otherwise why not."""
    net, inputs = module.net, batch.queries.inputs
    if not net.shares_prefixes or not net.steps or net.auxiliary:
        return None, "this model does not share prefixes"
    if module.read_out == "everywhere" or batch.queries.position_ids is not None:
        return None, "prefixes are shared with read_out=supervised and positions 0, 1, 2, … only"
    if inputs.shape[1] > MOST_POSITIONS:
        return None, f"prefixes of {inputs.shape[1]} positions are not shared, only up to {MOST_POSITIONS}"
    tree = PrefixTree.of(inputs, _tokens(module))
    if len(tree) > WORTHWHILE * inputs.numel():
        return None, f"queries share few prefixes ({len(tree):,} of {inputs.numel():,} are distinct)"
    return tree, ""


def _tokens(module: GrokModule) -> int:
    return cast(int, module.net.task.tokens)


def _plan_for_cuda(module: GrokModule) -> Plan:
    trainer = module.trainer
    half = trainer.precision == "bf16-mixed" or getattr(module.net, "activations", None) == "bfloat16"
    compiled = find_spec("triton") is not None
    scaled = scaler_of(trainer) is not None
    watched = _hooks_of_a_step(module)
    graph = trainer.world_size == 1 and not scaled and watched is None and not module.finite.skip
    does = ["weights cast once a step"] * half + ["compiled blocks"] * compiled + ["CUDA graph"] * graph
    lacks = [] if half else ["nothing to cast as trainer.precision is not bf16-mixed"]
    lacks += [] if compiled else ["nothing compiled as triton is not installed"]
    if not graph:
        why = "on several devices" if trainer.world_size > 1 else "under 16-mixed, which looks at gradients"
        why = "as model.nonfinite=skip looks at each step" if module.finite.skip else why
        lacks.append(f"no CUDA graph {why if watched is None else f'as {watched} acts within a step'}")
    return Plan(False, half, compiled, graph, "fast: " + ", ".join(does + lacks))


def _hooks_of_a_step(module: GrokModule) -> str | None:
    """A callback, or a subclass, that acts within an optimizer step, which a graph would pass over."""
    hooks = ("on_before_backward", "on_after_backward", "on_before_zero_grad", "on_before_optimizer_step")
    for callback in cast(Any, module.trainer).callbacks:
        if any(getattr(type(callback), hook) is not getattr(L.Callback, hook) for hook in hooks):
            return type(callback).__name__
    own = ("on_before_backward", "on_after_backward", "on_before_zero_grad")
    if any(getattr(type(module), hook) is not getattr(L.LightningModule, hook) for hook in own):
        return type(module).__name__
    return None


class WorkingCopy:
    """The model as training computes it: a second module over the same parameters, which no checkpoint knows of.

    What analysis and evaluation run is never compiled and holds no bfloat16 copy.

    Args:
        net: the model.
        cast: give its linear maps weights in bfloat16, cast by one operation in every step, through which gradients
            flow back to the float32 weights. Under autocast the numbers are those of a cast at every use, except that
            the gradients of weights used several times add up in bfloat16.
        compiled: compile its blocks, or the whole where it has no `blocks`.
    """

    def __init__(self, net: StepModel, cast: bool = False, compiled: bool = False) -> None:
        shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
        self.net = copy.deepcopy(net, shared).train()
        self._places: list[tuple[nn.Module, str]] = []
        self._masters: list[nn.Parameter] = []
        if cast:
            self._take_linear_maps(self.net)
        if compiled:
            blocks = getattr(self.net, "blocks", None)
            for part in blocks if isinstance(blocks, nn.ModuleList) else [self.net]:
                part.compile(dynamic=False)

    def _take_linear_maps(self, net: StepModel) -> None:
        for name, module in net.named_modules():
            # Inputs are embedded in the precision of the weights, whatever the steps compute in.
            if not isinstance(module, nn.Linear) or name == "embedding":
                continue
            for kind in ("weight", "bias"):
                master = module._parameters.pop(kind)
                setattr(module, kind, None)
                if master is not None:
                    self._places.append((module, kind))
                    self._masters.append(master)

    def refreshed(self) -> StepModel:
        """The model with the weights of this moment, for one forward and backward pass."""
        halves = _CastTogether.apply(*self._masters) if self._masters else ()  # type: ignore[no-untyped-call]
        for (module, kind), half in zip(self._places, halves, strict=True):
            setattr(module, kind, half)
        return self.net


class _CastTogether(torch.autograd.Function):
    """Casts all weights to bfloat16 by one multi-tensor operation, and their gradients back by another."""

    @staticmethod
    def forward(ctx: Any, *masters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a weight that was not used has no gradient, not one of zeros
        ctx.masters = masters
        return _together(masters, [torch.bfloat16] * len(masters))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient in gradients if gradient is not None]
        kinds = [master.dtype for master, one in zip(ctx.masters, gradients, strict=True) if one is not None]
        wide = iter(_together(given, kinds))
        return tuple(None if gradient is None else next(wide) for gradient in gradients)


def _together(tensors: Sequence[Tensor], kinds: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    made = [torch.empty_like(tensor, dtype=kind) for tensor, kind in zip(tensors, kinds, strict=True)]
    if made:
        torch._foreach_copy_(made, list(tensors))
    return tuple(made)


class FastSteps:
    """Does the optimizer steps of a module by a `Plan`.

    Args:
        module: that trains; its trainer has begun.
        chosen: the plan.
        batch: on which compiled blocks are tried before anything is learnt, leaving weights and random numbers alone.
    """

    def __init__(self, module: GrokModule, chosen: Plan, batch: Batch) -> None:
        self.module, self.plan = module, chosen
        self._copy = WorkingCopy(module.net, chosen.cast, chosen.compiled) if chosen.cast or chosen.compiled else None
        if chosen.compiled:
            try:
                self._try(batch)
            except Exception as error:  # of torch.compile, of a C compiler, of the driver
                module.print(f"fast: blocks are not compiled: {first_line(error)}")
                self._copy = WorkingCopy(module.net, chosen.cast) if chosen.cast else None
        self._graphed = GraphedSteps(module, self.loss) if chosen.graph else None

    def loss(self, batch: Batch) -> Tensor:
        """As `GrokModule.loss` for the share of this process."""
        return self.module.loss(batch, self.module.trainer.world_size, self._net())

    def step(self, batch: Batch) -> None:
        """Forward, backward and update."""
        if self._graphed is not None:
            self._graphed.step(batch)
            return
        self.module.learn(self.loss(batch))

    def _try(self, batch: Batch) -> None:
        cuda = [self.module.device.index] if self.module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), self.module.trainer.precision_plugin.forward_context():
            self.loss(batch).backward()  # type: ignore[no-untyped-call]
        self.module.zero_grad()

    def _net(self) -> Callable[..., Tensor]:
        if self.plan.prefixes:
            return self._sharing_prefixes
        return self.module.net if self._copy is None else self._copy.refreshed()

    def _sharing_prefixes(self, inputs: Tensor, at: Tensor, position_ids: Tensor | None = None) -> Tensor:
        return answers_sharing_prefixes(self.module.net, PrefixTree.of(inputs, _tokens(self.module)), at)
