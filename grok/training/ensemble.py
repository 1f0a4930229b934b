"""`SeedEnsemble`: members that differ in seeds, data or optimizer settings, trained as one batched computation.

Shape legend: E member, B query, T position, A slot, V output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from grok.data import Batch
from grok.errors import BadInput, Problem, insist
from grok.training.finite import scaler_of
from grok.training.module import GrokModule

__all__ = ["SeedEnsemble"]


class SeedEnsemble:
    """Trains modules of one architecture together: one forward and backward pass, batched over members.

    Every member stays an ordinary `GrokModule` with an optimizer, a schedule and a moving average of its own. Only the
    memory of its weights moves: they become slices of tensors `[E, …]`, so that evaluating, saving and loading a member
    works as if it were alone, and a batched pass needs no copy. The gradients are slices, too. A member therefore
    learns what it would learn alone, up to the order in which products are summed.

    Args:
        members: modules with the same architecture, objective and read-out, on one device.

    Raises:
        BadInput: naming what differs, or what draws random numbers, which members would draw in another order.
    """

    def __init__(self, members: Sequence[GrokModule]) -> None:
        insist(_problems(members))
        self.members = list(members)
        self._weights: dict[str, Tensor] = {}
        self._lent: str | None = None  # a weight whose gradients are slices

    def backward(self, batches: Sequence[Batch]) -> Tensor:
        """Add to the gradients of every member those of its loss on its batch; returns the losses `[E]`.

        What follows is each member's own: `GrokModule.update(loss, keep_memory=True)`, or, without a Trainer, an
        optimizer whose gradients are zeroed in place, `zero_grad(set_to_none=False)`.

        Raises:
            BadInput: if the batches have different shapes.
        """
        if not self._are_views():
            self._stack()
        losses = self.losses(batches)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        if not self._lent:
            self._lend_gradients()
        return losses.detach()

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Loss of every member on its batch, `[E]`."""
        first, queries = self.members[0], [batch.queries for batch in batches]
        inputs = _stacked("inputs", [one.inputs for one in queries])
        at = _stacked("positions of answers", [one.at for one in queries])
        ids = [one.position_ids for one in queries]
        if 0 < sum(one is None for one in ids) < len(ids):
            raise BadInput("members of an ensemble need position ids in all batches, or in none; train these singly")
        places = None if ids[0] is None else _stacked("position ids", cast(list[Tensor], ids))

        def outputs(weights: dict[str, Tensor], inputs: Tensor, at: Tensor, places: Tensor | None) -> Tensor:
            return first.outputs(_with(first.net, weights), inputs, at, places)

        batched: Callable[..., Tensor] = torch.vmap(outputs, (0, 0, 0, None if places is None else 0))
        answers = batched(self._weights, inputs, at, places)  # [E, B, A, V]
        targets = torch.stack([one.targets for one in queries])
        mask = torch.stack([one.mask for one in queries])
        losses = first.objective(answers.flatten(0, 1), targets.flatten(0, 1)).view_as(mask) * mask
        return cast(Tensor, losses.sum((1, 2)) / _supervised(batches, losses.device))

    def _stack(self) -> None:
        """Move weights and gradients of all members into common tensors."""
        names = [name for name, _ in self.members[0].net.named_parameters()]
        self._weights, self._lent = {}, None
        for name, *parameters in zip(names, *(member.net.parameters() for member in self.members), strict=True):
            stacked = torch.stack([parameter.detach() for parameter in parameters])
            for parameter, weight in zip(parameters, stacked, strict=True):
                parameter.data = weight
            self._weights[name] = stacked.requires_grad_(parameters[0].requires_grad)

    def _lend_gradients(self) -> None:
        """Give every member its slices; weights that got no gradient have none, as in a member trained alone."""
        for name, stacked in self._weights.items():
            for member, gradient in zip(self.members, () if stacked.grad is None else stacked.grad, strict=False):
                member.net.get_parameter(name).grad = gradient
                self._lent = name

    def _are_views(self) -> bool:
        """Whether weights and gradients of the members still are slices.

        Moving a module to another device or type gives it weights of its own; Lightning drops gradients before each
        evaluation. What happens to a module happens to all its weights, so that looking at one is enough.
        """
        if self._lent is None:
            return False
        name, stacked = self._lent, self._weights[self._lent]
        for index, member in enumerate(self.members):
            own = member.net.get_parameter(name)
            lent = None if stacked.grad is None else stacked.grad[index]
            if own.data_ptr() != stacked[index].data_ptr():
                return False
            if own.grad is None or lent is None or own.grad.data_ptr() != lent.data_ptr():
                return False
        return True


def _with(net: torch.nn.Module, weights: dict[str, Tensor]) -> Callable[..., Any]:
    return lambda *arguments, **options: functional_call(net, weights, arguments, options)


def _supervised(batches: Sequence[Batch], device: torch.device) -> Tensor | int:
    """Supervised slots of every batch, without waiting for the device."""
    counts = [batch.supervised for batch in batches]
    if not isinstance(counts[0], Tensor) and all(count == counts[0] for count in counts):
        return counts[0]
    return torch.stack([torch.as_tensor(count, device=device) for count in counts])


def _stacked(what: str, tensors: Sequence[Tensor]) -> Tensor:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        other = next(shape for shape in shapes if shape != shapes[0])
        raise BadInput(f"members of an ensemble need batches of one shape; {what}: {shapes[0]} and {other}")
    return torch.stack(list(tensors))


def _problems(members: Sequence[GrokModule]) -> list[Problem]:
    if not members:
        return [Problem("members", [], "give at least one")]
    alone = "train these singly"
    problems = []
    for name, describe in _ALIKE.items():
        found = [describe(member) for member in members]
        if different := [one for one in found if one != found[0]]:
            problems.append(Problem(name, different[0], f"another member has {str(found[0])[:80]}; {alone}"))
    problems += [problem for member in members for problem in _of_the_trainer(member, alone)][:1]
    if members[0].net.auxiliary:
        name = type(members[0].net).__name__
        problems.append(Problem("model.net", name, f"has a loss of its own, which is not batched; {alone}"))
    if queries := [member.reduction for member in members if member.reduction != "slots"]:
        problems.append(Problem("model.reduction", queries[0], f"is not batched; {alone}"))
    if dropout := max(map(_dropout, members[0].net.modules())):
        problems.append(Problem("model.net.dropout", dropout, f"drawn for all members at once; {alone}"))
    if other := next(filter(None, (_other_buffer(members[0], member) for member in members)), None):
        problems.append(Problem("model.net", other, f"a buffer that differs between members; {alone}"))
    return problems


def _dropout(module: torch.nn.Module) -> float:
    share = getattr(module, "p" if isinstance(module, _DropoutNd) else "dropout", 0.0)
    return share if isinstance(share, float) else 0.0


def _other_buffer(one: GrokModule, other: GrokModule) -> str | None:
    """Name of a buffer that `other` has otherwise: a batched pass uses those of the first member for all."""
    mine, yours = dict(one.net.named_buffers()), dict(other.net.named_buffers())
    if mine.keys() != yours.keys():
        return min(mine.keys() ^ yours.keys())
    return next((name for name in mine if not torch.equal(mine[name], yours[name])), None)


def _of_the_trainer(member: GrokModule, alone: str) -> list[Problem]:
    """What a Trainer does around a backward pass that is not done for a batched one."""
    trainer = member._trainer
    if trainer is None:
        return []
    if trainer.world_size > 1:
        return [Problem("trainer.devices", trainer.world_size, f"an ensemble trains on one device; {alone}")]
    if scaler_of(trainer) is not None:
        return [Problem("trainer.precision", "16-mixed", f"its gradients are scaled; use bf16-mixed, or {alone}")]
    return []


_MACHINERY = frozenset(vars(torch.nn.Module()))
"""Attributes of every module."""


def _plain(module: torch.nn.Module) -> dict[str, Any]:
    """What a module is made of apart from weights: its class, and its settings: plain values, and functions by code."""
    plain = (int, float, str, tuple, type(None))
    settings = {
        name: getattr(value, "__code__", value)
        for name, value in vars(module).items()
        if isinstance(value, plain) or (callable(value) and not isinstance(value, type))
    }
    settings = {name: value for name, value in settings.items() if name not in _MACHINERY}
    return {"class": type(module).__name__, **settings}


_ALIKE: dict[str, Callable[[GrokModule], Any]] = {
    "model.net": lambda member: (
        [_plain(module) for module in member.net.modules()],
        [(name, tuple(one.shape), one.dtype, str(one.device)) for name, one in member.net.named_parameters()],
    ),
    "model.objective": lambda member: _plain(member.objective),
    "model.read_out": lambda member: member.read_out,
}
