"""Rows that stand for many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly(n_rows: int, n_wanted: int) -> NDArray[np.intp]:
    """Return the numbers of at most ``n_wanted`` rows, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, n_wanted)).round().astype(np.intp))
