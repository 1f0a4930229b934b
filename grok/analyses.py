"""`AnalysisRecord`: per-query results of the circuit analyses, one file per checkpoint step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from grok.errors import BadInput
from grok.files import write_atomically
from grok.reading import parse_json

__all__ = ["AnalysisRecord"]

_MOST_NAMES = 20_000


class AnalysisRecord:
    """Tensors by name in `analysis/step_000000400.safetensors` of a run directory.

    Names are `KIND/SPLIT/WHAT` (`lens/test_inferred_iid/bridge/rank`), rows are the examined queries in order, whose
    tokens are `KIND/SPLIT/inputs`; semantic patching has a row per pair, the cosine lens one per entity.

    Args:
        run: the run directory; nothing need exist yet.
    """

    def __init__(self, run: str | Path) -> None:
        self.directory = Path(run) / "analysis"

    def path(self, step: int) -> Path:
        """File of a step."""
        return self.directory / f"step_{step:09d}.safetensors"

    def steps(self) -> list[int]:
        """Steps that were analysed, ascending."""
        found = (re.fullmatch(r"step_(\d+)\.safetensors", path.name) for path in self.directory.glob("step_*"))
        return sorted(int(match[1]) for match in found if match)

    def read(self, step: int) -> dict[str, Tensor]:
        """All tensors of a step.

        Raises:
            BadInput: if there is no such file, or it is damaged.
        """
        path = self.path(step)
        if not path.exists():
            raise BadInput(f"{path}: not there; analysed steps: {', '.join(map(str, self.steps())) or 'none'}")
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            raise BadInput(f"{path}: damaged; remove it, and `grok trace` writes it again") from None

    def write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Add or replace tensors of a step, in one atomic exchange of the file."""
        before = self.read(step) if self.path(step).exists() else {}
        whole = before | {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_atomically(self.path(step), save(dict(sorted(whole.items())), metadata={"step": str(step)}))

    def name_tokens(self, count: int, name: Callable[[int], str]) -> None:
        """Keep how tokens 0 … `count` - 1 are written, in `analysis/tokens.json`, unless that is there or there are too
        many (the vocabulary of GPT-2, of which a task uses a few)."""
        path = self.directory / "tokens.json"
        if count <= _MOST_NAMES and not path.exists():
            write_atomically(path, json.dumps([name(token) for token in range(count)], ensure_ascii=False))

    def token_names(self) -> list[str]:
        """How tokens are written, by their id; none if that was not kept."""
        path = self.directory / "tokens.json"
        try:
            names = parse_json(path.read_bytes()) if path.exists() else []
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadInput(f"{path}: damaged; remove it, and `grok trace` writes it again")
        return names

    def truncate(self, step: int) -> None:
        """Forget everything after `step`: a resumed run writes it again."""
        for later in self.steps():
            if later > step:
                self.path(later).unlink()
