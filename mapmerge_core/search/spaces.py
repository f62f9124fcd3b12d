"""Spaces: where a merge's points lie, with names for their coordinates, and the one canonical form of a point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import product
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapmerge_core.errors import PointError, SearchError

if TYPE_CHECKING:
    Array = NDArray[np.float64]

TOLERANCE = 1e-12
"""By how much rounding may take a point out of its space."""
_SUM_TOLERANCE = 1e-9
"""Weights whose sum is as near to 1 are left as they are."""


class Space(ABC):
    """A set of points x, each a `D` array of numbers.

    A space is the image of the unit cube of its free dimensions under a smooth map, and has free coordinates,
    in which a surrogate is a quadratic. Both are the point itself unless a subclass says otherwise.

    Attributes:
        names: The D coordinates' names.
        n_free: The number of dimensions; a simplex has one fewer than coordinates.
        anchors: An `a x D` array of points that a design starts with.
        default: The point (D,) that stands for the merge where nothing was searched.
    """

    names: tuple[str, ...]
    n_free: int
    anchors: Array
    default: Array

    @property
    def n(self) -> int:
        """The number of coordinates, D."""
        return len(self.names)

    def point(self, x: ArrayLike) -> Array:
        """Return a point in the one form in which points are kept and compared: a read-only `D` array.

        Raises:
            PointError: It has another length, holds NaN or infinity, or lies in no such space.
        """
        row = np.asarray(x, dtype=np.float64)
        if row.shape != (self.n,):
            raise PointError(f"A point here has {self.n} coordinates ({self._listed()}), not shape {row.shape}.")
        canonical: Array = self.points(row[None])[0]
        return canonical

    def points(self, X: ArrayLike) -> Array:
        """Return `m x D` points in that form, read-only.

        Raises:
            PointError: As for `point`.
        """
        rows = np.asarray(X, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.n:
            raise PointError(f"Points here are rows of {self.n} coordinates ({self._listed()}), not {rows.shape}.")
        if not np.isfinite(rows).all():
            raise PointError("A point must be finite: there is a NaN or an infinity among its coordinates.")
        canonical = self._canonical(rows + 0.0)  # −0 becomes 0
        canonical.flags.writeable = False
        return canonical

    def _canonical(self, X: Array) -> Array:
        return X

    def _listed(self) -> str:
        shown = ", ".join(self.names[:8])
        return shown + (", ..." if len(self.names) > 8 else "")

    @abstractmethod
    def contains(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Return which of `m x D` points lie in the space, up to rounding, an `m` mask."""

    def free(self, X: ArrayLike) -> Array:
        """Return the free coordinates (`m x n_free`) of `m x D` points."""
        return np.asarray(X, dtype=np.float64)

    def from_unit(self, U: Array) -> Array:
        """Return the images (`m x D`) of `m x n_free` points of the unit cube."""
        return U

    def to_unit(self, X: Array) -> Array:
        """Return the `m x n_free` points whose images are ``X`` (`m x D`): in the unit cube where X is in the space."""
        return X

    def unit_jacobian(self, U: Array) -> Array:
        """Return the derivatives (`m x n_free x n_free`) of the FREE coordinates by those in the unit cube."""
        return np.broadcast_to(np.eye(self.n_free), (len(U), self.n_free, self.n_free))

    def spread(self, U: Array) -> Array:
        """Return `m x D` points spread over the space as evenly as ``U`` (`m x n_free`) over the unit cube."""
        return self.from_unit(U)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Return ``n`` points drawn uniformly, `n x D`; of a simplex by a Dirichlet distribution of ones."""
        return self.spread(rng.random((n, self.n_free)))

    def sobol(self, n: int, seed: int) -> Array:
        """Return the first ``n`` points of a scrambled Sobol sequence, `n x D`."""
        return self.spread(unit_sobol(n, self.n_free, seed))

    def latin(self, n: int, seed: int) -> Array:
        """Return a Latin hypercube of ``n`` points, `n x D`."""
        from scipy.stats import qmc  # heavy: it takes a second to import

        return self.spread(qmc.LatinHypercube(self.n_free, rng=np.random.default_rng(seed)).random(n))

    @abstractmethod
    def grid(self, most: int) -> Array:
        """Return the largest even grid of at most ``most`` points, `m x D`; no point where none fits."""

    def within(self, low: float | None, high: float | None) -> Space:
        """Return the space with other ends of its coefficients, None for those that it has.

        Raises:
            SearchError: It has none, or they are no ends.
        """
        if low is None and high is None:
            return self
        raise SearchError("The weights of a simplex have no lowest and highest coefficient: leave them out.")

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain values from which `space_from_dict` makes the same space."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.names))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.names)})"


class Box(Space):
    """Coefficients between a low and a high end each.

    Its anchors are the origin and the unit vectors: for task arithmetic the pre-trained model and the
    fine-tuned ones, which lie where they lie even where the box doesn't reach them.

    Args:
        names: The coordinates' names.
        low: Low ends, one number for all or a `D` array.
        high: High ends, likewise.
        default: The default point, likewise; the middle where nothing is given.

    Raises:
        SearchError: An end isn't finite, or not below the other.
    """

    def __init__(
        self, names: Sequence[str], low: ArrayLike = 0.0, high: ArrayLike = 1.0, default: ArrayLike | None = None
    ) -> None:
        self.names = tuple(names)
        n = self.n_free = len(self.names)
        try:
            self.low, self.high = (np.broadcast_to(np.asarray(end, np.float64), (n,)) + 0.0 for end in (low, high))
            middle = (self.low + self.high) / 2 if default is None else np.asarray(default, np.float64)
            self.default = np.broadcast_to(middle, (n,)) + 0.0
        except ValueError as error:
            raise SearchError(f"The box needs one number for all or each of {n} coefficients.") from error
        if n < 1:
            raise SearchError("A box has at least one coefficient: name it.")
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all() and (self.low < self.high).all()):
            raise SearchError(
                f"The lowest coefficient must be below the highest, not {_shown(self.low)} and {_shown(self.high)}."
            )
        if not np.isfinite(self.default).all():
            raise SearchError(f"The default of {self._listed()} must be finite.")
        self.anchors = np.vstack([np.zeros((1, n)), np.eye(n)])

    def contains(self, X: ArrayLike) -> NDArray[np.bool_]:
        rows = np.asarray(X, dtype=np.float64)
        return np.asarray(((rows >= self.low - TOLERANCE) & (rows <= self.high + TOLERANCE)).all(axis=1))

    def from_unit(self, U: Array) -> Array:
        # Rounding may end a hair above the high end.
        return np.minimum(self.low + (self.high - self.low) * U, self.high)

    def to_unit(self, X: Array) -> Array:
        return (X - self.low) / (self.high - self.low)

    def unit_jacobian(self, U: Array) -> Array:
        return np.broadcast_to(np.diag(self.high - self.low), (len(U), self.n, self.n))

    def grid(self, most: int) -> Array:
        for levels in range(int(most ** (1 / self.n)) + 1, 1, -1):
            if levels**self.n <= most:  # the root may have been rounded up
                axes = np.meshgrid(*np.linspace(self.low, self.high, levels).T, indexing="ij")
                return np.stack([axis.ravel() for axis in axes], axis=1)
        return np.empty((0, self.n))

    def within(self, low: float | None, high: float | None) -> Space:
        return Box(self.names, self.low if low is None else low, self.high if high is None else high, self.default)

    def to_dict(self) -> dict[str, Any]:
        ends = {"low": self.low.tolist(), "high": self.high.tolist(), "default": self.default.tolist()}
        return {"kind": "box", "names": list(self.names), **ends}


def box_of(n: int, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> Box:
    """Return the box [low, high] of coefficients called c1 to cn."""
    return Box([f"c{i + 1}" for i in range(n)], low, high)


class Simplex(Space):
    """Weights that are at least 0 and sum to 1.

    Its anchors are the vertices and the centroid. A quadratic in all but the last weight is a Scheffé
    polynomial of second degree in all of them (Scheffé, "Experiments with Mixtures", 1958): the last weight
    is 1 minus the others. Points are drawn from a Dirichlet distribution of ones, which is uniform.

    Args:
        names: The coordinates' names, at least two.
        default: The default point; the centroid where nothing is given.

    Raises:
        SearchError: There are fewer than two weights.
    """

    def __init__(self, names: Sequence[str], default: ArrayLike | None = None) -> None:
        self.names = tuple(names)
        n = len(self.names)
        if n < 2:
            raise SearchError("Weights that sum to 1 need at least two models: add another.")
        self.n_free = n - 1
        centroid = np.full(n, 1 / n)
        self.anchors = self.points(np.vstack([np.eye(n), centroid]))
        self.default = self.point(centroid if default is None else default)

    def _canonical(self, X: Array) -> Array:
        if (X < -TOLERANCE).any():
            raise PointError(
                f"A weight is negative: give weights of at least 0 for {self._listed()}, which are divided by "
                "their sum."
            )
        X = np.maximum(X, 0.0)
        if not X.any(axis=1).all():
            raise PointError(f"Every weight is zero: give one of {self._listed()} a weight above 0.")
        with np.errstate(over="ignore"):
            is_huge = ~np.isfinite(X.sum(axis=1))
        X[is_huge] /= X[is_huge].max(axis=1, keepdims=True, initial=0.0)
        sums = X.sum(axis=1)
        is_off = np.abs(sums - 1.0) > _SUM_TOLERANCE
        X[is_off] /= sums[is_off, None]
        return X

    def contains(self, X: ArrayLike) -> NDArray[np.bool_]:
        rows = np.asarray(X, dtype=np.float64)
        return np.asarray((rows >= -TOLERANCE).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= _SUM_TOLERANCE))

    def free(self, X: ArrayLike) -> Array:
        return np.asarray(X, dtype=np.float64)[:, :-1]

    def from_unit(self, U: Array) -> Array:
        """Break a stick: each coordinate takes its share of what those before it have left."""
        left = np.hstack([np.ones((len(U), 1)), np.cumprod(1.0 - U, axis=1)])
        return np.hstack([U * left[:, :-1], left[:, -1:]])

    def to_unit(self, X: Array) -> Array:
        left = np.cumsum(X[:, ::-1], axis=1)[:, ::-1][:, :-1]
        return np.clip(np.where(left > 0, X[:, :-1] / np.where(left > 0, left, 1.0), 0.0), 0.0, 1.0)

    def unit_jacobian(self, U: Array) -> Array:
        m, n = U.shape
        jacobian = np.zeros((m, n, n))
        for i in range(n):  # x_i = u_i Π_{j < i} (1 − u_j)
            factors = 1.0 - U[:, :i]
            jacobian[:, i, i] = factors.prod(axis=1)
            for j in range(i):
                jacobian[:, i, j] = -U[:, i] * np.delete(factors, j, axis=1).prod(axis=1)
        return jacobian

    def spread(self, U: Array) -> Array:
        """Map uniform points to uniform ones: of a stick that n more coordinates wait for, take 1 − (1 − u)^(1/n)."""
        waiting = np.arange(self.n_free, 0, -1)
        return self.from_unit(-np.expm1(np.log1p(-U) / waiting))

    def grid(self, most: int) -> Array:
        """Return Das and Dennis' lattice: all weights that are multiples of one over a whole number."""
        steps = 0
        while comb(steps + 1 + self.n_free, self.n_free) <= most:
            steps += 1
        if steps == 0:
            return np.empty((0, self.n))
        rows = [row for row in product(range(steps + 1), repeat=self.n_free) if sum(row) <= steps]
        free = np.array(rows, dtype=np.float64)
        return np.hstack([free, steps - free.sum(axis=1, keepdims=True)]) / steps

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "simplex", "names": list(self.names), "default": self.default.tolist()}


class Product(Space):
    """Points of several spaces, one after the other, such as a direction and a scale.

    Args:
        parts: Boxes and simplexes.

    Raises:
        SearchError: Two coordinates have one name.
    """

    def __init__(self, parts: Sequence[Space]) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise SearchError("A product of spaces has at least one: name it.")
        self.names = tuple(name for part in self.parts for name in part.names)
        if len(set(self.names)) < len(self.names):
            raise SearchError(f"Two coordinates of {', '.join(self.names)} have one name: rename one.")
        self.n_free = sum(part.n_free for part in self.parts)
        self.default = np.concatenate([part.default for part in self.parts])
        rows = []
        for i, part in enumerate(self.parts):
            for anchor in part.anchors:
                others = [other.default for other in self.parts]
                others[i] = anchor
                rows.append(np.concatenate(others))
        _, first = np.unique(np.array(rows), axis=0, return_index=True)
        self.anchors = np.array(rows)[np.sort(first)]

    def _by_part(self, rows: ArrayLike, *, free: bool = False) -> list[tuple[Space, Array]]:
        """Return each part with its columns of ``rows``: points, or one column for each free dimension."""
        sizes = [part.n_free if free else part.n for part in self.parts]
        columns = np.split(np.asarray(rows, dtype=np.float64), np.cumsum(sizes)[:-1], axis=1)
        return list(zip(self.parts, columns, strict=True))

    def _canonical(self, X: Array) -> Array:
        return np.hstack([part.points(rows) for part, rows in self._by_part(X)])

    def contains(self, X: ArrayLike) -> NDArray[np.bool_]:
        return np.asarray(np.all([part.contains(rows) for part, rows in self._by_part(X)], axis=0))

    def free(self, X: ArrayLike) -> Array:
        return np.hstack([part.free(rows) for part, rows in self._by_part(X)])

    def from_unit(self, U: Array) -> Array:
        return np.hstack([part.from_unit(rows) for part, rows in self._by_part(U, free=True)])

    def to_unit(self, X: Array) -> Array:
        return np.hstack([part.to_unit(rows) for part, rows in self._by_part(X)])

    def unit_jacobian(self, U: Array) -> Array:
        jacobian = np.zeros((len(U), self.n_free, self.n_free))
        start = 0
        for part, rows in self._by_part(U, free=True):
            own = slice(start, start + part.n_free)
            jacobian[:, own, own] = part.unit_jacobian(rows)
            start += part.n_free
        return jacobian

    def spread(self, U: Array) -> Array:
        return np.hstack([part.spread(rows) for part, rows in self._by_part(U, free=True)])

    def grid(self, most: int) -> Array:
        share = int(most ** (1 / len(self.parts)))
        share += (share + 1) ** len(self.parts) <= most  # the root may have been rounded down
        grids = [part.grid(share) for part in self.parts]
        return np.array([np.concatenate(rows) for rows in product(*grids)]).reshape(-1, self.n)

    def within(self, low: float | None, high: float | None) -> Space:
        if low is None and high is None:
            return self
        if not any(isinstance(part, Box) for part in self.parts):
            return super().within(low, high)
        return Product([part.within(low, high) if isinstance(part, Box) else part for part in self.parts])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "product", "parts": [part.to_dict() for part in self.parts]}


class SinglePoint(Space):
    """A space of one point without coordinates: there is nothing to choose."""

    def __init__(self) -> None:
        self.names, self.n_free = (), 0
        self.default, self.anchors = np.empty(0), np.empty((1, 0))

    def contains(self, X: ArrayLike) -> NDArray[np.bool_]:
        return np.ones(len(np.asarray(X)), dtype=bool)

    def grid(self, most: int) -> Array:
        return np.empty((min(most, 1), 0))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "point"}


def space_from_dict(values: Mapping[str, Any]) -> Space:
    """Return the space that ``to_dict`` described.

    Raises:
        SearchError: The values describe none.
    """
    kind = values.get("kind")
    try:
        if kind == "box":
            return Box(values["names"], values["low"], values["high"], values["default"])
        if kind == "simplex":
            return Simplex(values["names"], values["default"])
        if kind == "product":
            return Product([space_from_dict(part) for part in values["parts"]])
        if kind == "point":
            return SinglePoint()
    except (KeyError, TypeError, ValueError) as error:
        raise SearchError(f"These values describe no space ({error}).") from error
    raise SearchError(f"There is no kind of space '{kind}': use box, simplex, product or point.")


def unit_sobol(n_points: int, n_dimensions: int, seed: int) -> Array:
    """Return the first ``n_points`` of a scrambled Sobol sequence in [0, 1), `n_points x n_dimensions`."""
    from scipy.stats import qmc

    exponent = max(0, int(np.ceil(np.log2(max(n_points, 1)))))
    sequence = qmc.Sobol(n_dimensions, scramble=True, rng=np.random.default_rng(seed))
    return np.asarray(sequence.random_base2(exponent)[:n_points], dtype=np.float64)


def _shown(ends: Array) -> str:
    values = np.unique(ends)
    return f"{values[0]:g}" if len(values) == 1 else ", ".join(f"{end:g}" for end in ends)
