"""What a quadratic sees of points: its features, and how many parameters they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core.errors import SearchError

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array


def n_parameters(n_vectors: int) -> int:
    """Return (N + 1)(N + 2) / 2: the fewest points that determine a quadratic in N coefficients (footnote 3)."""
    return (n_vectors + 1) * (n_vectors + 2) // 2


def quadratic_features(C: Array) -> Array:
    """Return 1, c_i, and then ½ c_i² and c_i c_j by rows of the upper triangle: `n x (N + 1)(N + 2) / 2`."""
    rows, columns = np.triu_indices(C.shape[1])
    products = C[:, rows] * C[:, columns]
    products[:, rows == columns] *= 0.5
    return np.hstack([np.ones((len(C), 1)), C, products])


def as_points(C: ArrayLike, n_vectors: int | None = None) -> Array:
    """Return points as an `n x N` array.

    Raises:
        SearchError: They are of another shape, or not finite.
    """
    points = np.asarray(C, dtype=np.float64)
    if points.ndim != 2:
        raise SearchError(f"Coefficients are an n x N array, one row a point, not of shape {points.shape}.")
    if not np.isfinite(points).all():
        raise SearchError("Coefficients must be finite: there is a NaN or an infinity among them.")
    if n_vectors is not None and points.shape[1] != n_vectors:
        raise SearchError(
            f"The surrogate was fitted to {n_vectors} coefficients a point, and can't predict points of "
            f"shape {points.shape}."
        )
    return points
