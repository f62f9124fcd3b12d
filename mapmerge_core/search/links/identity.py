"""The identity: the quadratic form itself."""

from __future__ import annotations

import numpy as np

from mapmerge_core.search.links.base import Array, Link, register


@register
class Identity(Link):
    """The quadratic itself, for metrics without bounds; ordinary least squares."""

    name = "identity"
    bounds = None
    n_bounds = 0
    is_linear = True

    def value(self, z: Array) -> Array:
        return z

    def slope(self, z: Array) -> Array:
        return np.ones_like(z)

    def inverse(self, y: Array) -> Array:
        return y

    def error_unit(self, y: Array) -> float:
        del y
        return 1.0
