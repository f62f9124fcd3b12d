"""K surrogates on a space: fitted together, and predicted by matrix products for all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core.errors import SearchError
from mapmerge_core.search.surrogates.features import as_points
from mapmerge_core.search.threads import one_thread

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.spaces import Space
    from mapmerge_core.search.surrogates.fitting import LossName
    from mapmerge_core.search.surrogates.quadratic import PreparedPoints, QuadraticSurrogate

    Links = Sequence[tuple[str, tuple[float, float] | None]]


class SpaceSurrogates:
    """One surrogate for each of K objectives, each a quadratic in the free coordinates of a space.

    Args:
        space: Where the points lie.
        surrogates: K fitted surrogates of its free coordinates.
    """

    def __init__(self, space: Space, surrogates: Sequence[QuadraticSurrogate]) -> None:
        self.space, self.surrogates = space, tuple(surrogates)
        self.stack = SurrogateStack(self.surrogates)

    def __len__(self) -> int:
        return len(self.surrogates)

    def predict(self, X: ArrayLike) -> Array:
        """Return the objectives (`m x K`) at `m x D` points."""
        return self.stack.predict(self.space.free(X))

    def predict_interval(self, X: ArrayLike, level: float = 0.9) -> tuple[Array, Array]:
        """Return the ends (`m x K` each) between which measurements at `m x D` points fall with this probability."""
        free = self.space.free(X)
        ends = [surrogate.predict_interval(free, level) for surrogate in self.surrogates]
        lower, upper = (np.column_stack(side) for side in zip(*ends, strict=True))
        return lower, upper

    @property
    def r2(self) -> Array:
        """Each surrogate's leave-one-out R² (K,)."""
        return np.array([surrogate.loo_r2_ for surrogate in self.surrogates])


@one_thread()
def fit_surrogates(
    space: Space, X: ArrayLike, Y: ArrayLike, links: Links, loss: LossName = "squared", errors: ArrayLike | None = None
) -> SpaceSurrogates:
    """Fit one surrogate for each of K objectives.

    Args:
        space: Where the points lie.
        X: `n x D` points.
        Y: `n x K` values, NaN where an objective hasn't been measured. Objectives that were measured at the
            same points share the work.
        links: Each objective's link and bounds.
        loss: What the fits minimise: "squared", "absolute" or "huber".
        errors: The values' standard errors (`n x K`), see `QuadraticSurrogate.fit`.

    Raises:
        SearchError: As for `QuadraticSurrogate.fit`.
    """
    from mapmerge_core.search.surrogates.quadratic import PreparedPoints, QuadraticSurrogate  # takes scikit-learn

    U, table = space.free(X), np.asarray(Y, dtype=np.float64)
    if table.shape != (len(U), len(links)):
        raise SearchError(f"{len(U)} points need values of shape ({len(U)}, {len(links)}), not {table.shape}.")
    noise = None if errors is None else np.asarray(errors, dtype=np.float64)
    prepared: dict[bytes, PreparedPoints] = {}
    surrogates = []
    for k, (link, bounds) in enumerate(links):
        rows = ~np.isnan(table[:, k])
        points = prepared.get(rows.tobytes())
        if points is None:
            points = prepared[rows.tobytes()] = PreparedPoints.prepare(U[rows])
        own = None if noise is None else noise[rows, k]
        surrogate = QuadraticSurrogate(link=link, bounds=bounds, loss=loss)
        surrogates.append(surrogate.fit_prepared(points, table[rows, k], own))
    return SpaceSurrogates(space, surrogates)


class SurrogateStack:
    """K quadratics in N coefficients as one: matrix products for all at once."""

    def __init__(self, surrogates: Sequence[QuadraticSurrogate]) -> None:
        self._n_vectors = surrogates[0].n_features_in_
        self._constants = np.array([surrogate.e_ for surrogate in surrogates])
        self._vectors = np.array([surrogate.b_ for surrogate in surrogates])
        self._matrices = np.hstack([surrogate.A_ for surrogate in surrogates])
        links = [surrogate.link_ for surrogate in surrogates]
        self._links = [(link, [k for k, other in enumerate(links) if other == link]) for link in dict.fromkeys(links)]

    def predict(self, C: ArrayLike) -> Array:
        """Return the metrics (`n x K`) at `n x N` coefficients.

        Raises:
            SearchError: C has another width than the points fitted, or is not finite.
        """
        return self._values(self._quadratic(as_points(C, self._n_vectors))[0])

    def predict_with_gradients(self, C: ArrayLike) -> tuple[Array, Array]:
        """Return the metrics (`n x K`) and their derivatives by the coefficients (`n x K x N`).

        Raises:
            SearchError: As for `predict`.
        """
        z, gradients = self._quadratic(as_points(C, self._n_vectors))
        return self._values(z), self._slopes(z)[:, :, None] * gradients

    def _quadratic(self, points: Array) -> tuple[Array, Array]:
        """Return the quadratic forms (`n x K`) and their derivatives (`n x K x N`)."""
        bends = (points @ self._matrices).reshape(len(points), *self._vectors.shape)
        z = self._constants + np.einsum("nkj,nj->nk", self._vectors + 0.5 * bends, points)
        return z, self._vectors + bends

    def _values(self, z: Array) -> Array:
        if len(self._links) == 1:
            return self._links[0][0].value(z)
        values = np.empty_like(z)
        for link, columns in self._links:
            values[:, columns] = link.value(z[:, columns])
        return values

    def _slopes(self, z: Array) -> Array:
        if len(self._links) == 1:
            return self._links[0][0].slope(z)
        slopes = np.empty_like(z)
        for link, columns in self._links:
            slopes[:, columns] = link.slope(z[:, columns])
        return slopes
