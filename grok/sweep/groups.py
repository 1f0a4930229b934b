"""Which runs may train together, and how indices of runs are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from grok.errors import BadInput
from grok.sweep.asked import same_key
from grok.sweep.expansion import canonical
from grok.sweep.plan import Line

__all__ = ["ENSEMBLE_KEYS", "grouped", "indices_of", "spelled"]

ENSEMBLE_KEYS = (
    "seed_everything", "data.graph_seed", "data.order_seed", "data.phi", "model.init_seed",
    "model.clip", "model.ema_decay", "model.optimizer.*", "model.schedule.*",
)  # fmt: skip
"""Keys in which the members of an ensemble may differ, with or without `init_args` in between."""


def grouped(lines: Iterable[Line], most: int) -> list[list[Line]]:
    """Runs that differ only in `ENSEMBLE_KEYS` together, in order, at most `most` of them in a group.

    They have one base configuration, and start all from one run or all from random weights.
    """
    alike: dict[str, list[Line]] = {}
    for line in lines:
        fixed = {key: value for key, value in line.set.items() if not _may_vary(key)}
        alike.setdefault(canonical({"set": fixed, "base": line.base, "after": line.after}), []).append(line)
    groups = [group[at : at + most] for group in alike.values() for at in range(0, len(group), most)]
    return sorted(groups, key=lambda group: group[0].index)


def _may_vary(key: str) -> bool:
    same = same_key(key)
    return any(same == one or (one.endswith("*") and same.startswith(one[:-1])) for one in ENSEMBLE_KEYS)


def spelled(indices: Iterable[int]) -> str:
    """Indices as an array specification of SLURM: `0-3,7`."""
    spans: list[list[int]] = []
    for index in sorted(set(indices)):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def indices_of(text: str, lines: Sequence[Line]) -> list[Line]:
    """The runs that an array specification names, in order.

    Raises:
        BadInput: if it is none, or names a run that there is not.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise BadInput(f"only={text!r}: use numbers of runs, such as 0-3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < len(lines):
            raise BadInput(f"only={text!r}: {part} is not in 0-{len(lines) - 1}")
        chosen.update(range(first, last + 1))
    return [lines[index] for index in sorted(chosen)]
