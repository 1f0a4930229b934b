"""Train small transformers on symbolic tasks until they grok, and see which circuit they built."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grok.loaded import LoadedRun, load_run

__all__ = ["LoadedRun", "load_run"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_run` when it is asked for: torch and Lightning take seconds to import, and `grok --help` needs neither."""
    if name in __all__:
        from grok import loaded

        return getattr(loaded, name)
    raise AttributeError(f"module 'grok' has no attribute {name!r}")
