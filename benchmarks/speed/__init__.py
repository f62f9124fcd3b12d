"""How fast mapmerge is beside its peers and limits: ``python -m benchmarks.speed``."""
