"""From a preference, weights over the objectives, to a row of the front (MAP, Section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core.errors import SearchError
from mapmerge_core.search.fronts import signs

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array

Scalarisation = Literal["weighted_sum", "tchebycheff"]

_ROUNDING = 1e-12
AUGMENTATION = 0.05
"""Share of the weighted sum added to the Tchebycheff distance, so that weakly dominated rows never win."""


def choose_by_preference(
    values: ArrayLike,
    weights: ArrayLike,
    *,
    maximize: Sequence[bool] | None = None,
    scale: ArrayLike | None = None,
    scalarisation: Scalarisation = "weighted_sum",
) -> int:
    """Return the row that suits a preference best.

    ``weighted_sum`` takes the highest Σ w_k v_k, with metrics that go down counted negatively.
    ``tchebycheff`` takes the smallest max_k w_k (ideal_k − v_k) + ``AUGMENTATION`` Σ w_k (ideal_k − v_k),
    where the ideal is each column's best: it reaches rows in the dents of a front, which no weighted sum does
    (Steuer and Choo, 1983). Of rows that tie, the one with the best unweighted sum wins, then the first.

    Args:
        values: ``m x K`` metrics.
        weights: K weights, none negative and not all zero; only their proportions count.
        maximize: For each metric, whether more is better; all by default.
        scale: K values (the single-task models') to divide the metrics by first.
        scalarisation: ``weighted_sum`` or ``tchebycheff``.

    Returns:
        The row's index.

    Raises:
        SearchError: No rows, weights or a scale that can't be used, or an unknown scalarisation.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise SearchError(f"There is no row to choose from: the metrics have shape {table.shape}.")
    if not np.isfinite(table).all():
        raise SearchError("Only finite metrics can be compared: there is a NaN or an infinity among them.")
    shares = normalise(weights, table.shape[1])
    directions = signs([True] * table.shape[1] if maximize is None else maximize)
    if directions.shape != shares.shape:
        raise SearchError(f"{len(shares)} metrics need as many directions, not {len(directions)}.")
    goodness = table * directions / _scale(scale, table.shape[1])
    if scalarisation not in get_args(Scalarisation):
        raise SearchError(f"There is no scalarisation called {scalarisation!r}: choose weighted_sum or tchebycheff.")
    if scalarisation == "weighted_sum":
        score = goodness @ shares
    else:
        regret = shares * (goodness.max(axis=0) - goodness)
        score = -(regret.max(axis=1) + AUGMENTATION * regret.sum(axis=1))
    ties = np.flatnonzero(score >= score.max() - 1e-12 * max(1.0, abs(float(score.max()))))
    return int(ties[np.argmax(goodness[ties].sum(axis=1))])


def normalise(weights: ArrayLike, n_metrics: int) -> Array:
    """Return weights as shares that sum to 1 (n_metrics,).

    Raises:
        SearchError: They are negative, not finite or all zero, or not as many as metrics.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (n_metrics,):
        raise SearchError(f"A preference over {n_metrics} objectives has as many weights, not shape {shares.shape}.")
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise SearchError("A preference's weights are numbers from zero up: one of them is negative or not finite.")
    if not shares.any():
        raise SearchError("Every weight is zero: give at least one objective a weight above zero.")
    total = shares.sum()
    # Dividing shares once more could change their last bits, and they are looked up by them.
    return np.array(shares) if abs(total - 1) < _ROUNDING else np.asarray(shares / total)


def _scale(scale: ArrayLike | None, n_metrics: int) -> Array:
    if scale is None:
        return np.ones(n_metrics)
    divisors = np.asarray(scale, dtype=np.float64)
    if divisors.shape != (n_metrics,) or not (np.isfinite(divisors) & (divisors > 0)).all():
        raise SearchError(
            f"Normalising needs {n_metrics} single-task metrics above zero: measure the single-task models "
            "first, or choose metrics as they are."
        )
    return divisors
