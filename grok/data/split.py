"""`Split`, the one data type: queries as tensors, with the ground truth that analysis needs.

Shape legend: N query, T position, F feature, A slot (a supervised position), V value of an answer vector, H hop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Split", "concatenate", "nearest", "snap"]


@dataclass(frozen=True)
class Split:
    """Queries and what is known about them; every tensor has one row per query.

    Supervision is held as *slots*: the few positions at which an answer is read and scored. This is what lets the last
    block and the read-out run at those positions only, and it covers every encoding: one slot for a one-token answer,
    two for `t` and `</a>`, all positions for fill-in. **Slot 0 is always the first token of the answer.**

    Args:
        inputs: tokens `[N, T]` (int64), or continuous columns `[N, T, F]` (float).
        at: `[N, A]` int64, the position at which each slot is read.
        targets: `[N, A]` int64 token or float value, or `[N, A, V]` float vector, that is right in each slot.
        mask: `[N, A]` bool, False for a slot that this query does not have.
        positions: name of each position (`h`, `r1`, `r2`), for plots and for analysis by name.
        truth: ground truth by name, `[N, …]` each. Multi-hop regimes give `bridge` `[N, H - 1]` (token ids), `facts`
            `[N, H]` (rows of the fact table) and `ood` `[N, H]` (whether each hop's fact is out of distribution);
            entries that do not exist are -1.
        position_ids: `[N, T]` explicit position ids; None means 0, 1, 2, …
        labels: token ids an answer can have at all; None means the whole vocabulary.
        codes: the vectors that each consecutive part of an answer vector can be, `[C_i, V_i]`, sizes adding up to V;
            such an answer is right if it is nearest to the right code in every part. None: nothing is right or wrong.
    """

    inputs: Tensor
    at: Tensor
    targets: Tensor
    mask: Tensor
    positions: tuple[str, ...]
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    position_ids: Tensor | None = None
    labels: Tensor | None = None
    codes: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        rows = {
            "at": self.at,
            "targets": self.targets,
            "mask": self.mask,
            "position_ids": self.position_ids,
            **{f"truth[{name!r}]": column for name, column in self.truth.items()},
        }
        for name, column in rows.items():
            if column is not None and len(column) != len(self):
                raise ValueError(f"{name} has {len(column)} rows for {len(self)} queries")
        if self.inputs.shape[1] != len(self.positions):
            raise ValueError(f"{self.inputs.shape[1]} positions, but names {self.positions}")
        if self.codes is not None and sum(code.shape[1] for code in self.codes) != self.targets.shape[2]:
            raise ValueError(f"codes of {[code.shape[1] for code in self.codes]} values for {self.targets.shape[2]}")

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Tensor | slice) -> Split:
        """The queries at `rows`, in that order."""
        return replace(
            self,
            inputs=self.inputs[rows],
            at=self.at[rows],
            targets=self.targets[rows],
            mask=self.mask[rows],
            truth={name: column[rows] for name, column in self.truth.items()},
            position_ids=None if self.position_ids is None else self.position_ids[rows],
        )

    def without_truth(self) -> Split:
        """The same queries without ground truth: what training needs."""
        return replace(self, truth={})

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            at=self.at.to(device),
            targets=self.targets.to(device),
            mask=self.mask.to(device),
            truth={name: column.to(device) for name, column in self.truth.items()},
            position_ids=None if self.position_ids is None else self.position_ids.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            codes=None if self.codes is None else tuple(code.to(device) for code in self.codes),
        )

    def chunks(self, size: int, rank: int = 0, world: int = 1) -> Iterator[Split]:
        """Consecutive pieces of at most `size` queries of every `world`-th query from `rank` on.

        Every rank gets the same number of pieces, the last ones perhaps empty, so that ranks stay in step.
        """
        share = self if world == 1 else self.take(slice(rank, None, world))
        largest_share = math.ceil(len(self) / world)
        for start in range(0, largest_share, size):
            yield share.take(slice(start, start + size))


def concatenate(splits: Sequence[Split]) -> Split:
    """All queries of `splits`, in order, without ground truth (whose columns may differ).

    Raises:
        ValueError: if the splits were encoded differently.
    """
    first = splits[0]
    if any(split.positions != first.positions or split.at.shape[1] != first.at.shape[1] for split in splits):
        raise ValueError("only splits of one encoding can be concatenated")
    explicit = [split.position_ids for split in splits if split.position_ids is not None]
    if len(explicit) not in (0, len(splits)):
        raise ValueError("either all splits have position ids or none")
    return replace(
        first,
        inputs=torch.cat([split.inputs for split in splits]),
        at=torch.cat([split.at for split in splits]),
        targets=torch.cat([split.targets for split in splits]),
        mask=torch.cat([split.mask for split in splits]),
        truth={},
        position_ids=torch.cat(explicit) if explicit else None,
    )


def nearest(vectors: Tensor, codes: Sequence[Tensor]) -> Tensor:
    """Row of the nearest code of each consecutive part of `vectors` `[…, V]`: `[…, parts]`; see `Split.codes`."""
    with torch.autocast(vectors.device.type, enabled=False):  # vectors may be in half precision, codes are not
        parts = torch.split(vectors.to(codes[0].dtype), [code.shape[1] for code in codes], -1)
        # Ties and rounding: |v - c|² without |v|², which is the same for all codes.
        return torch.stack(
            [(part @ code.T - code.square().sum(1) / 2).argmax(-1) for part, code in zip(parts, codes, strict=True)], -1
        )


def snap(vectors: Tensor, codes: Sequence[Tensor]) -> Tensor:
    """The codes that `vectors` `[…, V]` are nearest to, part by part: `[…, V]`."""
    rows = nearest(vectors, codes)
    return torch.cat([code[row] for code, row in zip(codes, rows.unbind(-1), strict=True)], -1)
