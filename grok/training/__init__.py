"""Training: how a model learns."""

from grok.training.ensemble import SeedEnsemble
from grok.training.module import GrokModule, Score
from grok.training.objectives import CrossEntropy, Objective, SquaredError, Stablemax
from grok.training.optimizers import AdamAtan2, GrokfastAdamW, MuonAdamW, parameter_groups
from grok.training.schedules import Warmup
from grok.training.sharding import FullySharded

__all__ = [
    "AdamAtan2",
    "CrossEntropy",
    "FullySharded",
    "GrokModule",
    "GrokfastAdamW",
    "MuonAdamW",
    "Objective",
    "Score",
    "SeedEnsemble",
    "SquaredError",
    "Stablemax",
    "Warmup",
    "parameter_groups",
]
