"""What is minimised in each supervised slot, and what counts as right.

Shape legend: B query, A slot, V output (token or value).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grok.data.split import nearest

__all__ = ["CrossEntropy", "Objective", "SquaredError", "Stablemax"]


class Objective(nn.Module, ABC):
    """Loss of each slot; the training module masks, sums and divides by the number of supervised slots."""

    @abstractmethod
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss `[B, A]` of `outputs` `[B, A, V]` against `targets` `[B, A]`."""

    exact: bool = True
    """Whether an answer is a token, right or wrong; values are where the data say which there are (`Split.codes`)."""

    def correct(self, outputs: Tensor, targets: Tensor, codes: Sequence[Tensor] | None = None) -> Tensor:
        """`[B, A]` bool, whether the most likely token is the target; of values see `Split.codes`."""
        return outputs.argmax(-1) == targets


class CrossEntropy(Objective):
    """Softmax cross-entropy over the vocabulary.

    Args:
        label_smoothing: share of the target's probability spread over the vocabulary, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Objective.forward`; computed in float32 at least."""
        logits = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
        # Slots as rows: with the vocabulary in the middle, torch takes kernels that stride over it.
        rows, smoothing = logits.flatten(0, 1), self.label_smoothing
        return F.cross_entropy(rows, targets.flatten(), reduction="none", label_smoothing=smoothing).view_as(targets)


class Stablemax(Objective):
    """Cross-entropy of s(x) / Σ s with s(x) = x + 1 for x ≥ 0 and 1 / (1 - x) below.

    Prieto et al. 2025; the loss of He et al. 2026 (section 3.1), who compute it in float64.

    Args:
        precision: `float64`; or `float32`, which sums what speaks against the target apart, so that small losses and
            their gradients keep their digits: losses agree to 1e-6 of their size. Logits in float64 stay float64.
    """

    def __init__(self, precision: Literal["float64", "float32"] = "float64") -> None:
        super().__init__()
        self.precision = precision

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Objective.forward`."""
        double = self.precision == "float64" or outputs.dtype == torch.float64
        x = outputs.double() if double else outputs.float()
        # The clamp keeps the branch that is not taken finite, and with it the gradient.
        scores = torch.where(x < 0, 1 / (1 - x.clamp(max=0)), x + 1)
        index = targets[..., None]
        chosen = scores.gather(-1, index).squeeze(-1)
        if self.precision == "float64":
            return scores.sum(-1).log() - chosen.log()
        return (scores.scatter(-1, index, 0.0).sum(-1) / chosen).log1p()


class SquaredError(Objective):
    """Squared difference, for regimes with one continuous value, or a vector of them, per slot."""

    exact = False

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss `[B, A]` of `outputs` `[B, A, V]`, summed over V; `targets` `[B, A, V]`, or `[B, A]` where V is 1."""
        wanted = targets if targets.ndim == outputs.ndim else targets[..., None]
        return (outputs - wanted).square().sum(-1)

    def correct(self, outputs: Tensor, targets: Tensor, codes: Sequence[Tensor] | None = None) -> Tensor:
        """See `Objective.correct`: `[B, A]`, whether each part is nearest to the code that the target is nearest to."""
        if codes is None:
            raise ValueError("values are neither right nor wrong")
        return (nearest(outputs, codes) == nearest(targets, codes)).all(-1)
