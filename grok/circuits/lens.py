"""Logit lens: what the read-out sees in every state S[i, p] (nostalgebraist 2020; Wang et al. 2024, section 4).

Shape legend: N example, S state, T position, K column, M token of a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grok.circuits.examples import analysing, by_stream, column, state_names, step_range
from grok.circuits.grid import Grid
from grok.circuits.reading import Reading, decoded, read
from grok.data.keyed import keyed_permutation
from grok.data.split import Split
from grok.errors import BadInput, Problem
from grok.models import StepModel
from grok.models.steps import State

__all__ = ["Lens", "logit_lens"]


@dataclass(frozen=True)
class Lens:
    """Per-example readings of every state.

    Args:
        columns: ground truth looked for.
        steps: i of the states S[i] read.
        positions: names of the positions read.
        readings: for each column `[N, S, T, M]`.
        shuffled: the same for a ground truth that belongs to other examples: the floor.
        streams: the stream of each of the states read, if every stream was read by itself.
    """

    columns: tuple[str, ...]
    steps: tuple[int, ...]
    positions: tuple[str, ...]
    readings: dict[str, Reading]
    shuffled: dict[str, Reading]
    streams: tuple[str, ...] = ()

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Axes of every grid."""
        return {"step": state_names(self.steps, self.streams), "position": self.positions}

    def grid(self, column: str, measure: str = "mrr") -> Grid:
        """One statistic of one column at every state, with shuffled ground truth as its floor.

        Args:
            column: one of `columns`.
            measure: `mrr`, the mean of 1 / (rank + 1); `probability`; `logit`; `rank`; or `recall@k`, the share of the
                column's tokens among the k highest.

        Raises:
            BadInput: for an unknown measure.
        """
        values, floor = (_statistic(side[column], measure).mean(-1) for side in (self.readings, self.shuffled))
        return Grid.of(f"lens/{measure}/{column}", self.axes, values, floor)


def _statistic(reading: Reading, measure: str) -> Tensor:
    """`[N, S, T, M]`; NaN where there is no token."""
    missing = reading.rank < 0
    if measure == "mrr":
        return (1 / (reading.rank + 1.0)).masked_fill(missing, torch.nan)
    if measure == "rank":
        return reading.rank.float().masked_fill(missing, torch.nan)
    if measure in ("probability", "logit"):
        return reading.probability if measure == "probability" else reading.logit
    name, _, k = measure.partition("@")
    if name == "recall" and k.isdigit() and int(k) >= 1:
        return (reading.rank < int(k)).float().masked_fill(missing, torch.nan)
    raise BadInput(Problem("measures", measure, "use mrr, probability, logit, rank, or recall@k such as recall@3"))


def logit_lens(
    model: StepModel,
    split: Split,
    columns: Sequence[str] = ("bridge", "answer"),
    steps: Sequence[int] | None = None,
    norm: bool = True,
    restrict: bool = False,
    top: int = 1,
    batch: int = 1024,
    seed: int = 0,
    streams: Literal["decoded", "each"] = "decoded",
) -> Lens:
    """Read every state S[i, p] out and look for ground truth.

    Args:
        model: any step model with token outputs.
        split: the examples.
        columns: ground truth, see `grok.circuits.examples.column`.
        steps: states; None means all, the embedding S[0] first.
        norm: apply the final norm (Wang et al. 2024); without it as Ye et al. 2025.
        restrict: rank among the possible answers instead of the whole vocabulary.
        top: tokens kept per state in `Reading.top`.
        batch: most rows (query × position) read out at a time; bounds memory.
        seed: selects the shuffle of the floor.
        streams: of a model with several, `decoded` reads the one that it decodes at S[i] (`StepModel.stream_at`; He et
            al. 2026, section 3), `each` every one at every S[i]: states are then named `S[3].z_H`.

    Raises:
        BadInput: for ground truth or states that do not exist, or a `top` below 1.
    """
    if top < 1:
        raise BadInput(Problem("top", top, "use 1 or more"))
    if streams not in ("decoded", "each"):
        raise BadInput(Problem("streams", streams, "use decoded or each"))
    chosen, named = tuple(step_range(model, steps)), tuple[str, ...]()
    if streams == "each":
        chosen, named = by_stream(model, chosen)
    truth = [column(split, name) for name in columns]
    order = keyed_permutation(torch.arange(len(split)), len(split), "shuffle", seed).to(split.inputs.device)
    tokens = torch.cat([*truth, *(one[order] for one in truth)], 1)
    if restrict and split.labels is None:
        raise BadInput(Problem("restrict", True, "this split does not say which answers are possible"))
    parts = []
    with analysing(model) as device:
        positions = split.inputs.shape[1]
        size = max(1, batch // positions)
        for start in range(0, len(split), size):
            rows = slice(start, start + size)
            piece = split.take(rows).to(device)
            looked = tokens[rows].to(device).repeat_interleave(positions, 0)
            states = model.states(piece.inputs, piece.position_ids)
            labels = piece.labels if restrict else None
            read_out = [
                _read_state(model, decoded(model, states[step], step, stream), looked, norm, labels, top)
                for step, stream in zip(chosen, named or [""] * len(chosen), strict=True)
            ]
            whole = Reading.join(read_out, torch.stack)  # [S, N · T, K]
            parts.append(whole.map(lambda x: x.view(len(x), -1, positions, x.shape[-1]).transpose(0, 1).cpu()))
    whole = Reading.join(parts, torch.cat)  # [N, S, T, K]
    widths = [one.shape[1] for one in truth]
    pieces = [_columns(whole, *span) for span in _spans([*widths, *widths])]
    names = tuple(columns)
    return Lens(
        names,
        chosen,
        split.positions,
        dict(zip(names, pieces[: len(names)], strict=True)),
        dict(zip(names, pieces[len(names) :], strict=True)),
        named,
    )


def _read_state(model: StepModel, state: State, tokens: Tensor, norm: bool, labels: Tensor | None, top: int) -> Reading:
    return read(model.readout(state, norm=norm).flatten(0, 1).float(), tokens, labels, top)


def _spans(widths: Sequence[int]) -> list[tuple[int, int]]:
    ends = torch.tensor(widths).cumsum(0).tolist()
    return [(end - width, end) for end, width in zip(ends, widths, strict=True)]


def _columns(reading: Reading, start: int, stop: int) -> Reading:
    part = slice(start, stop)
    return Reading(reading.rank[..., part], reading.logit[..., part], reading.probability[..., part], reading.top)
