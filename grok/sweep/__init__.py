"""Many runs from one file: planned once, worked off by any number of processes, collected into one table."""

from grok.sweep.plan import Line, Sweep, plan

__all__ = ["Line", "Sweep", "plan"]
