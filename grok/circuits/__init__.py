"""Circuits: what is inside a model; pure functions of a `StepModel` and a `Split`, without Lightning."""

from grok.circuits.counterfactuals import (
    comparison_counterfactuals,
    composition_counterfactuals,
    other_queries,
    same_bridge_counterfactuals,
)
from grok.circuits.examples import choose_examples, column, columns
from grok.circuits.grid import Grid, bootstrap
from grok.circuits.lens import Lens, logit_lens
from grok.circuits.patching import Counterfactual, Patched, patch_states
from grok.circuits.reading import Reading, read
from grok.circuits.tracing import Tracing, causal_tracing

__all__ = [
    "Counterfactual",
    "Grid",
    "Lens",
    "Patched",
    "Reading",
    "Tracing",
    "bootstrap",
    "causal_tracing",
    "choose_examples",
    "column",
    "columns",
    "comparison_counterfactuals",
    "composition_counterfactuals",
    "logit_lens",
    "other_queries",
    "patch_states",
    "read",
    "same_bridge_counterfactuals",
]
