"""Pareto Merging's experiments: ``python -m benchmarks.pareto_merging EXPERIMENT`` (see ../README.md)."""
