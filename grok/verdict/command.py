"""`grok verdict EXPERIMENT`: the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from grok.callbacks.console import say
from grok.errors import BadInput
from grok.files import write_atomically
from grok.verdict.claims import claims
from grok.verdict.experiment import Experiment
from grok.verdict.page import page

__all__ = ["verdict"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; `grok verdict --help` explains it")


def verdict(argv: Sequence[str]) -> None:
    """Write the page and its pictures, and print the verdicts.

    Raises:
        BadInput: if there are no runs to judge, or they are about different graphs.
    """
    parser = _Parser(
        prog="grok verdict", allow_abbrev=False,
        description="Judge the three claims of He et al. 2026 (arXiv 2601.09049) by the runs of a sweep.",
    )  # fmt: skip
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="directory of a sweep, such as runs/small")
    parser.add_argument("--page", type=Path, help="where to write it; by default EXPERIMENT/verdict/verdict.md")
    parser.add_argument("--model", help="the model that the page is about; by default the one with most runs")
    options = parser.parse_args(argv)
    experiment = Experiment.load(options.experiment)
    model = options.model or experiment.models[0]
    if model not in experiment.models:
        raise BadInput(f"model={model!r}: no such model in {options.experiment}; use {' or '.join(experiment.models)}")
    target = options.page or options.experiment / "verdict" / "verdict.md"
    figures: list[Path] = []
    if find_spec("matplotlib") is None:
        say("no figures without matplotlib: pip install 'grok-circuits[plots]'")
    else:
        from grok.verdict.figures import draw

        figures = draw(experiment, model, target.parent)
    command = " ".join(["grok verdict", *argv])
    write_atomically(target, "\n".join(page(experiment, model, figures, command)) + "\n")
    for claim in claims(experiment, model):
        say(f"{claim.verdict:<20} {claim.name}")
    say(f"{target}")
