"""K surrogates on a space: fitted together, and predicted by matrix products for all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import SearchError
from mapmerge_core.search.surrogates.quadratic import PreparedPoints, QuadraticSurrogate, Surrogate, as_points
from mapmerge_core.search.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.spaces import Space
    from mapmerge_core.search.surrogates.fitting import LossName

    Links = Sequence[tuple[str, tuple[float, float] | None]]


class SpaceSurrogates:
    """One surrogate for each of K objectives, each a quadratic in the free coordinates of a space.

    Args:
        space: Where the points lie.
        surrogates: K fitted surrogates of its free coordinates.
    """

    def __init__(self, space: Space, surrogates: Sequence[Surrogate]) -> None:
        self.space, self.surrogates = space, tuple(surrogates)
        self.stack = SurrogateStack(self.surrogates)

    def __len__(self) -> int:
        return len(self.surrogates)

    def predict(self, X: ArrayLike) -> Array:
        """Return the objectives (`m x K`) at `m x D` points."""
        return self.stack.predict(self.space.free(X))

    def predict_interval(self, X: ArrayLike, level: float = 0.9) -> tuple[Array, Array]:
        """Return the ends (`m x K` each) between which measurements at `m x D` points fall with probability ``level``."""
        free = self.space.free(X)
        ends = [surrogate.predict_interval(free, level) for surrogate in self.surrogates]
        lower, upper = (np.column_stack(side) for side in zip(*ends, strict=True))
        return lower, upper

    @property
    def quadratics(self) -> tuple[QuadraticSurrogate, ...]:
        """Those that are quadratics: all that `fit_surrogates` made."""
        return tuple(s for s in self.surrogates if isinstance(s, QuadraticSurrogate))

    @property
    def r2(self) -> Array:
        """Each quadratic's leave-one-out R² (K,)."""
        return np.array([getattr(surrogate, "loo_r2_", np.nan) for surrogate in self.surrogates])


@one_thread()
def fit_surrogates(
    space: Space,
    X: ArrayLike,
    Y: ArrayLike,
    links: Links,
    loss: LossName = "squared",
    errors: ArrayLike | None = None,
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
    """K surrogates of N coefficients as one: matrix products for all at once if all are quadratic."""

    def __init__(self, surrogates: Sequence[Surrogate]) -> None:
        self._surrogates = surrogates
        self._n_vectors = surrogates[0].n_features_in_
        quadratics = [surrogate for surrogate in surrogates if isinstance(surrogate, QuadraticSurrogate)]
        self._are_quadratic = len(quadratics) == len(surrogates)
        if self._are_quadratic:
            self._constants = np.array([surrogate.e_ for surrogate in quadratics])
            self._vectors = np.array([surrogate.b_ for surrogate in quadratics])
            self._matrices = np.hstack([surrogate.A_ for surrogate in quadratics])
            links = [surrogate.link_ for surrogate in quadratics]
            self._links = [
                (link, [k for k, other in enumerate(links) if other == link]) for link in dict.fromkeys(links)
            ]

    def predict(self, C: ArrayLike) -> Array:
        """Metrics (``n x K``) at ``n x N`` coefficients.

        Raises:
            SearchError: C has another width than the points fitted, or is not finite.
        """
        if not self._are_quadratic:
            return np.column_stack([surrogate.predict(C) for surrogate in self._surrogates])
        return self._values(self._quadratic(as_points(C, self._n_vectors))[0])

    def predict_with_gradients(self, C: ArrayLike) -> tuple[Array, Array]:
        """Metrics (``n x K``) and their derivatives by the coefficients (``n x K x N``).

        Raises:
            SearchError: As :meth:`predict`.
        """
        if not self._are_quadratic:
            return self.predict(C), np.stack([s.gradient(C) for s in self._surrogates], axis=1)
        z, gradients = self._quadratic(as_points(C, self._n_vectors))
        return self._values(z), self._slopes(z)[:, :, None] * gradients

    def _quadratic(self, points: Array) -> tuple[Array, Array]:
        """The quadratic forms ``n x K`` and their derivatives ``n x K x N``."""
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
