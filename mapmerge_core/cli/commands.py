"""The commands: each does what a page does, with the same store, and prints what came of it."""

from mapmerge_core.cli.choose import export, front, pick, studies
from mapmerge_core.cli.compare import compare
from mapmerge_core.cli.evaluate import demo, run
from mapmerge_core.cli.inspect import inspect
from mapmerge_core.cli.pareto import pareto_merge

__all__ = ["compare", "demo", "export", "front", "inspect", "pareto_merge", "pick", "run", "studies"]
