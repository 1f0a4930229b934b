"""Training: how a model learns."""

from grok.training.ensemble import SeedEnsemble
from grok.training.module import GrokModule, Score
from grok.training.objectives import CrossEntropy, Objective, SquaredError, Stablemax
from grok.training.optimizers import AdamAtan2, Warmup, parameter_groups

__all__ = [
    "AdamAtan2",
    "CrossEntropy",
    "GrokModule",
    "Objective",
    "Score",
    "SeedEnsemble",
    "SquaredError",
    "Stablemax",
    "Warmup",
    "parameter_groups",
]
