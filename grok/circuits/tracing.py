"""Causal tracing: which states S[i, p] decide the answer (Wang et al. 2024, section 4.2; Meng et al. 2022).

Shape legend: N example, C counterfactual (what was replaced), S state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grok.circuits.examples import by_stream, column, position_index, state_names
from grok.circuits.grid import Grid
from grok.circuits.patching import Counterfactual, Patched, patch_states
from grok.circuits.reading import Reading, effect
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel

__all__ = ["MEASURES", "Tracing", "causal_tracing"]

MEASURES = ("changed", "rank", "flipped", "probability", "logit_difference")
"""`changed`: the predicted token changes. `rank`: the original truth is no longer the prediction (the released code's
strength, right only where the clean run is correct; of equal logits all are predictions). `flipped`: the predicted
token becomes the counterfactual's answer.
`probability`: by how much the truth's probability falls. `logit_difference`: by how much logit(truth) −
logit(counterfactual's answer) falls."""


@dataclass(frozen=True)
class Tracing:
    """Per-example outcome of every patch.

    Args:
        names: what each counterfactual replaced.
        outcome: readings with columns (truth, counterfactual's answer), `[N, C, 2]` clean and `[N, C, S, 2]` patched; S
            are states and streams, if those were patched one at a time.
        exists: `[N, C]` bool, whether the example has the counterfactual.
        tokens: `[N, C, 2]` the columns' tokens; -1 for none.
        floor: the same for counterfactuals that keep what the circuit carries, if given.
        floor_exists: `[N, C]` bool.
        target: name of the state looked at (`S5_e2_v2`); empty for the answer.
    """

    names: tuple[str, ...]
    outcome: Patched
    exists: Tensor
    tokens: Tensor
    floor: Patched | None = None
    floor_exists: Tensor | None = None
    target: str = ""

    @property
    def correct(self) -> Tensor:
        """Whether the clean run gets each example right: `[N]` bool."""
        truth = self.tokens[:, 0, 0]  # by the prediction and not the rank, which is 0 where all logits are equal
        return (self.outcome.clean.top[:, 0, 0] == truth) & (truth >= 0)

    def examples(self, measure: str = "changed", only_correct: bool = False, floor: bool = False) -> Tensor:
        """Value of each patch `[N, S, C]`; NaN for an example that does not count.

        Args:
            measure: one of `MEASURES`.
            only_correct: count only examples that the clean run gets right.
            floor: of the floor's counterfactuals.

        Raises:
            BadInput: for an unknown measure, or a floor that was not measured.
        """
        if measure not in MEASURES:
            raise BadInput(Problem("measures", measure, f"use {', '.join(MEASURES)}"))
        patched, exists = (self.floor, self.floor_exists) if floor else (self.outcome, self.exists)
        if patched is None or exists is None:
            raise BadInput("tracing: no floor was measured; give floor counterfactuals")
        clean = patched.clean.map(lambda x: x[:, :, None])
        values = effect(clean, patched.patched, self.tokens[:, :, None], measure)
        counts = exists & self.correct[:, None] if only_correct else exists
        return values.masked_fill(~counts[..., None], torch.nan).transpose(1, 2)

    def strength(self, measure: str = "changed", only_correct: bool = False) -> Grid:
        """Mean over examples for every state and replaced token, with its floor."""
        floor = None if self.floor is None else self.examples(measure, only_correct, floor=True)
        axes = {"step": state_names(self.outcome.steps, self.outcome.streams), "position": self.names}
        name = f"tracing/{measure}{'_if_correct' if only_correct else ''}{self.target and '/to_' + self.target}"
        return Grid.of(name, axes, self.examples(measure, only_correct), floor)


def causal_tracing(
    model: StepModel,
    split: Split,
    counterfactuals: Sequence[Counterfactual],
    floor: Sequence[Counterfactual] | None = None,
    steps: Sequence[int] | None = None,
    target: tuple[int, str | int, str] | None = None,
    restrict: bool = False,
    batch: int = 2048,
    streams: Literal["together", "each"] = "together",
) -> Tracing:
    """Patch every state S[i, p] with the counterfactual run's, and look at the answer.

    Args:
        model: any step model with token outputs.
        split: the examples.
        counterfactuals: what is replaced, see `grok.circuits.counterfactuals`.
        floor: the same number of counterfactuals, in the same order, that should change nothing.
        steps: states to patch; None means all from the embedding S[0] to the target.
        target: (step, position, ground truth) of another state to look at, such as `(5, "e2", "v2")`; None means the
            last state where the answer is read, and the answer.
        restrict: rank among the possible answers instead of the whole vocabulary.
        batch: most rows of one forward pass; bounds memory.
        streams: of a model with several, whether all of S[i, p] is patched, or each stream by itself: states are then
            named `S[3].z_H`.

    Raises:
        BadInput: for states or ground truth that do not exist.
    """
    step, position, truth = (None, None, "answer") if target is None else target
    wanted = column(split, truth)[:, 0]
    index = None if position is None else position_index(split, position)
    if restrict and split.labels is None:
        raise BadInput(Problem("restrict", True, "this split does not say which answers are possible"))
    if streams not in ("together", "each"):
        raise BadInput(Problem("streams", streams, "use together or each"))
    # Only at the answer do we know what the counterfactual query should say there.
    others = [one.answer if target is None else torch.full_like(one.answer, -1) for one in counterfactuals]
    tokens = [torch.stack([wanted, other.to(wanted.device)], 1) for other in others]

    labels, both = split.labels if restrict else None, [*counterfactuals, *(floor or [])]
    looked = tokens if floor is None else tokens * 2
    alone: list[Sequence[str] | None] = [[one] for one in model.streams] if streams == "each" else [None]
    parts = [
        patch_states(model, split, both, looked, steps, step, index, labels, batch=batch, streams=s) for s in alone
    ]
    patched = parts[0] if len(parts) == 1 else _interleaved(model, parts)
    count = len(counterfactuals)

    def existing(which: Sequence[Counterfactual]) -> Tensor:
        return torch.stack([one.exists for one in which], 1).cpu()

    return Tracing(
        names=tuple(one.name for one in counterfactuals),
        outcome=patched.part(slice(0, count)),
        exists=existing(counterfactuals),
        tokens=torch.stack(tokens, 1).cpu(),
        floor=None if floor is None else patched.part(slice(count, None)),
        floor_exists=None if floor is None else existing(floor),
        target="" if target is None else f"S{step}_{position}_{truth}",
    )


def _interleaved(model: StepModel, parts: Sequence[Patched]) -> Patched:
    """One outcome of the patches of each stream by itself, state by state."""
    together = Reading.join([part.patched for part in parts], lambda readings: torch.stack(readings, 3))
    return Patched(parts[0].clean, together.map(lambda x: x.flatten(2, 3)), *by_stream(model, parts[0].steps))
