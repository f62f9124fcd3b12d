"""The commands: each does what a page does, with the same store, and prints what came of it."""

from mapmerge_core.cli.choose import export, front, pick, studies
from mapmerge_core.cli.compare import compare
from mapmerge_core.cli.evaluate import demo, run

__all__ = ["compare", "demo", "export", "front", "pick", "run", "studies"]
