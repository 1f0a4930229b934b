"""A line of a manifest: one run of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from grok.configuration import value_at
from grok.sweep.asked import Setting, same_key
from grok.sweep.expansion import canonical

__all__ = ["BASE", "Line", "value_of"]

BASE = "base.yaml"
"""Name of a sweep's copy of the base configuration of its first part."""


@dataclass(frozen=True)
class Line:
    """A run of a sweep, as its manifest has it.

    `run_dir` and `base`, its copy of the base configuration, are relative to the sweep's directory. `after` is the
    number of the run whose weights it starts from, `block` the name of its part of the sweep; the first part has none.
    """

    index: int
    name: str
    run_dir: str
    set: Setting = field(hash=False)
    base: str = BASE
    after: int | None = None
    block: str = ""

    @property
    def key(self) -> str:
        """What makes it this run and no other, whatever its number and name."""
        return canonical({"set": self.set, "base": self.base, "after": self.after, "block": self.block})

    def written(self) -> dict[str, Any]:
        """What stands in the manifest: the lines of a sweep of one part say nothing about parts."""
        usual = {"base": BASE, "after": None, "block": ""}
        return {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}


def value_of(setting: Setting, options: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Value of a key, such as `data.phi`: from `setting`, or from a configuration; `init_args` may be left out."""
    wanted = same_key(key)
    for one, value in setting.items():
        if same_key(one) == wanted:
            return value
    found = value_at(options, wanted)
    return default if found is None else found
