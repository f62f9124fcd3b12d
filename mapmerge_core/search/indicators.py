"""How good a front, a merged model or a surrogate is (MAP, Section 5.2, Table 3 and Appendix D).

Values are metrics as they are, ``m x K``, one row a model and one column a task. What compares fronts is
meant for measured metrics: a predicted front also measures how wrong its surrogates are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core.errors import SearchError
from mapmerge_core.search.fronts import signs
from mapmerge_core.search.preferences import normalise
from mapmerge_core.settings import check_seed

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array

MOST_SAMPLED = 100
"""The most points that a win rate samples from each front (Section 5.2)."""


def win_rate(ours: ArrayLike, theirs: ArrayLike, maximize: Sequence[bool], seed: int = 0) -> float:
    """Return how often a metric of one front is strictly better than that of another (Section 5.2).

    K = min(100, rows of theirs) rows are sampled from each front without replacement, and all K x K x N pairs
    of metrics compared. Should ours have fewer than K rows, all of them are taken as equally often as K
    allows. Ties are no wins, so a front against itself gets less than one half where metrics repeat, and
    (1 - 1/K)/2 where none do.

    Args:
        ours: ``m x N`` metrics.
        theirs: The baseline's ``n x N`` metrics.
        maximize: For each metric, whether more is better.
        seed: Same seed, same sample.

    Returns:
        A share, from 0 to 1.

    Raises:
        SearchError: A front is empty, or not finite, or has other columns than there are directions; or the
            seed is negative.
    """
    check_seed(seed)
    directions = signs(maximize)
    fronts = [_rows(front, len(directions)) * directions for front in (theirs, ours)]
    n_sampled = min(MOST_SAMPLED, len(fronts[0]))
    rng = np.random.default_rng(seed)
    theirs_sampled, ours_sampled = (front[np.resize(rng.permutation(len(front)), n_sampled)] for front in fronts)
    return float(np.mean(ours_sampled[:, None] > theirs_sampled[None]))


def hypervolume(values: ArrayLike, reference: ArrayLike, maximize: Sequence[bool]) -> float:
    """Return the volume between a reference point and what the rows dominate, by pymoo (Zitzler and Thiele, 1999).

    Only rows that are better than the reference in every metric contribute; with none, it is 0. The time
    grows steeply with K and the rows: for eight metrics, 25 rows take milliseconds and 200 many seconds.

    Args:
        values: ``m x K`` metrics.
        reference: The point (K,) that every good model beats, such as the pretrained model's metrics.
        maximize: For each metric, whether more is better.

    Returns:
        The volume, in the product of the metrics' units.

    Raises:
        SearchError: There are no rows, or rows, reference and directions don't fit each other, or aren't
            finite.
    """
    from pymoo.indicators.hv import HV

    directions = signs(maximize)
    table = _rows(values, len(directions))
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != directions.shape or not np.isfinite(corner).all():
        raise SearchError(
            f"A hypervolume's reference point is {len(directions)} finite metrics, not {corner.tolist()}."
        )
    better = (table * directions > corner * directions).all(axis=1)
    if not better.any():
        return 0.0
    return float(HV(ref_point=-corner * directions)(-table[better] * directions))


def generational_distance(values: ArrayLike, reference_front: ArrayLike, p: Literal[1, 2] = 2) -> float:
    """Return GD, how far a front's rows are from a reference front: (Σ d_i^p)^(1/p) / K (Appendix D).

    d_i is the Euclidean distance of the i-th of K rows to the nearest row of the reference. For p = 1 this is
    the mean distance and pymoo's GD, which computes it; pymoo has no p = 2, the paper's other p, whose value
    shrinks as 1/√K for a denser front of the same quality.

    Args:
        values: ``K x N`` metrics.
        reference_front: ``M x N`` metrics.
        p: 1 or 2.

    Raises:
        SearchError: A front is empty, not finite or of another width, or p is neither 1 nor 2.
    """
    from pymoo.indicators.gd import GD

    table, reference = _two_fronts(values, reference_front, p)
    return float(GD(reference)(table)) if p == 1 else _root_of_squares(table, reference)


def inverted_generational_distance(values: ArrayLike, reference_front: ArrayLike, p: Literal[1, 2] = 2) -> float:
    """Return IGD, how far a reference front's rows are from a front: (Σ d_i^p)^(1/p) / M (Appendix D).

    As `generational_distance`, the other way around: d_i is the distance of the i-th of M reference
    rows to the nearest row of ``values``, so that a front with a gap scores worse. pymoo's IGD for p = 1.
    """
    from pymoo.indicators.igd import IGD

    table, reference = _two_fronts(values, reference_front, p)
    return float(IGD(reference)(table)) if p == 1 else _root_of_squares(reference, table)


def sample_preferences(n_tasks: int, n: int = 20, seed: int = 0) -> Array:
    """Return `n x n_tasks` preferences: uniform numbers divided by their sum (Table 3).

    Raises:
        SearchError: No task, no preference, or a negative seed.
    """
    if n_tasks < 1 or n < 1:
        raise SearchError(f"Sample at least one preference over one task, not {n} over {n_tasks}.")
    check_seed(seed)
    # 1 - u is never 0, and as uniform as u.
    weights = 1 - np.random.default_rng(seed).uniform(size=(n, n_tasks))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def preference_sums(values: ArrayLike, preferences: ArrayLike, maximize: Sequence[bool]) -> Array:
    """Return preference-weighted sums of metrics (n,), those that go down counted negatively (Table 3).

    Args:
        values: The metrics (K,) of one model for every preference, or ``n x K``: those of the model that each
            preference chose.
        preferences: ``n x K`` weights; only the proportions within a row count.
        maximize: For each metric, whether more is better.

    Raises:
        SearchError: The shapes don't fit each other, a metric is not finite, or a preference has a negative
            weight or none that is positive.
    """
    directions = signs(maximize)
    weights = np.array([normalise(row, len(directions)) for row in _rows(preferences, len(directions))])
    table = _rows(np.atleast_2d(np.asarray(values, dtype=np.float64)), len(directions))
    if len(table) not in (1, len(weights)):
        raise SearchError(f"{len(weights)} preferences choose one model each, or all the same, not {len(table)}.")
    return np.asarray((weights * directions * table).sum(axis=1))


def preference_win_rate(sums: ArrayLike, baseline_sums: ArrayLike) -> tuple[float, float]:
    """Return the share of preferences whose sum is strictly above the baseline's, and its standard error (Table 3).

    The error is the binomial √(w(1 - w)/(n - 1)): the standard deviation of n wins and losses over √n. What
    the paper prints is neither this nor √(w(1 - w)/n), and differs for the same rate: beside 75 % of 20 it
    has 9.39 to 9.87, where these are 9.93 and 9.68. Estimates by bootstrap would scatter so.

    Args:
        sums: The weighted sums (n,), one for each preference.
        baseline_sums: The baseline's (n,), for the same preferences.

    Returns:
        Both as shares, from 0 to 1; the error of a single preference is NaN.

    Raises:
        SearchError: No sums, not as many of both, or one that is not finite.
    """
    ours, theirs = _pair(sums, baseline_sums)
    rate = float(np.mean(ours > theirs))
    n = len(ours)
    return rate, float(np.sqrt(rate * (1 - rate) / (n - 1))) if n > 1 else float("nan")


def r2(y: ArrayLike, predicted: ArrayLike) -> float:
    """Return the out-of-sample R²: 1 less the squared errors over those of y's own mean, by scikit-learn.

    Args:
        y: Metrics (n,) measured at points that the surrogate was not fitted to.
        predicted: What it predicts there (n,).

    Raises:
        SearchError: Fewer than two points, not as many of both, or one that is not finite.
    """
    from sklearn.metrics import r2_score

    measured, forecast = _pair(y, predicted)
    if len(measured) < 2:
        raise SearchError("An R² needs at least two points that the surrogate was not fitted to.")
    return float(r2_score(measured, forecast))


def _root_of_squares(rows: Array, others: Array) -> float:
    """Return the root of the summed squared distances to the nearest of ``others``, over the number of rows."""
    from scipy.spatial.distance import cdist

    return float(np.linalg.norm(cdist(rows, others).min(axis=1)) / len(rows))


def _rows(values: ArrayLike, n_columns: int) -> Array:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0 or table.shape[1] != n_columns:
        raise SearchError(f"Rows of {n_columns} columns are needed, at least one, not an array of shape {table.shape}.")
    if not np.isfinite(table).all():
        raise SearchError("Only finite metrics can be compared: there is a NaN or an infinity among them.")
    return table


def _two_fronts(values: ArrayLike, reference_front: ArrayLike, p: int) -> tuple[Array, Array]:
    if p not in (1, 2):
        raise SearchError(f"The distance between fronts has a power p of 1 or 2, not {p}.")
    width = np.shape(values)[-1] if np.ndim(values) == 2 else 0
    return _rows(values, width), _rows(reference_front, width)


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or len(one) == 0 or one.shape != other.shape:
        raise SearchError(
            f"Two lists of as many numbers are needed, not arrays of shapes {one.shape} and {other.shape}."
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise SearchError("Only finite numbers can be compared: there is a NaN or an infinity among them.")
    return one, other
