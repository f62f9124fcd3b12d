"""The loop of a merge as machine code; importing this takes most of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = np.uint64(4096)
"""Elements of each row that stay in a core's cache while several sums are made of them."""


def _compiled(function: Callable) -> Any:  # noqa: ANN401 - the compiler's own kind of function
    """Compiles at the first call; machine code is kept for other processes where a folder can be written."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to keep it
        return njit(nogil=True)(function)


@_compiled
def _add(base, rows, c, out, start, stop):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    # Unsigned indices can't count from an array's end, so that the loop needs no check and runs in vectors.
    for i in range(start, stop):
        total = out[i] if base is None else base[i]
        for n in range(len(rows)):
            total = total + c[n] * rows[n][i]
        out[i] = total


@_compiled
def add_up(base, rows, C, out, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Writes base + Σ_n C[j, n] · rows[n] into each row j of ``out``, from ``first`` to ``last``.

    Other threads can run meanwhile. Products are rounded before they are added.

    Args:
        base: The first summand (d,), or None for what is in ``out``.
        rows: A tuple of N contiguous arrays (d,), float32 or float64 as all the others.
        C: Coefficients, m x N.
        out: The sums, m x d, contiguous rows; may not overlap the others.
        first: Where to begin, uint64.
        last: Where to end, uint64.
    """
    start = first
    while start < last:
        stop = min(start + _BLOCK, last)
        for j in range(out.shape[0]):
            _add(base, rows, C[j], out[j], start, stop)
        start = stop
