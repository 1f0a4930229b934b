"""A training step recorded as one CUDA graph and replayed: one command to the device instead of some hundred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from grok.data import Batch

if TYPE_CHECKING:
    from grok.training.module import GrokModule

__all__ = ["CudaRecording", "GraphedSteps", "Recording", "first_line", "plain_numbers", "settings_of_the_plain_path"]

WARM_UP = 3
"""Steps done one operation at a time before recording: they make the optimizer's state and compile the blocks."""


class Recording(Protocol):
    """How work is done before, while and after it is recorded."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do `work` for real, as recording will see it."""

    def record(self, work: Callable[[], None]) -> None:
        """Record `work`, which has no effect yet."""

    def replay(self) -> None:
        """Do what was recorded."""


class CudaRecording:
    """A `torch.cuda.CUDAGraph`; warm-up runs on a stream of its own, as torch asks for."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], None]) -> None:
        """See `Recording.warm_up`."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def record(self, work: Callable[[], None]) -> None:
        """See `Recording.record`."""
        stream = torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(self.graph):
                work()
        finally:
            torch.cuda.set_stream(stream)  # which torch leaves behind if ending the recording fails

    def replay(self) -> None:
        """See `Recording.replay`."""
        self.graph.replay()


class GraphedSteps:
    """Optimizer steps of one process on one device: batches of one shape, copied to where the graph reads them.

    The graph holds forward and backward pass, and, if the optimizer allows it (its groups have `capturable`, and
    nothing but the learning rate changes between steps), clipping, the update and the moving average as well; the rate
    becomes a tensor that the schedule fills. A batch of another shape is done one operation at a time, and so is all if
    torch cannot record the step.

    Args:
        module: whose steps these are.
        loss: of a batch.
        recording: makes the recording; None means a CUDA graph.
    """

    def __init__(
        self,
        module: GrokModule,
        loss: Callable[[Batch], Tensor],
        recording: Callable[[], Recording] | None = None,
    ) -> None:
        self.module, self.loss = module, loss
        self._make = recording or (lambda: CudaRecording(module.device))
        self._static: Batch | None = None
        self._recording = self._make()
        self._recorded, self._warm, self._possible = False, 0, True
        self._loss = torch.zeros((), device=module.device)
        self._norm: Tensor | None = None
        self._gradients: list[Tensor | None] = []
        self._fixed: list[Mapping[str, Any]] = []
        self._with_update = False

    def step(self, batch: Batch) -> None:
        """Forward, backward and update."""
        if self._static is None:
            self._begin(batch)
        assert self._static is not None
        if not self._possible or not _fill(self._static, batch):
            self._singly(batch)
            return
        if self._warm < WARM_UP:
            self._warm += 1
            static = self._static
            self._recording.warm_up(lambda: self._singly(static))
            return
        if self._with_update and _settings(self._optimizer) != self._fixed:  # a schedule of more than the rate
            self._with_update, self._recorded, self._recording = False, False, self._make()
        if not self._recorded and not self._record():
            self._singly(batch)
            return
        self._replay()

    def _record(self) -> bool:
        try:
            self._recording.record(self._work)
        except (RuntimeError, AssertionError) as error:
            self._possible, self._recording = False, self._make()  # lets go of the memory of the failed one
            self._loss = torch.zeros_like(self._loss)
            self.module.print(f"fast: no CUDA graph, torch cannot record this step: {first_line(error)}")
            return False
        self._recorded = True
        self._gradients = [weight.grad for weight in self.module.net.parameters()]
        return True

    @property
    def _optimizer(self) -> Optimizer:
        return cast(Optimizer, self.module.optimizers(use_pl_optimizer=False))

    def _begin(self, batch: Batch) -> None:
        """Take the shape of a batch, and let the optimizer live on the device as far as it can."""
        self._static = _copied(batch)
        optimizer = self._optimizer
        self._with_update = all("capturable" in group for group in optimizer.param_groups)
        if not self._with_update:
            return
        for group in optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(float(group["lr"]), device=self.module.device)
        for state in optimizer.state.values():  # of a checkpoint that was saved by the plain path
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(self.module.device, torch.float32)
        self._fixed = _settings(optimizer)

    def _singly(self, batch: Batch) -> None:
        self._optimizer.zero_grad(set_to_none=True)  # what a recording has left there
        self.module.learn(self.loss(batch))

    def _work(self) -> None:
        assert self._static is not None
        module, optimizer = self.module, self._optimizer
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self._static)
        loss.backward()  # type: ignore[no-untyped-call]
        self._loss = loss.detach()
        if self._with_update:
            module.on_before_optimizer_step(optimizer)
            self._norm, module.finite.norm = module.finite.norm, None
            optimizer.step()
            module.average()

    def _replay(self) -> None:
        module, recording = self.module, self._recording
        if self._with_update:
            counted = cast(Any, module.optimizers())  # Lightning's wrapper, which counts steps around a real one
            counted._on_before_step()
            recording.replay()
            counted._on_after_step()
            module.finite.norm = None if self._norm is None else self._norm.clone()
            module.advance(self._loss.clone())
        else:
            recording.replay()
            for weight, gradient in zip(module.net.parameters(), self._gradients, strict=True):
                weight.grad = gradient  # Lightning drops gradients before each evaluation
            module.update(self._loss.clone())


def first_line(error: BaseException) -> str:
    """Of its message, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _settings(optimizer: Optimizer) -> list[Mapping[str, Any]]:
    """What a recording of `optimizer.step` takes for constant."""
    moving = ("params", "lr")
    return [{key: value for key, value in group.items() if key not in moving} for group in optimizer.param_groups]


def settings_of_the_plain_path(groups: Sequence[dict[str, Any]], defaults: Mapping[str, Any]) -> None:
    """Undo in a checkpoint what recording asks of an optimizer, so that any form of the step goes on from it."""
    plain_numbers(groups)
    for group in groups:
        if "capturable" in group:
            group["capturable"] = defaults.get("capturable", False)


def plain_numbers(groups: Sequence[dict[str, Any]]) -> None:
    """Turn learning rates that are tensors into numbers."""
    for group in groups:
        for key, value in group.items():
            if isinstance(value, Tensor):
                group[key] = float(value)
            elif isinstance(value, list) and value and all(isinstance(one, Tensor) and one.ndim == 0 for one in value):
                group[key] = [float(one) for one in value]


def _tensors(batch: Batch) -> list[Tensor]:
    own = batch.queries
    parts = (own.inputs, own.at, own.targets, own.mask, own.position_ids, batch.supervised)
    return [part for part in parts if isinstance(part, Tensor)]


def _numbers(batch: Batch) -> tuple[int | None, int | None]:
    return batch.size, None if isinstance(batch.supervised, Tensor) else batch.supervised


def _copied(batch: Batch) -> Batch:
    """A batch in memory of its own."""
    own = batch.queries
    queries = replace(
        own,
        inputs=own.inputs.clone(),
        at=own.at.clone(),
        targets=own.targets.clone(),
        mask=own.mask.clone(),
        position_ids=None if own.position_ids is None else own.position_ids.clone(),
    )
    supervised = batch.supervised
    return Batch(queries, supervised.clone() if isinstance(supervised, Tensor) else supervised, batch.size)


def _fill(static: Batch, batch: Batch) -> bool:
    """Copy a batch to where the graph reads it; False if its shape, or a number that the graph holds, is another."""
    to, source = _tensors(static), _tensors(batch)
    shapes = [tuple(tensor.shape) for tensor in to]
    if shapes != [tuple(tensor.shape) for tensor in source] or _numbers(static) != _numbers(batch):
        return False
    for here, there in zip(to, source, strict=True):
        here.copy_(there, non_blocking=True)
    return True
