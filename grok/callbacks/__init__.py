"""Callbacks: when to look, and what to keep."""

from grok.callbacks.checkpoints import CheckpointSeries, LastCheckpoint, load_series, verify_series
from grok.callbacks.cost import CostMeter
from grok.callbacks.evaluation import Evaluation
from grok.callbacks.figures import Figures
from grok.callbacks.monitor import GrokkingMonitor
from grok.callbacks.predictions import PredictionWriter
from grok.callbacks.recorder import RunRecorder

__all__ = [
    "CheckpointSeries",
    "CostMeter",
    "Evaluation",
    "Figures",
    "GrokkingMonitor",
    "LastCheckpoint",
    "PredictionWriter",
    "RunRecorder",
    "load_series",
    "verify_series",
]
