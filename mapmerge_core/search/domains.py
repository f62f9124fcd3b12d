"""Boxes in which spaces are searched: a box as it is, another space through its map from the unit cube."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core.errors import SearchError
from mapmerge_core.search.spaces import Box, Space, unit_sobol

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.surrogates.spaces import SpaceSurrogates

SAMPLE = 1024
"""Points of the Sobol sample that a search begins with."""


class Domain:
    """Surrogates as functions on a box: on their space if it is one, else on the unit cube that is mapped onto it.

    Attributes:
        low, high: The ends of the box's n coordinates.
    """

    def __init__(self, surrogates: SpaceSurrogates) -> None:
        self.surrogates = surrogates
        self.space: Space = surrogates.space
        self.is_box = isinstance(self.space, Box)
        if isinstance(self.space, Box):
            self.low, self.high = self.space.low, self.space.high
        else:
            self.low, self.high = np.zeros(self.space.n_free), np.ones(self.space.n_free)

    def points(self, U: Array) -> Array:
        """Return the points (`m x D`) of the space that `m x n` points of the domain stand for."""
        return U if self.is_box else self.space.from_unit(U)

    def from_points(self, X: Array) -> Array:
        """Return points of the domain that stand for points of the space."""
        return np.clip(X, self.low, self.high) if self.is_box else self.space.to_unit(X)

    def candidates(self, seed: int) -> Array:
        """Return the corners where they are not too many, and a Sobol sample."""
        n = len(self.low)
        unit = unit_sobol(SAMPLE, n, seed) if self.is_box else self.space.to_unit(self.space.sobol(SAMPLE, seed))
        if n <= 8:
            unit = np.vstack([np.array(list(product((0.0, 1.0), repeat=n))), unit])
        return np.asarray(self.low + (self.high - self.low) * unit)

    def inside(self, include: ArrayLike) -> Array:
        """Return points of the space as points of the domain.

        Raises:
            SearchError: They have another width, or lie outside.
        """
        points = np.asarray(include, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.space.n:
            raise SearchError(f"Points to include have {self.space.n} coordinates each, not shape {points.shape}.")
        if not self.space.contains(points).all():
            raise SearchError(
                "Points to include must lie inside the sampled space: a surrogate says nothing outside it."
            )
        return self.from_points(points)

    def predict(self, U: Array) -> Array:
        """Return the objectives (`m x K`) at `m x n` points of the domain."""
        return self.surrogates.predict(self.points(U))

    def predict_with_gradients(self, U: Array) -> tuple[Array, Array]:
        """Return the objectives (`m x K`) and their derivatives (`m x K x n`) at `m x n` points of the domain."""
        values, gradients = self.surrogates.predict_with_gradients(self.points(U))
        return values, gradients if self.is_box else gradients @ self.space.unit_jacobian(U)

    def best_sums(self, weights: Array, starts: Array) -> Array:
        """Return what `best_sum` does for `m x K` weights and `m x n` starts, solved as one separable problem."""
        from scipy.optimize import minimize

        def loss(flat: Array) -> tuple[float, Array]:
            values, gradients = self.predict_with_gradients(flat.reshape(starts.shape))
            return -float((weights * values).sum()), -np.einsum("mk,mkn->mn", weights, gradients).ravel()

        bounds = np.tile(np.column_stack([self.low, self.high]), (len(starts), 1))
        options = {"ftol": 1e-12}
        flat = minimize(loss, starts.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        return np.asarray(np.clip(flat.reshape(starts.shape), self.low, self.high))


def best_sum(surrogates: SpaceSurrogates, weights: ArrayLike, start: ArrayLike) -> Array:
    """Return the local maximiser (D,) of Σ w_k M̃_k in a space, by L-BFGS-B.

    Args:
        surrogates: One for each of K objectives.
        weights: K weights, negative for objectives that go down.
        start: A point (D,) to set out from.
    """
    domain = Domain(surrogates)
    first = domain.from_points(np.asarray(start, dtype=np.float64)[None])
    best = domain.best_sums(np.asarray(weights, dtype=np.float64)[None], first)
    return np.asarray(surrogates.space.points(domain.points(best))[0])
