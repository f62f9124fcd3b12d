"""Boxes in which spaces are searched: a box as it is, other spaces through their map from the unit cube."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core.errors import SearchError
from mapmerge_core.search.spaces import Box, Space, unit_sobol

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.surrogates.spaces import SpaceSurrogates, SurrogateStack

SAMPLE = 1024
"""Points of the Sobol sample that a search begins with."""


class Domain:
    """A box in which a space is searched: the space itself, if it is one.

    Args:
        surrogates: One for each objective, with their space.

    Attributes:
        low, high: The ends of the domain's n coordinates.
        stack: What predicts objectives, and their derivatives, at points of the domain.
    """

    def __init__(self, surrogates: SpaceSurrogates) -> None:
        self.space: Space = surrogates.space
        self.stack: SurrogateStack | _CubeStack = surrogates.stack
        self.low, self.high = np.zeros(self.space.n_free), np.ones(self.space.n_free)

    def points(self, U: Array) -> Array:
        """Return the points (`m x D`) of the space that points of the domain stand for."""
        return self.space.from_unit(U)

    def from_points(self, X: Array) -> Array:
        """Return points of the domain that stand for points of the space."""
        return self.space.to_unit(X)

    def candidates(self, seed: int) -> Array:
        """Return a Sobol sample, and the corners where they are not too many."""
        unit = self._sample(seed)
        if len(self.low) <= 8:
            unit = np.vstack([np.array(list(product((0.0, 1.0), repeat=len(self.low)))), unit])
        return np.asarray(self.low + (self.high - self.low) * unit)

    def _sample(self, seed: int) -> Array:
        return self.space.to_unit(self.space.sobol(SAMPLE, seed))

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


class _BoxDomain(Domain):
    """A box, searched as it is."""

    def __init__(self, surrogates: SpaceSurrogates, box: Box) -> None:
        super().__init__(surrogates)
        self.low, self.high = box.low, box.high

    def points(self, U: Array) -> Array:
        return U

    def from_points(self, X: Array) -> Array:
        return np.clip(X, self.low, self.high)

    def _sample(self, seed: int) -> Array:
        return unit_sobol(SAMPLE, len(self.low), seed)


class _CubeStack:
    """Surrogates as functions of the unit cube, by the chain rule."""

    def __init__(self, surrogates: SpaceSurrogates) -> None:
        self._space, self._stack = surrogates.space, surrogates.stack

    def predict(self, U: Array) -> Array:
        """Return the objectives (`m x K`) at `m x n` points of the cube."""
        return self._stack.predict(self._free(U))

    def predict_with_gradients(self, U: Array) -> tuple[Array, Array]:
        """Return the objectives and their derivatives (`m x K x n`)."""
        values, gradients = self._stack.predict_with_gradients(self._free(U))
        return values, gradients @ self._space.unit_jacobian(U)

    def _free(self, U: Array) -> Array:
        return self._space.free(self._space.from_unit(U))


def domain_of(surrogates: SpaceSurrogates) -> Domain:
    """Return the box in which the surrogates' space is searched."""
    if isinstance(surrogates.space, Box):
        return _BoxDomain(surrogates, surrogates.space)
    domain = Domain(surrogates)
    domain.stack = _CubeStack(surrogates)
    return domain


def best_sum(surrogates: SpaceSurrogates, weights: ArrayLike, start: ArrayLike) -> Array:
    """Return the local maximiser (D,) of Σ w_k M̃_k in a space, by L-BFGS-B.

    Args:
        surrogates: One for each of K objectives.
        weights: K weights, negative for objectives that go down.
        start: A point (D,) to set out from.
    """
    domain = domain_of(surrogates)
    first = domain.from_points(np.asarray(start, dtype=np.float64)[None])
    weight_row = np.asarray(weights, dtype=np.float64)[None]
    best = best_sums(domain.stack, weight_row, first, domain.low, domain.high)
    return np.asarray(surrogates.space.points(domain.points(best))[0])


def best_sums(stack: SurrogateStack | _CubeStack, weights: Array, starts: Array, low: Array, high: Array) -> Array:
    """Return what `best_sum` does for `m x K` weights and `m x n` starts, solved as one separable problem."""
    from scipy.optimize import minimize

    def loss(flat: Array) -> tuple[float, Array]:
        values, gradients = stack.predict_with_gradients(flat.reshape(starts.shape))
        return -float((weights * values).sum()), -np.einsum("mk,mkn->mn", weights, gradients).ravel()

    bounds = np.tile(np.column_stack([low, high]), (len(starts), 1))
    options = {"ftol": 1e-12}
    flat = minimize(loss, starts.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return np.asarray(np.clip(flat.reshape(starts.shape), low, high))
