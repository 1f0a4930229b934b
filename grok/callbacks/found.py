"""`Found`: Bridge Found and Target Found while a model trains, or on its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from grok.callbacks.circuit import Analysis, CircuitCallback
from grok.circuits.found import found
from grok.data import RegimeDataModule, Split
from grok.errors import Problem, insist
from grok.models import StepModel

__all__ = ["Found"]


class Found(CircuitCallback):
    """Is the bridge (the answer) on top of the logit lens at any stage and position, and does it matter for the answer?

    The published statistics and corrected ones, see `grok.circuits.found`. `splits` null means `test_inferred_iid` and
    `test_inferred_ood`, or else all held-out splits with bridges; `examples` null means 3,000, or all if fewer. The
    other arguments are those of `CircuitCallback`.
    """

    kind = "found"

    def usual_splits(self, data: RegimeDataModule) -> Sequence[str]:
        """In and out of distribution."""
        bridged = [name for name in data.held_out_splits if name in data.splits and _has_bridge(data.splits[name])]
        if not bridged:
            fix = f"no held-out split of {type(data).__name__} has a bridge: use false, or name splits"
            insist([Problem("found.enabled", True, fix)])
        return [name for name in ("test_inferred_iid", "test_inferred_ood") if name in bridged] or bridged

    def usual_examples(self, split: Split) -> int | None:
        """As many as He et al. 2026 probe."""
        return min(3000, len(split))

    def analyse(self, model: StepModel, data: RegimeDataModule, name: str, split: Split) -> Analysis:
        """See `CircuitCallback.analyse`."""
        seen = found(model, split, batch=self.batch)
        tensors = {f"{token}/first": seen.first(token).short() for token in ("bridge", "target")}
        tensors |= {"right": seen.right, "distinct": seen.distinct}
        return Analysis([seen.grid()], tensors)


def _has_bridge(split: Split) -> bool:
    return "bridge" in split.truth and bool((split.truth["bridge"] >= 0).any())
