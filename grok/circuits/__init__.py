"""Circuits: what is inside a model; pure functions of a `StepModel` and a `Split`, without Lightning."""

from grok.circuits.ablations import ablation, edge_ablation
from grok.circuits.attention import Attention, attention_patterns
from grok.circuits.attribution import agreement, attribution_patching, exact_patching
from grok.circuits.counterfactuals import (
    comparison_counterfactuals,
    composition_counterfactuals,
    counterfactuals_for,
    known_counterfactuals,
    other_queries,
    same_bridge_counterfactuals,
    same_value_counterfactuals,
)
from grok.circuits.examples import choose_examples, column, columns
from grok.circuits.found import Found, found
from grok.circuits.fourier import Fourier, fourier_analysis
from grok.circuits.grid import Grid, bootstrap
from grok.circuits.groups import group_mass, head_roles
from grok.circuits.lens import Lens, logit_lens
from grok.circuits.loops import LoopCounts, loop_counts
from grok.circuits.measures import has_measures, measures
from grok.circuits.nodes import Edge, Node, node_of, nodes_of
from grok.circuits.patching import Counterfactual, Patched, patch_states
from grok.circuits.paths import path_patching
from grok.circuits.planted import Planted, planted
from grok.circuits.probes import linear_probes
from grok.circuits.reading import Reading, read
from grok.circuits.search import FoundCircuit, completeness, faithfulness, find_circuit
from grok.circuits.semantic import full_run_probing, immediate_probing, semantic_pairs, semantic_patching
from grok.circuits.similarity import CosineLens, FactMap, cosine_distances, cosine_lens, fact_map, mds
from grok.circuits.tracing import Tracing, causal_tracing

from grok.circuits import (  # noqa: F401  # isort: skip - each registers measures of its own
    affine_recurrence,
    graph_navigation,
    nonlinear_regression,
    pattern_composition,
    retrieval_copying,
    tree_paths,
)

__all__ = [
    "Attention",
    "CosineLens",
    "Counterfactual",
    "Edge",
    "FactMap",
    "Found",
    "FoundCircuit",
    "Fourier",
    "Grid",
    "Lens",
    "LoopCounts",
    "Node",
    "Patched",
    "Planted",
    "Reading",
    "Tracing",
    "ablation",
    "agreement",
    "attention_patterns",
    "attribution_patching",
    "bootstrap",
    "causal_tracing",
    "choose_examples",
    "column",
    "columns",
    "comparison_counterfactuals",
    "completeness",
    "composition_counterfactuals",
    "cosine_distances",
    "cosine_lens",
    "counterfactuals_for",
    "edge_ablation",
    "exact_patching",
    "fact_map",
    "faithfulness",
    "find_circuit",
    "found",
    "fourier_analysis",
    "full_run_probing",
    "group_mass",
    "has_measures",
    "head_roles",
    "immediate_probing",
    "known_counterfactuals",
    "linear_probes",
    "logit_lens",
    "loop_counts",
    "mds",
    "measures",
    "node_of",
    "nodes_of",
    "other_queries",
    "patch_states",
    "path_patching",
    "planted",
    "read",
    "same_bridge_counterfactuals",
    "same_value_counterfactuals",
    "semantic_pairs",
    "semantic_patching",
]
