"""Which preferences are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.search.spaces import Simplex

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array


def preference_grid(n_tasks: int) -> Array:
    """Return the paper's preferences over two or three tasks (Figures 3 and 4).

    Of two tasks 11, in the order of the first one's weight; of three the equal one, then a triangular lattice of 36.
    """
    if n_tasks == 2:
        steps = np.arange(11) / 10
        return np.column_stack([steps[::-1], steps])
    space = Simplex([f"task {n}" for n in range(n_tasks)])
    return np.vstack([space.default, space.grid(36)])


def priority(n_tasks: int, k: int, share: float = 0.5) -> Array:
    """Return the preference (K,) with ``share`` on task ``k``, the rest shared evenly by the others."""
    row = np.full(n_tasks, (1 - share) / (n_tasks - 1))
    row[k] = share
    return row
