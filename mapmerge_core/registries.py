"""All registries: what can be extended by one object in one file, here or in another package (entry points)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.registry import Registry

if TYPE_CHECKING:
    from mapmerge_core.merges.base import Merge
    from mapmerge_core.methods.base import Method
    from mapmerge_core.search.links.base import Link
    from mapmerge_core.tasks.datasets.base import Reader
    from mapmerge_core.tasks.families.base import Family
    from mapmerge_core.tasks.metrics.base import Metric

MERGES: Registry[type[Merge]] = Registry("merge", "mapmerge_core.merges", "mapmerge.merges")
METHODS: Registry[type[Method]] = Registry("method", "mapmerge_core.methods", "mapmerge.methods")
METRICS: Registry[Metric] = Registry("metric", "mapmerge_core.tasks.metrics", "mapmerge.metrics")
FAMILIES: Registry[type[Family]] = Registry("family of models", "mapmerge_core.tasks.families", "mapmerge.families")
READERS: Registry[Reader] = Registry("dataset reader", "mapmerge_core.tasks.datasets", "mapmerge.readers")
LINKS: Registry[type[Link]] = Registry("link", "mapmerge_core.search.links", "mapmerge.links")
