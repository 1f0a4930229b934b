"""Callbacks: when to look, and what to keep."""

from grok.callbacks.checkpoints import CheckpointSeries, load_series, load_weights, verify_series
from grok.callbacks.circuit import CircuitCallback
from grok.callbacks.circuits import (
    AttentionMaps,
    CausalTracing,
    CosineLens,
    Fourier,
    LogitLens,
    Probes,
    SemanticPatching,
)
from grok.callbacks.cost import CostMeter
from grok.callbacks.evaluation import Evaluation
from grok.callbacks.faithfulness import Faithfulness
from grok.callbacks.figures import Figures
from grok.callbacks.found import Found
from grok.callbacks.last import LastCheckpoint
from grok.callbacks.loop_counts import LoopCounts
from grok.callbacks.measures import AttentionGroups, RegimeMeasures
from grok.callbacks.monitor import GrokkingMonitor
from grok.callbacks.predictions import PredictionWriter
from grok.callbacks.progress import Progress
from grok.callbacks.recorder import RunRecorder
from grok.callbacks.start import StartFrom

__all__ = [
    "AttentionGroups",
    "AttentionMaps",
    "CausalTracing",
    "CheckpointSeries",
    "CircuitCallback",
    "CosineLens",
    "CostMeter",
    "Evaluation",
    "Faithfulness",
    "Figures",
    "Found",
    "Fourier",
    "GrokkingMonitor",
    "LastCheckpoint",
    "LogitLens",
    "LoopCounts",
    "PredictionWriter",
    "Probes",
    "Progress",
    "RegimeMeasures",
    "RunRecorder",
    "SemanticPatching",
    "StartFrom",
    "load_series",
    "load_weights",
    "verify_series",
]
