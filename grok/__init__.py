"""Train small transformers on symbolic tasks until they grok, and see which circuit they built."""

__version__ = "0.1.0"
