"""Links: what turns a quadratic form into a metric that stays inside its bounds (MAP, Section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mapmerge_core.errors import SearchError

Array = NDArray[np.float64]
LinkName = Literal["identity", "sigmoid", "softplus"]

INSIDE = 0.005
"""How far inside its bounds, as a share of its range, a saturated metric is moved before it is unlinked."""


@dataclass(frozen=True)
class Link:
    """One link with its bounds.

    Attributes:
        name: ``identity``: z itself; ``sigmoid``: l + (u - l) sigmoid(z); ``softplus``: l + log(1 + exp(z)),
            or where there is only an upper bound its mirror image, u - log(1 + exp(-z)).
        low: l, or minus infinity.
        high: u, or infinity.
    """

    name: LinkName
    low: float
    high: float

    def value(self, z: Array) -> Array:
        """The metric at the quadratic form's values ``z`` (any shape)."""
        if self.name == "sigmoid":
            return np.asarray(self.low + (self.high - self.low) * expit(z))
        if self.name == "softplus" and self._from_above:
            return np.asarray(self.high - np.logaddexp(0.0, -z))
        if self.name == "softplus":
            return np.asarray(self.low + np.logaddexp(0.0, z))
        return z

    def slope(self, z: Array) -> Array:
        """The derivative of :meth:`value` at ``z``."""
        if self.name == "sigmoid":
            return np.asarray((self.high - self.low) * expit(z) * expit(-z))
        if self.name == "softplus":
            return np.asarray(expit(-z if self._from_above else z))
        return np.ones_like(z)

    def inverse(self, y: Array) -> Array:
        """A finite ``z`` near the one that gives ``y``: values on a bound are first moved a little inside."""
        if self.name == "sigmoid":
            return np.asarray(logit(np.clip((y - self.low) / (self.high - self.low), INSIDE, 1 - INSIDE)))
        if self.name == "softplus":
            distance = self.high - y if self._from_above else y - self.low
            distance = np.maximum(distance, max(INSIDE * float(distance.max(initial=0.0)), 1e-9))
            z = distance + np.log(-np.expm1(-distance))
            return np.asarray(-z if self._from_above else z)
        return y

    @property
    def _from_above(self) -> bool:
        return not np.isfinite(self.low)


def make_link(name: LinkName, bounds: tuple[float, float] | None) -> Link:
    """The link called ``name``; ``bounds`` default to (0, 1) for a sigmoid and (0, inf) for a softplus.

    Raises:
        SearchError: The link is unknown, or needs finite bounds that ``bounds`` does not give.
    """
    low, high = bounds if bounds is not None else ((0.0, 1.0) if name == "sigmoid" else (0.0, np.inf))
    if name == "identity":
        return Link(name, -np.inf, np.inf)
    if name == "sigmoid":
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise SearchError(f"A sigmoid link needs two finite bounds in order, not {low:g} and {high:g}.")
        return Link(name, float(low), float(high))
    if name == "softplus":
        if not np.isfinite(low) and not np.isfinite(high):
            raise SearchError("A softplus link needs a finite bound, and this metric has none.")
        return Link(name, float(low), np.inf if np.isfinite(low) else float(high))
    raise SearchError(f"There is no link called {name!r}: choose identity, sigmoid or softplus.")
