"""Pareto Merging's experiments: ``python -m benchmarks.paper pareto_EXPERIMENT`` (see ../README.md)."""
