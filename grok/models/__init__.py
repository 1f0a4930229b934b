"""Models: who answers."""

from grok.models.recursive import RecursiveTransformer
from grok.models.steps import State, Step, StepModel, Tap
from grok.models.transformer import LoopedTransformer
from grok.models.transformer_lens import to_transformer_lens

__all__ = ["LoopedTransformer", "RecursiveTransformer", "State", "Step", "StepModel", "Tap", "to_transformer_lens"]
