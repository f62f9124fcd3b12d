"""K surrogates on a space: fitted together, and predicted by matrix products for all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core.errors import SearchError
from mapmerge_core.search.spaces import Space, box_of
from mapmerge_core.search.surrogates.features import PreparedPoints, as_points
from mapmerge_core.search.threads import one_thread

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.surrogates.fitting import LossName
    from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate

    Links = Sequence[tuple[str, tuple[float, float] | None]]


class SpaceSurrogates:
    """One surrogate for each of K objectives, each a quadratic in the free coordinates of a space.

    Args:
        space: Where the points lie.
        surrogates: K fitted surrogates of its free coordinates.
    """

    def __init__(self, space: Space, surrogates: Sequence[QuadraticSurrogate]) -> None:
        self.space, self.surrogates = space, tuple(surrogates)
        self._constants = np.array([surrogate.e_ for surrogate in surrogates])
        self._vectors = np.array([surrogate.b_ for surrogate in surrogates])
        self._matrices = np.hstack([surrogate.A_ for surrogate in surrogates])
        links = [surrogate.link_ for surrogate in surrogates]
        self._links = [(link, [k for k, other in enumerate(links) if other == link]) for link in dict.fromkeys(links)]

    @classmethod
    def in_box(cls, surrogates: Sequence[QuadraticSurrogate], low: ArrayLike, high: ArrayLike) -> SpaceSurrogates:
        """Return surrogates of N coefficients each, with the box [low, high]^N.

        Raises:
            SearchError: There is no surrogate, they have different N, or the box is empty.
        """
        widths = {surrogate.n_features_in_ for surrogate in surrogates}
        if len(widths) != 1:
            raise SearchError("Fitted surrogates of the same coefficients are needed, at least one.")
        return cls(box_of(widths.pop(), low, high), surrogates)

    def __len__(self) -> int:
        return len(self.surrogates)

    def predict(self, X: ArrayLike) -> Array:
        """Return the objectives (`m x K`) at `m x D` points.

        Raises:
            SearchError: X has another width than the points fitted, or is not finite.
        """
        z, _ = self._quadratic(X)
        return self._linked("value", z)

    def predict_with_gradients(self, X: ArrayLike) -> tuple[Array, Array]:
        """Return the objectives and their derivatives by the free coordinates (`m x K x n_free`).

        Raises:
            SearchError: As for `predict`.
        """
        z, gradients = self._quadratic(X)
        return self._linked("value", z), self._linked("slope", z)[:, :, None] * gradients

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

    def _quadratic(self, X: ArrayLike) -> tuple[Array, Array]:
        """Return the quadratic forms (`m x K`) and their derivatives (`m x K x n_free`)."""
        points = as_points(self.space.free(X), self._vectors.shape[1])
        bends = (points @ self._matrices).reshape(len(points), *self._vectors.shape)
        z = self._constants + np.einsum("nkj,nj->nk", self._vectors + 0.5 * bends, points)
        return z, self._vectors + bends

    def _linked(self, function: Literal["value", "slope"], z: Array) -> Array:
        """Return a function of each objective's link at its own column of ``z``."""
        if len(self._links) == 1:
            return np.asarray(getattr(self._links[0][0], function)(z))
        values = np.empty_like(z)
        for link, columns in self._links:
            values[:, columns] = getattr(link, function)(z[:, columns])
        return values


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
    from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate  # takes scikit-learn

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
