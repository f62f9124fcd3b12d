"""Designs: the points to evaluate before anything is known (MAP, Algorithm 1, line 3)."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.errors import SearchError
from mapmerge_core.search.spaces import Space, box_of
from mapmerge_core.settings import check_seed

Kind = Literal["uniform", "sobol", "grid"]

MOST_POINTS = 100_000
"""The largest design: each point is a model to evaluate, and more would only fill the memory."""


def make_design(
    kind: Kind,
    n_points: int,
    space: Space | int,
    *,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    anchors: bool = True,
) -> NDArray[np.float64]:
    """Return points spread over a space; the same seed gives the same design.

    The space's anchors (of coefficients the pre-trained and the single-task models) come first and count toward
    ``n_points``; they are there even where the space does not reach them.

    Args:
        kind: ``uniform`` (the paper's, Section 4.2), ``sobol`` (scrambled, more even), or ``grid`` (the
            largest full grid for which the whole design has at most ``n_points`` rows: it may have fewer).
        n_points: The budget: the most rows to return (exactly as many for ``uniform`` and ``sobol``).
        space: Where the points lie; a number N stands for the box [0, 1]^N of N task vectors.
        low: Another lower end of every coefficient.
        high: Another upper end.
        seed: Seed of ``uniform`` and ``sobol``. A longer design with the same seed starts with the shorter.
        anchors: Whether to start with the anchors.

    Returns:
        An `n_points x D` array without repeated rows.

    Raises:
        SearchError: The kind is unknown, the box is empty, or the budget is too small or above `MOST_POINTS`.
        SettingError: The seed can't be used.
    """
    if kind not in get_args(Kind):
        raise SearchError(f"There is no design called {kind!r}: choose one of {', '.join(get_args(Kind))}.")
    if isinstance(space, int):
        if space < 1:
            raise SearchError(f"A design needs at least one task vector, not {space}.")
        space = box_of(space)
    space = space.within(low, high)
    check_points(n_points)
    check_seed(seed)
    fixed = space.anchors if anchors else np.empty((0, space.n))
    n_others = n_points - len(fixed)
    if n_others < 0:
        raise SearchError(
            f"{n_points} points are too few: the {len(fixed)} anchors (the pre-trained and single-task models, or "
            "the corners) come first, so give at least as many or leave the anchors out."
        )
    if kind == "grid":
        return _grid(n_points, space, fixed)
    if kind == "uniform":
        return np.vstack([fixed, space.sample(n_others, np.random.default_rng(seed))])
    return np.vstack([fixed, space.sobol(n_others, seed)])


def check_points(n_points: int) -> None:
    """Make sure that a budget can be evaluated.

    Raises:
        SearchError: It is below 1, or above `MOST_POINTS`.
    """
    if n_points < 1:
        raise SearchError(f"A design needs at least one point, not {n_points}.")
    if n_points > MOST_POINTS:
        raise SearchError(f"{n_points} points are too many for one run: choose {MOST_POINTS} or fewer.")


def anchors_outside(space: Space) -> int:
    """Return how many anchors the space doesn't reach; surrogates aren't fitted to these."""
    return int((~space.contains(space.anchors)).sum())


def _grid(n_points: int, space: Space, fixed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the anchors, then the largest full grid that fits, without the rows that are anchors already."""
    most = n_points
    while len(grid := space.grid(most)):
        is_anchor = (grid[:, None, :] == fixed[None, :, :]).all(axis=2).any(axis=1)
        design = np.vstack([fixed, grid[~is_anchor]])
        if len(design) <= n_points:
            return design
        most = len(grid) - 1
    raise SearchError(
        f"{n_points} points are too few for a grid over {space.n} coefficients besides the anchors: give more or "
        "choose a Sobol design."
    )
