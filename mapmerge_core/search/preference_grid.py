"""Which preferences of a learned set to measure, and metrics between those that were measured."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import RBFInterpolator

from mapmerge_core.errors import SearchError
from mapmerge_core.search.designs import check_seed
from mapmerge_core.search.preferences import normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from mapmerge_core.search.links import Array

# Of the absolute errors of left-out preferences, the quantile that intervals reach to.
_LEVEL = 0.9


def default_grid(n_tasks: int) -> int:
    """How many preferences to measure for K tasks: 11 for two, 36 and the equal one for three, 30 for more.

    The paper's numbers (Pareto Merging, Figures 3 to 5).
    """
    return {2: 11, 3: 37}.get(n_tasks, 30)


def preference_grid(n_tasks: int, n: int | None = None, seed: int = 0) -> Array:
    """Preferences that cover the simplex (``n x K``), each summing to 1, no two alike.

    The equal preference is always there. Two tasks: n evenly spaced ones, or n - 1 where n is even, all in
    the order of the first task's weight. Three: the equal one, and the largest triangular lattice that n
    allows. More: the equal one, half of the weight on each task in turn, and all of it. What is left of n is
    drawn uniformly from the simplex.

    Args:
        n_tasks: K, two or more.
        n: How many; `default_grid` if None.
        seed: Of what is drawn.

    Raises:
        SearchError: There is less than one preference, fewer than two tasks, or a negative seed.
    """
    check_seed(seed)
    n = default_grid(n_tasks) if n is None else n
    if n < 1 or n_tasks < 2:
        raise SearchError(f"Choose one preference or more over two tasks or more, not {n} over {n_tasks}.")
    equal = np.full((1, n_tasks), 1 / n_tasks)
    if n_tasks == 2:
        rows = _without(_line(n - 1 + n % 2), equal)
    elif n_tasks == 3:
        rows = _without(_lattice(n - 1), equal)
    else:
        priorities = [priority(n_tasks, k) for k in range(n_tasks)]
        rows = np.vstack([priorities, np.eye(n_tasks)])
    rows = np.vstack([equal, rows])[:n]
    drawn = np.random.default_rng(seed).dirichlet(np.ones(n_tasks), n - len(rows))
    grid = np.vstack([rows, drawn])
    return grid[np.argsort(-grid[:, 0], kind="stable")] if n_tasks == 2 else grid


def priority(n_tasks: int, k: int, share: float = 0.5) -> Array:
    """The preference (K,) with ``share`` on task ``k``, the rest shared evenly by the others."""
    row = np.full(n_tasks, (1 - share) / (n_tasks - 1))
    row[k] = share
    return row


def _line(n: int) -> Array:
    """``n`` evenly spaced preferences over two tasks, from all on the first to all on the second."""
    if n == 1:
        return np.full((1, 2), 0.5)
    steps = np.arange(n) / (n - 1)  # 0.1 to the last bit, as a person's shares are
    return np.column_stack([steps[::-1], steps])


def _lattice(most: int) -> Array:
    """The triangular lattice over three tasks with the most rows that aren't more than ``most``."""
    divisions = 0
    while (divisions + 2) * (divisions + 3) // 2 <= most:
        divisions += 1
    if not divisions:
        return np.empty((0, 3))
    rows = [
        (divisions - i - j, j, i) for i, j in product(range(divisions + 1), repeat=2) if i + j <= divisions
    ]
    return np.array(rows) / divisions


def _without(rows: Array, row: Array) -> Array:
    return rows[~np.isclose(rows, row).all(axis=1)]


class PreferenceInterpolator:
    """Metrics for any preference from those that were measured for some.

    SciPy's radial basis functions with a linear kernel: exact where something was measured, and without the
    swings of smoother kernels between.

    Args:
        gammas: Measured preferences, ``m x K``, no two alike.
        values: Their metrics, ``m x T``.
        bounds: What each metric can be at least and at most (T pairs).

    Attributes:
        error: For each metric (T,) how far the interpolation from all others misses nine in ten of the
            measured preferences; NaN where fewer than three were measured.

    Raises:
        SearchError: Nothing was measured, or a number is missing.
    """

    def __init__(self, gammas: ArrayLike, values: ArrayLike, bounds: Sequence[tuple[float, float]]) -> None:
        self._gammas = np.asarray(gammas, dtype=np.float64)
        self._values = np.asarray(values, dtype=np.float64)
        if self._gammas.ndim != 2 or not len(self._gammas) or len(self._values) != len(self._gammas):
            raise SearchError("Nothing to interpolate between: measure one preference or more.")
        if not (np.isfinite(self._gammas).all() and np.isfinite(self._values).all()):
            raise SearchError("Only finite metrics can be interpolated: there is a NaN or an infinity.")
        self._low, self._high = np.array(bounds, dtype=np.float64).T
        self._between = _interpolation(self._gammas, self._values)
        self.error = self._left_out()

    def predict(self, gamma: ArrayLike) -> Array:
        """Metrics (T,) for a preference (K,), of which only the proportions count.

        Raises:
            SearchError: It is no preference.
        """
        point = normalise(gamma, self._gammas.shape[1])
        rows = self._measured(point)
        if len(rows):
            return np.asarray(self._values[rows[0]])
        return np.asarray(np.clip(self._between(point[None])[0], self._low, self._high))

    def interval(self, gamma: ArrayLike) -> tuple[Array, Array]:
        """The ends (T,) of where the metrics for a preference lie: at a measured one, its own values.

        Raises:
            SearchError: It is no preference.
        """
        values = self.predict(gamma)
        if self.is_measured(gamma):
            return values, values
        return (
            np.clip(values - self.error, self._low, self._high),
            np.clip(values + self.error, self._low, self._high),
        )

    def is_measured(self, gamma: ArrayLike) -> bool:
        """Whether the preference is one of those that were measured.

        Raises:
            SearchError: It is no preference.
        """
        return len(self._measured(normalise(gamma, self._gammas.shape[1]))) > 0

    def _measured(self, point: Array) -> NDArray[np.intp]:
        return np.flatnonzero(np.abs(self._gammas - point).max(axis=1) < 1e-9)

    def _left_out(self) -> Array:
        m = len(self._gammas)
        if m < 3:
            return np.full(self._values.shape[1], np.nan)
        misses = []
        for i in range(m):
            others = np.arange(m) != i
            predicted = _interpolation(self._gammas[others], self._values[others])(self._gammas[[i]])
            misses.append(np.abs(np.clip(predicted[0], self._low, self._high) - self._values[i]))
        return np.asarray(np.quantile(misses, _LEVEL, axis=0))


def _interpolation(gammas: Array, values: Array) -> RBFInterpolator:
    # In all K weights, though the last follows from the others: so no order of the tasks is preferred.
    return RBFInterpolator(gammas, values, kernel="linear", degree=0)
