"""Attention patterns: where each head looks, at every step.

Shape legend: N example, S attention (one for each step, or for each block of each step), H head, A query position,
T key position, G group of key positions, F feature of a column, R column, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grok.circuits.examples import analysing, position_index
from grok.circuits.grid import Grid
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel
from grok.models.steps import Tap, keeping

__all__ = ["Attention", "attention_patterns", "key_query_products", "place_of", "zeroing"]


@dataclass(frozen=True)
class Attention:
    """Patterns of every head and example.

    Args:
        patterns: `[N, S, H, A, T]` weights, which sum to 1 over T, and over prefix slots where the model has any.
        split: the examples.
        causal: whether a position sees earlier positions and itself only.
        places: `[S]` where each attention is: its step, or step and block, `3.1`, where a step has several blocks.
    """

    patterns: Tensor
    split: Split
    causal: bool
    places: tuple[str, ...]

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of all heads, `0.head0`, step by step."""
        return tuple(f"{place}.head{head}" for place in self.places for head in range(self.patterns.shape[2]))

    def examples(
        self, groups: Mapping[str, Sequence[str | int]] | None = None, query: str | int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention mass `[N, S · H, G]` of each group of key positions, and that of uniform attention `[N, S · H, G]`.

        Args:
            groups: names or indices of key positions by the group's name; None means each position by itself.
            query: position that attends; None means where the answer is read.

        Raises:
            BadInput: for a position that does not exist, or no groups.
        """
        if groups is not None and not groups:
            raise BadInput(Problem("groups", {}, "name one group or more"))
        names = self.split.positions
        chosen = [[name] for name in range(len(names))] if groups is None else list(groups.values())
        members = torch.zeros(len(chosen), len(names))
        for row, keys in zip(members, chosen, strict=True):
            row[[position_index(self.split, key) for key in keys]] = 1
        at = self.split.at[:, 0].cpu() if query is None else position_index(self.split, query)
        place = torch.as_tensor(at).expand(len(self.patterns))
        rows = self.patterns[torch.arange(len(place)), :, :, place]  # [N, S, H, T]
        seen = torch.arange(len(names)) <= place[:, None] if self.causal else torch.ones(len(place), len(names)).bool()
        uniform = (seen / seen.sum(1, keepdim=True)) @ members.T
        mass = (rows.float() @ members.T).flatten(1, 2)
        return mass, uniform[:, None].expand_as(mass)

    def mass(self, groups: Mapping[str, Sequence[str | int]] | None = None, query: str | int | None = None) -> Grid:
        """Mean attention mass of every head (rows `2.head0`) on each group of key positions, see `examples`.

        The floor is uniform attention over the positions that can be seen.
        """
        keys = self.split.positions if groups is None else tuple(groups)
        values, floor = self.examples(groups, query)
        name = "attention/mass" if query is None else f"attention/mass_from_{self._name(query)}"
        return Grid.of(name, {"head": self.heads, "key": keys}, values, floor)

    def roles(self, threshold: float = 0.5) -> dict[tuple[int, int, str], str]:
        """What each (attention, head, query position) looks at: `r2→r1`, the key position with most of the mean mass if
        that is at least `threshold`, or `mixed`."""
        names = self.split.positions
        mass, key = self.patterns.float().mean(0).max(-1)  # [S, H, A]
        return {
            (index, head, name): f"{name}→{names[key[index, head, place]]}"
            if mass[index, head, place] >= threshold
            else "mixed"
            for index in range(mass.shape[0])
            for head in range(mass.shape[1])
            for place, name in enumerate(names)
        }

    def _name(self, position: str | int) -> str:
        return self.split.positions[position_index(self.split, position)]


def attention_patterns(model: StepModel, split: Split, batch: int = 1024) -> Attention:
    """Run the examples and keep the pattern of every head at every step, and in every block of it.

    Args:
        model: any step model whose steps attend (hook points `attn.hook_pattern` or `blocks.{j}.attn.hook_pattern`),
            with the same number of heads in all.
        split: the examples.
        batch: most queries of one forward pass; what is kept, N · S · H · A · T numbers, grows with the examples.

    Raises:
        BadInput: if a step has no attention.
    """
    if not len(split) or not model.steps:
        raise BadInput(Problem("split", f"{len(split)} queries", "give one query or more, and a model with steps"))
    parts, names = [], []
    with analysing(model) as device:
        for piece in split.chunks(batch):
            here = piece.to(device)
            found: dict[str, Tensor] = {}

            def keep(name: str, value: Tensor, found: dict[str, Tensor] = found) -> Tensor:
                if name.endswith("attn.hook_pattern"):
                    found[name] = value
                return value

            model.run(model.embed(here.inputs, here.position_ids), tap=keep)
            names = list(found)  # in the order of the run
            missing = sorted(set(range(len(model.steps))) - {int(name.split(".")[1]) for name in names})
            if missing:
                fix = f"steps {', '.join(map(str, missing))} have no attention (no hook point attn.hook_pattern)"
                raise BadInput(Problem("attention", type(model).__name__, fix))
            size = here.inputs.shape[1]
            parts.append(torch.stack([pattern[..., :size, :size] for pattern in found.values()], 1).cpu())
    return Attention(torch.cat(parts), split, model.causal, tuple(place_of(name) for name in names))


def place_of(hook: str) -> str:
    """Where an attention is, by the name of its pattern's hook: its step, or step and block, `3.1`."""
    return hook.removeprefix("steps.").removesuffix(".attn.hook_pattern").replace("blocks.", "")


def zeroing(head: int) -> Tap:
    """A tap that zeroes what one head has read, `[B, A, H, K]`, in every step."""

    def zeroed(name: str, value: Tensor) -> Tensor:
        if not name.endswith("attn.hook_z"):
            return value
        return value.index_fill(2, torch.tensor([head], device=value.device), 0.0)

    return zeroed


def key_query_products(model: StepModel, columns: Tensor, step: int = 0) -> Tensor | None:
    """Products of the queries and keys that a step makes of `columns`, whatever the steps before it: `[H, R, R]`.

    Args:
        model: any step model of continuous columns.
        columns: `[B, T, F]`, of which R = B · T.
        step: the step, which is given the columns as they are embedded.

    Returns:
        None if the step has no queries and keys.
    """
    kept: dict[str, Tensor] = {}
    hooks = ("attn.hook_q", "attn.hook_k")
    with analysing(model) as device:
        model.steps[step](model.embed(columns.to(device)), tap=keeping(kept, hooks))
    if len(kept) < len(hooks):
        return None
    query, key = (kept[hook].flatten(0, 1) for hook in hooks)  # [R, H, K]
    return torch.einsum("rhd,shd->hrs", query, key).cpu()
