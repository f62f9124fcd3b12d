"""What a quadratic sees of points: its features, and how many parameters they have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True, eq=False)
class PreparedPoints:
    """Points that surrogates are fitted to, with everything that doesn't depend on a metric.

    Attributes:
        centre: Middle of the points' box (N,).
        half_width: Half its widths (N,), 1 where a coefficient never varies.
        features: The features (`n x p`) of the points relative to these, of full rank; the first column is constant.
        orthonormal: Q of features = QR, `n x p`.
        root: R, `p x p`, upper triangular.
    """

    centre: Array
    half_width: Array
    features: Array
    orthonormal: Array
    root: Array

    @classmethod
    def prepare(cls, C: ArrayLike) -> PreparedPoints:
        """Scale `n x N` points to [-1, 1] and factorise their features.

        Raises:
            SearchError: They are too few, not finite, or leave the quadratic undetermined.
        """
        points = as_points(C)
        n_points, n_vectors = points.shape
        needed = n_parameters(n_vectors)
        if n_vectors < 1 or n_points < needed:
            raise SearchError(
                f"A quadratic surrogate of {n_vectors} coefficients needs at least {needed} points, "
                f"and there are {n_points}: evaluate {needed - n_points} more."
            )
        low, high = points.min(axis=0), points.max(axis=0)
        centre, half_width = (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)
        features = quadratic_features((points - centre) / half_width)
        orthonormal, root = np.linalg.qr(features)
        # Features are of size one: what is smaller than 1e-8 of that is rounding.
        rank = int((np.linalg.svd(root, compute_uv=False) > 1e-8 * np.sqrt(n_points)).sum())
        if rank < needed:
            raise SearchError(
                f"These {n_points} points settle only {rank} of the {needed} parameters of a "
                f"quadratic in {n_vectors} coefficients: add points with at least three different values of "
                "every coefficient, in varied combinations."
            )
        return cls(centre, half_width, features, orthonormal, root)

    @cached_property
    def inverse_root(self) -> Array:
        """R⁻¹: least-squares weights have the covariance R⁻¹R⁻ᵀ times the variance of the errors."""
        return inverse_of_upper(self.root)

    @cached_property
    def leverage(self) -> Array:
        """The diagonal of the hat matrix QQᵀ (n,)."""
        return np.asarray((self.orthonormal**2).sum(axis=1))


def inverse_of_upper(root: Array) -> Array:
    """Return the inverse of an upper triangular matrix without a zero on its diagonal."""
    from scipy.linalg.lapack import dtrtri

    return np.asarray(dtrtri(root)[0])
