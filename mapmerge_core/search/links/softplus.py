"""The softplus: for metrics with one bound."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from mapmerge_core.errors import SearchError
from mapmerge_core.search.links.base import INSIDE, Array, Link, register


@register
class Softplus(Link):
    """l + log(1 + exp(z)), for metrics with one bound, such as losses; mirrored below an upper bound."""

    name = "softplus"
    bounds = (0.0, np.inf)
    n_bounds = 1

    def __post_init__(self) -> None:
        if not np.isfinite(self.low) and not np.isfinite(self.high):
            raise SearchError("A softplus link needs a finite bound, and this metric has none.")
        if np.isfinite(self.low):
            self.high = np.inf

    @property
    def _from_above(self) -> bool:
        return not np.isfinite(self.low)

    def value(self, z: Array) -> Array:
        if self._from_above:
            return np.asarray(self.high - np.logaddexp(0.0, -z))
        return np.asarray(self.low + np.logaddexp(0.0, z))

    def slope(self, z: Array) -> Array:
        return np.asarray(expit(-z if self._from_above else z))

    def inverse(self, y: Array) -> Array:
        distance = self.high - y if self._from_above else y - self.low
        distance = np.maximum(distance, max(INSIDE * float(distance.max(initial=0.0)), 1e-9))
        z = distance + np.log(-np.expm1(-distance))
        return np.asarray(-z if self._from_above else z)
