"""Data regimes: what is asked."""

from grok.data.blocks import Block, Blocks
from grok.data.composition import TwoHopComposition
from grok.data.datamodule import Generated, RegimeDataModule
from grok.data.encoding import Encoding, FillIn, NextToken, Questions
from grok.data.exposure import FactExposure
from grok.data.facts import AtomicFacts
from grok.data.knowledge_graph import Hops, KnowledgeGraph
from grok.data.modular_arithmetic import ModularArithmetic
from grok.data.new_knowledge import NewKnowledge
from grok.data.reference_json import ReferenceJSON, write_reference_json
from grok.data.split import Split, concatenate
from grok.data.stream import Batch, FreshStream, Stream, TableStream

__all__ = [
    "AtomicFacts",
    "Batch",
    "Block",
    "Blocks",
    "Encoding",
    "FactExposure",
    "FillIn",
    "FreshStream",
    "Generated",
    "Hops",
    "KnowledgeGraph",
    "ModularArithmetic",
    "NewKnowledge",
    "NextToken",
    "Questions",
    "ReferenceJSON",
    "RegimeDataModule",
    "Split",
    "Stream",
    "TableStream",
    "TwoHopComposition",
    "concatenate",
    "write_reference_json",
]
