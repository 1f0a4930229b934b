"""The curves of He et al. 2026 (arXiv 2601.09049, figures 2 to 4) as numbers.

They are the printed outputs of the notebooks in the released repository (KaiyuHe998/IsGrokkingWorthwhile on GitHub),
not read off the pictures. One run for each regime, each on a graph of its own. `target_found` is what figure 2 calls
"final answer accuracy": the answer is the most likely token at *any* stage and position; fine-tuning is scored by exact
match.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from grok.errors import BadInput
from grok.verdict.curves import Curve

__all__ = ["CATEGORIES", "OOD_TESTS", "REGIMES", "finetuned", "pretrained"]

REGIMES = ("natural", "both_full", "both_half", "hop1_full", "hop2_full")
"""The five exposure regimes, the one without exposure first."""

OOD_TESTS = {"natural": 1992, "both_full": 1977, "both_half": 2080, "hop1_full": 1965, "hop2_full": 2045}
"""Queries behind each published OOD curve: different numbers, because the graphs differed."""

CATEGORIES = {
    "test_inferred_new_old": "new+old(id)", "test_inferred_old_new": "old(id)+new", "test_inferred_new_new": "new+new",
}  # fmt: skip
"""Our transfer splits and what the released notebooks call them."""

_NUMBERS = {
    "he2026_pretrain.csv": ("step", "bridge_found", "target_found", "train_acc"),
    "he2026_finetune.csv": ("step", "n", "bridge_found", "em", "new_atomic_em"),
}
_CONTROL = {"scratch": "control_scratch"}


@cache
def _rows(name: str) -> list[dict[str, str]]:
    file = files("grok.verdict").joinpath("published", name)
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines(), strict=True))
        for row in rows:
            if None in row or None in row.values():
                raise ValueError("a row of another length")
            [float(row[column]) for column in _NUMBERS[name] if row[column]]
    except (FileNotFoundError, ValueError, KeyError, csv.Error) as error:
        raise BadInput(f"{file}: damaged ({error}); install grok-circuits again") from None
    if not rows:
        raise BadInput(f"{file}: empty; install grok-circuits again")
    return rows


def pretrained(regime: str, column: str) -> Curve:
    """A curve of pre-training: `bridge_found` or `target_found` of OOD queries, or `train_acc`."""
    rows = [row for row in _rows("he2026_pretrain.csv") if row["regime"] == regime]
    return _curve(rows, column, 0 if column == "train_acc" else OOD_TESTS[regime])


def finetuned(start: str, split: str, column: str = "em") -> Curve:
    """A curve of fine-tuning: `em` (exact match), `bridge_found`, or `new_atomic_em`.

    Args:
        start: regime that was fine-tuned, or `scratch` for the control.
        split: one of `CATEGORIES`.
        column: what is measured.
    """
    wanted = _CONTROL.get(start, start), CATEGORIES[split]
    rows = [row for row in _rows("he2026_finetune.csv") if (row["regime"], row["category"]) == wanted]
    return _curve(rows, column, int(rows[0]["n"]) if rows else 0)


def _curve(rows: list[dict[str, str]], column: str, n: int) -> Curve:
    steps, values = tuple(int(row["step"]) for row in rows), tuple(float(row[column]) for row in rows)
    return Curve(steps, values, (0.0,) * len(rows), n)
