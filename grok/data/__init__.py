"""Data regimes: what is asked."""

from grok.data.affine_recurrence import AffineRecurrence
from grok.data.attribute_values import AttributeValues
from grok.data.blocks import Block, Blocks
from grok.data.comparison import Comparison
from grok.data.complex_reasoning import ComplexReasoning
from grok.data.composition import TwoHopComposition
from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.encoding import Encoding, FillIn, NextToken, Questions
from grok.data.exposure import FactExposure
from grok.data.facts import AtomicFacts
from grok.data.graph_navigation import GraphNavigation
from grok.data.implicit_reasoning import ImplicitReasoning
from grok.data.knowledge_graph import Hops, KnowledgeGraph
from grok.data.modular_arithmetic import ModularArithmetic
from grok.data.new_knowledge import NewKnowledge
from grok.data.nonlinear_regression import NonlinearRegression
from grok.data.pattern_composition import PatternComposition
from grok.data.real_facts import RealFacts, SyntheticKnowledge
from grok.data.reference_json import ReferenceJSON, write_reference_json
from grok.data.retrieval_copying import RetrievalCopying
from grok.data.split import Split, concatenate
from grok.data.stream import Batch, FreshStream, Stream, TableStream
from grok.data.three_hop import ThreeHopComposition
from grok.data.tree_paths import TreePaths
from grok.data.two_token_entities import TwoTokenComposition

__all__ = [
    "AffineRecurrence",
    "AtomicFacts",
    "AttributeValues",
    "Batch",
    "Block",
    "Blocks",
    "Comparison",
    "ComplexReasoning",
    "Encoding",
    "FactExposure",
    "FillIn",
    "FreshStream",
    "Generated",
    "GraphNavigation",
    "Hops",
    "ImplicitReasoning",
    "KnowledgeGraph",
    "ModularArithmetic",
    "NewKnowledge",
    "NextToken",
    "NonlinearRegression",
    "PatternComposition",
    "Questions",
    "RealFacts",
    "ReferenceJSON",
    "RegimeDataModule",
    "RetrievalCopying",
    "Split",
    "Stream",
    "SyntheticKnowledge",
    "TableStream",
    "ThreeHopComposition",
    "TreePaths",
    "TwoHopComposition",
    "TwoTokenComposition",
    "concatenate",
    "write_reference_json",
]
