"""Models: who answers."""

from grok.models.steps import State, Step, StepModel, Tap
from grok.models.transformer import LoopedTransformer

__all__ = ["LoopedTransformer", "State", "Step", "StepModel", "Tap"]
