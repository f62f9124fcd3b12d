"""The Pareto front of the surrogates, by NSGA-III inside the sampled space (MAP, Algorithm 1, line 8)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapmerge_core.errors import SearchError
from mapmerge_core.search.domains import Domain
from mapmerge_core.search.spaces import unit_sobol
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates
from mapmerge_core.search.threads import one_thread
from mapmerge_core.settings import check_seed

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate

SIZE_OF_TWO, SIZE = 200, 400
"""The most rows of a front of two metrics, and of more."""
GENERATIONS = 20
"""Default number of NSGA-III generations: with the climb after them, more add next to nothing."""
CLIMBS = 20
"""Steps from where NSGA-III ends onto the front itself."""
BLOCK = 128
"""Rows compared with all others at a time: their comparisons fit a processor's cache."""
HULL_STEPS = 4
"""Exchanges for each metric when searching a direction along which all rise: enough for a millionth."""
SAME = 1e-4
"""Front points nearer than this, as a share of the metrics' spread over the box, are one point."""


@dataclass(frozen=True, eq=False)
class Front:
    """Points that no others dominate, sorted by the first objective, lowest first.

    Attributes:
        x: Points, `m x D`.
        predicted: The surrogates' objectives, `m x K`.
        lower: Lower ends of the objectives' 90 % prediction intervals, `m x K`.
        upper: Upper ends, `m x K`.
    """

    x: Array
    predicted: Array
    lower: Array
    upper: Array

    def __len__(self) -> int:
        return len(self.x)

    @property
    def is_single_point(self) -> bool:
        """Whether one model is best at everything, so that there is no trade-off to choose (Section 6)."""
        return len(self.x) == 1


@dataclass(frozen=True, eq=False)
class JointFront(Front):
    """The points of several merges that no point of any of them dominates, sorted by the first objective.

    Attributes:
        x: The m points, each an array of its own merge's length.
        keys: The merge that each of the m points belongs to.
    """

    x: tuple[Array, ...]  # type: ignore[assignment]
    keys: tuple[Any, ...]


def join_fronts(fronts: Iterable[tuple[Hashable, Front]], maximize: Sequence[bool]) -> JointFront:
    """Return the non-dominated points of the fronts of several merges.

    Args:
        fronts: A key for each merge, with its front; at least one.
        maximize: For each objective, whether more is better.
    """
    pairs = list(fronts)
    keys = [key for key, front in pairs for _ in range(len(front))]
    points = [point for _, front in pairs for point in front.x]
    predicted, lower, upper = (
        np.vstack([getattr(front, side) for _, front in pairs]) for side in ("predicted", "lower", "upper")
    )
    best = np.ones(len(points), dtype=bool) if len(pairs) == 1 else non_dominated(predicted, maximize)
    order = [i for i in np.lexsort(predicted.T[::-1]) if best[i]]
    return JointFront(
        tuple(points[i] for i in order), predicted[order], lower[order], upper[order], tuple(keys[i] for i in order)
    )


def non_dominated(values: ArrayLike, maximize: Sequence[bool]) -> NDArray[np.bool_]:
    """Return which rows no other row dominates, that is: is as good in every column and better in one.

    Args:
        values: `m x K` metrics. Equal rows do not dominate each other.
        maximize: For each column, whether more is better.

    Returns:
        A mask (m,).

    Raises:
        SearchError: A value is not finite, or the directions don't match the columns.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(maximize):
        raise SearchError(f"{len(maximize)} directions don't fit metrics of shape {table.shape}.")
    if not np.isfinite(table).all():
        raise SearchError("Only finite metrics can be compared: there is a NaN or an infinity among them.")
    goodness = table * signs(maximize)
    # A row can only be dominated by one that is lexicographically better, which comes first in this order.
    order = np.lexsort(-goodness.T[::-1])
    rows = goodness[order]
    is_new = np.ones(len(rows), dtype=bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    distinct = rows[is_new]
    kept, is_kept = distinct[:0], np.zeros(len(distinct), dtype=bool)
    for start in range(0, len(distinct), BLOCK):
        block = distinct[start : start + BLOCK]
        best = ~_is_matched(block, kept)
        best[best] = ~_is_matched(block[best], block[best], but_itself=True)
        is_kept[start : start + BLOCK] = best
        kept = np.vstack([kept, block[best]])
    mask = np.empty(len(rows), dtype=bool)
    mask[order] = is_kept[np.cumsum(is_new) - 1]
    return mask


@one_thread()
def find_front(
    surrogates: SpaceSurrogates | Sequence[QuadraticSurrogate],
    low: ArrayLike = 0.0,
    high: ArrayLike = 1.0,
    *,
    maximize: Sequence[bool] | None = None,
    seed: int = 0,
    generations: int = GENERATIONS,
    include: ArrayLike | None = None,
) -> Front:
    """Return the points of a space that no other dominates, as the surrogates see them.

    NSGA-III starts from the maximisers of every objective and of many weighted sums (L-BFGS-B), so that the ends
    and the bulges of the front are there from the beginning; every point it ever evaluates competes for the
    result. At most ``SIZE`` rows are kept (``SIZE_OF_TWO`` for two objectives): the best for each objective and
    each weighted sum, then always the one farthest from those kept.

    Args:
        surrogates: K fitted surrogates with their space; or K surrogates of the coefficients of a box.
        low: Lower end of that box, a number or one for each coefficient.
        high: Upper end.
        maximize: For each objective, whether more is better; all by default.
        seed: Same seed, same front.
        generations: NSGA-III generations; 0 leaves the maximisers and a Sobol sample.
        include: Further points (any number x D) that compete, such as those measured.

    Raises:
        SearchError: No surrogate, surrogates of different coefficients, an empty box, directions that don't
            match the objectives, or a point outside the space.
        SettingError: The seed can't be used.
    """
    if not isinstance(surrogates, SpaceSurrogates):
        surrogates = SpaceSurrogates.in_box(surrogates, low, high)
    check_seed(seed)
    n_objectives = len(surrogates)
    maximize = [True] * n_objectives if maximize is None else maximize
    if len(maximize) != n_objectives:
        raise SearchError(f"{n_objectives} surrogates need as many directions, not {len(maximize)}.")
    domain = Domain(surrogates)
    search = _Search(domain, signs(maximize))
    search.add(domain.candidates(seed))
    if include is not None:
        search.add(domain.inside(include))
    search.polish()
    if n_objectives > 1 and generations > 0:
        _nsga3(search, generations, seed)
    size = SIZE_OF_TWO if n_objectives == 2 else SIZE
    x = surrogates.space.points(domain.points(search.climb(search.best_spread(size))))
    predicted = surrogates.predict(x)
    order = np.lexsort(predicted.T[::-1])
    lower, upper = surrogates.predict_interval(x[order])
    return Front(x[order], predicted[order], lower, upper)


def signs(maximize: Sequence[bool]) -> Array:
    """Return +1 for metrics that go up and -1 for those that go down (K,): metrics times these are maximised."""
    return np.where(np.asarray(maximize, dtype=bool), 1.0, -1.0)


class _Search:
    """All points evaluated so far, with their goodness: metrics, turned so that more is better."""

    def __init__(self, domain: Domain, directions: Array) -> None:
        self.domain, self.directions = domain, directions
        self.box = domain.low, domain.high
        self._points: list[Array] = []
        self._goodness: list[Array] = []

    def add(self, points: Array) -> Array:
        """Evaluate and keep `m x n` points, and return their goodness (`m x K`)."""
        goodness = self.domain.predict(points) * self.directions
        self._points.append(points.copy())
        self._goodness.append(goodness)
        return goodness

    def polish(self) -> None:
        """Add the maximisers of weighted sums: each metric alone, all with equal weights, and some in between."""
        points, scaled, spread = self._known()
        weights, starts = [], []
        for row in _sums(len(spread)):
            n_starts = 1 if 1 < np.count_nonzero(row) < len(row) else 4
            ranked = np.argsort(-(scaled @ row), kind="stable")
            weights += [row / spread * self.directions] * n_starts
            starts.append(points[ranked[:n_starts]])
        self.add(self.domain.best_sums(np.array(weights), np.vstack(starts)))

    def best_spread(self, size: int) -> Array:
        """Return at most ``size`` non-dominated points: the best for each weighted sum, then the farthest."""
        points, scaled, spread = self._known()
        front = np.flatnonzero(non_dominated(scaled, [True] * len(spread)))
        return np.asarray(points[front[_farthest(scaled[front], size, _sums(len(spread)))]])

    def climb(self, points: Array) -> Array:
        """Move `m x n` points by steps that make no metric worse, onto the front itself, and return them.

        NSGA-III leaves a band around the front. The step is the shortest vector in the hull of the metrics'
        gradients, along which all of them rise (Désidéri, Multiple-gradient descent algorithm, 2012); its
        length grows while that succeeds and shrinks when it does not. Points that meet on the way, or that
        others dominate in the end, are left out.
        """
        low, width = self.box[0], self.box[1] - self.box[0]
        scale = self.directions / self._known()[2]

        def evaluate(unit: Array) -> tuple[Array, Array]:
            values, gradients = self.domain.predict_with_gradients(low + width * unit)
            return values * scale, gradients * (scale[:, None] * width)

        unit, length = (points - low) / width, np.full(len(points), 0.1)
        reached, slopes = evaluate(unit)
        step, moved = np.empty_like(unit), np.ones(len(unit), dtype=bool)
        for _ in range(CLIMBS):
            step[moved] = _ascent_in_box(slopes[moved], unit[moved])
            tried = np.clip(unit + length[:, None] * step, 0, 1)
            values, there = evaluate(tried)
            moved = np.asarray((values >= reached).all(axis=1))
            unit[moved], reached[moved], slopes[moved] = tried[moved], values[moved], there[moved]
            length *= np.where(moved, 1.5, 0.4)
        self.add(np.clip(low + width * unit, *self.box))
        known, scaled, spread = self._known()
        climbed, ours = known[-len(points) :], scaled[-len(points) :]
        # Rounding may leave a point a hair behind its own start: only what is clearly behind is left out.
        is_ahead = non_dominated(ours, [True] * len(spread)) & ~_is_matched(ours + 1e-9, scaled)
        front = np.flatnonzero(is_ahead)
        return np.asarray(climbed[front[_farthest(ours[front], len(points), _sums(len(spread)))]])

    def _known(self) -> tuple[Array, Array, Array]:
        """Return all points, their goodness as a share of each metric's range over them, and that range (K,)."""
        goodness = np.vstack(self._goodness)
        spread = np.ptp(goodness, axis=0)
        spread = np.where(spread > 1e-12, spread, 1.0)  # no less than a rounding error
        return np.vstack(self._points), (goodness - goodness.min(axis=0)) / spread, spread


@lru_cache(maxsize=32)
def reference_directions(n_metrics: int) -> Array:
    """Return NSGA-III's directions, about `100 x K`: Das and Dennis' simplex lattice, for K > 3 in two layers.

    The inner layer, one step coarser and shrunk by half, covers the inside: the lattice of many metrics lies on
    the simplex's border (Deb and Jain, NSGA-III, 2014, Section VI).
    """
    from pymoo.util.ref_dirs import get_reference_directions

    if n_metrics == 1:
        return np.ones((1, 1))
    steps = 1
    while comb(steps + n_metrics, n_metrics - 1) <= 120:
        steps += 1
    directions = get_reference_directions("das-dennis", n_metrics, n_partitions=min(steps, 99))
    if n_metrics > 3:
        inner = get_reference_directions("das-dennis", n_metrics, n_partitions=max(1, steps - 1))
        directions = np.vstack([directions, (inner + 1 / n_metrics) / 2])
    return np.asarray(directions, dtype=np.float64)


def _nsga3(search: _Search, generations: int, seed: int) -> None:
    """Run NSGA-III from the best points so far, and add all that it evaluates to ``search``."""
    from pymoo.algorithms.moo.nsga3 import NSGA3
    from pymoo.core.problem import Problem
    from pymoo.operators.selection.rnd import RandomSelection
    from pymoo.optimize import minimize as evolve

    n_metrics, n_vectors = len(search.directions), len(search.box[0])

    class Surrogates(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=n_vectors, n_obj=n_metrics, xl=search.box[0], xu=search.box[1])

        def _evaluate(self, x: Array, out: dict[str, Any], *_: object, **__: object) -> None:
            out["F"] = -search.add(x)

    directions = reference_directions(n_metrics)
    low, high = search.box
    first = np.vstack(
        [search.best_spread(len(directions)), low + (high - low) * unit_sobol(len(directions), n_vectors, seed)]
    )
    # Without constraints NSGA-III draws parents at random, which its tournament would do one by one.
    algorithm = NSGA3(
        directions, pop_size=len(directions), sampling=first[: len(directions)], selection=RandomSelection()
    )
    evolve(Surrogates(), algorithm, ("n_gen", generations), seed=seed, verbose=False)


def _ascent_in_box(slopes: Array, unit: Array) -> Array:
    """Return steps (`m x n`) along which all metrics rise and that don't leave the unit box.

    Args:
        slopes: Gradients, `m x K x n`.
        unit: Where the steps start, `m x n` in [0, 1].
    """
    step = _common_ascent(slopes)
    blocked = ((unit <= 0) & (step < 0)) | ((unit >= 1) & (step > 0))
    at_border = blocked.any(axis=1)
    step[at_border] = _common_ascent(slopes[at_border] * ~blocked[at_border, None, :])
    return step


def _common_ascent(slopes: Array) -> Array:
    """Return the shortest vectors (`m x n`) in the hulls of K gradients (`m x K x n`).

    From equal shares of all gradients, the one that helps most takes over from the one that helps least
    (Mitchell, Dem'yanov and Malozemov, Finding the point of a polyhedron closest to the origin, 1974).
    """
    gram = slopes @ slopes.transpose(0, 2, 1)
    n_metrics, rows = slopes.shape[1], np.arange(len(slopes))
    shares = np.full(slopes.shape[:2], 1 / n_metrics)
    products = gram.mean(axis=2)  # of the vector with each gradient
    for _ in range(HULL_STEPS * n_metrics):
        takes = np.argmin(products, axis=1)
        gives = np.argmax(np.where(shares > 0, products, -np.inf), axis=1)
        change = gram[rows, takes] - gram[rows, gives]
        gap = products[rows, gives] - products[rows, takes]
        curvature = np.maximum(change[rows, takes] - change[rows, gives], 1e-300)
        share = np.minimum(gap / curvature, shares[rows, gives])
        products += share[:, None] * change
        shares[rows, takes] += share
        shares[rows, gives] -= share
    return np.asarray(np.einsum("mk,mkn->mn", shares, slopes))


def _sums(n_metrics: int) -> Array:
    """Return weights of sums of metrics: each alone, all equal, and about two dozen in between."""
    directions = reference_directions(n_metrics)
    between = directions[(directions > 0).sum(axis=1) > 1]
    return np.vstack([np.eye(n_metrics), np.ones((1, n_metrics)), between[:: max(1, len(between) // 24)]])


def _farthest(values: Array, size: int, sums: Array) -> NDArray[np.intp]:
    """Return the indices of at most ``size`` rows: the best for every sum, then always the farthest from those taken.

    Rows nearer than ``SAME`` to one that is taken are left out.

    Args:
        values: `m x K` shares of the metrics' spread.
        size: The most rows.
        sums: Weights, one row a sum.
    """
    squares = (values**2).sum(axis=1)
    nearest = np.full(len(values), np.inf)  # squared distance to what is taken
    taken: list[int] = []

    def take(index: int) -> None:
        if nearest[index] > SAME**2:
            taken.append(index)
            distance = squares + squares[index] - 2 * (values @ values[index])
            distance[index] = 0.0
            np.minimum(nearest, distance, out=nearest)

    for index in np.argmax(values @ sums.T, axis=0)[:size]:
        take(int(index))
    while len(taken) < min(size, len(values)):
        farthest = int(np.argmax(nearest))
        if nearest[farthest] <= SAME**2:
            break
        take(farthest)
    return np.array(taken, dtype=np.intp)


def _is_matched(values: Array, others: Array, *, but_itself: bool = False) -> NDArray[np.bool_]:
    """Return which rows of ``values`` some row of ``others`` equals or exceeds in every metric, a mask (m,).

    Args:
        values: `m x K` metrics.
        others: `n x K` metrics.
        but_itself: Whether the two are the same rows, and none is compared with itself.
    """
    mask = np.zeros(len(values), dtype=bool)
    columns = np.ascontiguousarray(others.T)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK, :, None]
        as_good = columns[0] >= block[:, 0]
        for k in range(1, len(columns)):
            as_good &= columns[k] >= block[:, k]
        if but_itself:
            as_good[np.arange(len(block)), start + np.arange(len(block))] = False
        mask[start : start + BLOCK] = as_good.any(axis=1)
    return mask
