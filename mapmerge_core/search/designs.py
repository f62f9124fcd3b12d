"""Designs: the coefficient vectors to evaluate before anything is known (MAP, Algorithm 1, line 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from scipy.stats import qmc

from mapmerge_core.errors import SearchError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["uniform", "sobol", "grid"]

MOST_POINTS = 100_000
"""The largest design: each point is a model to evaluate, and more would only fill the memory."""


def make_design(
    kind: Kind,
    n_points: int,
    n_vectors: int,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    anchors: bool = True,
) -> NDArray[np.float64]:
    """Coefficient vectors spread over the box [low, high]^N; the same seed gives the same design.

    The anchors are the pre-trained model (the origin) and the single-task models (the unit vectors), which
    every comparison needs. They come first, count toward ``n_points``, and are there even where the box
    does not reach them.

    Args:
        kind: ``uniform`` (the paper's, Section 4.2), ``sobol`` (scrambled, more even), or ``grid`` (the
            largest full grid for which the whole design has at most ``n_points`` rows: it may have fewer).
        n_points: The budget: the most rows to return (exactly as many for ``uniform`` and ``sobol``).
        n_vectors: N, the number of task vectors.
        low: Lower end of every coefficient.
        high: Upper end of every coefficient.
        seed: Seed of ``uniform`` and ``sobol``. A longer design with the same seed starts with the shorter.
        anchors: Whether to start with the origin and the unit vectors.

    Returns:
        A ``n_points x N`` float64 array without repeated rows.

    Raises:
        SearchError: The kind is unknown, the box is empty, the seed is negative, or the budget is too small
            or above ``MOST_POINTS``.
    """
    _check(kind, n_points, n_vectors, low, high, seed)
    fixed = _anchors(n_vectors) if anchors else np.empty((0, n_vectors))
    n_free = n_points - len(fixed)
    if n_free < 0:
        raise SearchError(
            f"{n_points} points are too few: the pre-trained and the {n_vectors} single-task models alone "
            f"take {len(fixed)}, so give at least as many or leave the anchors out."
        )
    if kind == "grid":
        return _grid(n_points, n_vectors, low, high, fixed)
    if kind == "uniform":
        unit = np.random.default_rng(seed).random((n_free, n_vectors))
    else:
        unit = sobol(n_free, n_vectors, seed)
    return np.vstack([fixed, low + (high - low) * unit])


def anchors_outside(n_vectors: int, low: float, high: float) -> int:
    """How many anchors the box [low, high]^N doesn't reach; surrogates aren't fitted to these."""
    corners = _anchors(n_vectors)
    return int(((corners < low) | (corners > high)).any(axis=1).sum())


def _anchors(n_vectors: int) -> NDArray[np.float64]:
    return np.vstack([np.zeros((1, n_vectors)), np.eye(n_vectors)])


def sobol(n_points: int, n_vectors: int, seed: int) -> NDArray[np.float64]:
    """The first ``n_points`` of a scrambled Sobol sequence, as a ``n_points x N`` array in [0, 1)."""
    exponent = max(0, int(np.ceil(np.log2(max(n_points, 1)))))
    sequence = qmc.Sobol(n_vectors, scramble=True, rng=np.random.default_rng(seed))
    return np.asarray(sequence.random_base2(exponent)[:n_points], dtype=np.float64)


def _grid(
    n_points: int, n_vectors: int, low: float, high: float, fixed: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Anchors, then the largest full grid that fits, without the rows that are anchors already."""
    for levels in range(int(n_points ** (1 / n_vectors)) + 1, 1, -1):
        if levels**n_vectors > n_points:  # the root was rounded up
            continue
        axes = np.meshgrid(*[np.linspace(low, high, levels)] * n_vectors, indexing="ij")
        grid = np.stack([axis.ravel() for axis in axes], axis=1)
        known = (grid[:, None, :] == fixed[None, :, :]).all(axis=2).any(axis=1)
        design = np.vstack([fixed, grid[~known]])
        if len(design) <= n_points:
            return design
    raise SearchError(
        f"{n_points} points are too few for a grid over {n_vectors} task vectors: two levels each "
        f"already take {2**n_vectors} points besides the anchors, so give more or choose a Sobol design."
    )


def _check(kind: str, n_points: int, n_vectors: int, low: float, high: float, seed: int) -> None:
    if kind not in get_args(Kind):
        raise SearchError(f"There is no design called {kind!r}: choose one of {', '.join(get_args(Kind))}.")
    if n_vectors < 1:
        raise SearchError(f"A design needs at least one task vector, not {n_vectors}.")
    if n_points < 1:
        raise SearchError(f"A design needs at least one point, not {n_points}.")
    if n_points > MOST_POINTS:
        raise SearchError(f"A design has at most {MOST_POINTS:,} points, not {n_points:,}.")
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise SearchError(f"The lowest coefficient must be below the highest, not {low:g} and {high:g}.")
    check_seed(seed)


def check_seed(seed: int) -> None:
    """Refuses what can't start a random generator.

    Raises:
        SearchError: The seed is negative.
    """
    if seed < 0:
        raise SearchError(f"A seed is a whole number from 0 up, not {seed}.")
