"""The sigmoid: for metrics between two bounds."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from mapmerge_core.errors import SearchError
from mapmerge_core.search.links.base import INSIDE, Array, Link, register


@register
class Sigmoid(Link):
    """l + (u - l) sigmoid(z), for metrics between two bounds, such as accuracies."""

    name = "sigmoid"
    bounds = (0.0, 1.0)
    n_bounds = 2

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise SearchError(f"A sigmoid link needs two finite bounds in order, not {self.low:g} and {self.high:g}.")

    def value(self, z: Array) -> Array:
        return np.asarray(self.low + (self.high - self.low) * expit(z))

    def slope(self, z: Array) -> Array:
        return np.asarray((self.high - self.low) * expit(z) * expit(-z))

    def inverse(self, y: Array) -> Array:
        return np.asarray(logit(np.clip((y - self.low) / (self.high - self.low), INSIDE, 1 - INSIDE)))

    def error_unit(self, y: Array) -> float:
        del y
        return self.high - self.low
