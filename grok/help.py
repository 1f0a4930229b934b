"""What `grok --help` says, in a module that imports nothing: torch and Lightning take seconds."""

from collections.abc import Sequence

__all__ = ["HELP_TEXT", "asks_for_help"]

HELP_TEXT = """Train small transformers until they grok, and see which circuit they built.

  grok fit --config configs/quickstart.yaml    train; again: resume, or say that it is finished
  grok test RUN                                evaluate a finished run on every split
  grok predict RUN                             write what it answers, query by query
  grok trace RUN                               run the circuit analyses over its checkpoint series
  grok verify RUN                              check its checkpoints against their SHA-256
  grok sweep plan SWEEP.yaml                   plan many runs; `grok sweep` works them off and collects them
  grok report RUN … (or SWEEP)                 one page to look at: curves, circuit explorer, configuration
  grok export RUN DIRECTORY                    its weights for other programs, Hugging Face's among them
  grok import CHECKPOINT RUN --config CONFIG   weights of a GPT-2 or a TRM, as a run that can be examined
  grok verdict SWEEP                           judge the claims of He et al. 2026 by the runs of a sweep

grok fit --help lists every key of the configuration; --traceback shows where an error came from.
"""


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether the command line is nothing but a question what there is."""
    return list(argv) in ([], ["-h"], ["--help"])
