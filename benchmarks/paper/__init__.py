"""The MAP paper's tables and figures, redone: ``python -m benchmarks.paper TABLE`` (see ../README.md)."""
