"""`grok verdict`: the three claims of He et al. 2026 (arXiv 2601.09049) against runs of one's own, by rules."""

from grok.verdict.experiment import Experiment, Run

__all__ = ["Experiment", "Run"]
