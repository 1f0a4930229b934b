"""`AnalysisRecord`: per-query results of the circuit analyses, one file per checkpoint step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from grok.errors import BadInput
from grok.files import write_atomically

__all__ = ["AnalysisRecord"]


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

    def truncate(self, step: int) -> None:
        """Forget everything after `step`: a resumed run writes it again."""
        for later in self.steps():
            if later > step:
                self.path(later).unlink()
