"""Weighted sums of long rows, as fast as memory can be read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_ROWS = 8
"""Rows that one pass adds up: a loop over many more isn't compiled to vector instructions."""
_WORTH_A_THREAD = 1 << 16
_ALIGNMENT = 64


def weighted_sums(base: Tensor, rows: Tensor, C: NDArray[np.float64], out: Tensor) -> None:
    """Writes base + Σ_n C[j, n] · rows[n] into each row j of ``out``; each element is read once for all sums.

    On a CPU every product is rounded before it is added, in the order of the rows, and rows with a
    coefficient of zero are left out: what an element comes to depends neither on its place, nor on the number
    of sums or threads, nor on the processor. Elsewhere it is one matrix product.

    Args:
        base: The first summand (d,), float32 or float64.
        rows: N summands, N x d, of the same dtype.
        C: Coefficients, m x N; rounded to that dtype first.
        out: The sums, m x d, of that dtype; each row contiguous, and apart from the others.
    """
    if out.device.type != "cpu":
        torch.addmm(base, torch.tensor(C, dtype=base.dtype, device=base.device), rows, out=out)
        return
    size = len(base)
    n_threads = max(1, min(torch.get_num_threads(), size // _WORTH_A_THREAD))
    ends = [size * i // n_threads // _ALIGNMENT * _ALIGNMENT for i in range(n_threads)] + [size]
    first, *others = pairwise(ends)
    arrays = base.numpy(), rows.numpy(), C.astype(base.numpy().dtype), out.numpy()
    # Sums that leave out different rows are made one after the other; that is rare.
    used = C != 0
    together = [slice(0, len(C))] if (used == used[:1]).all() else [slice(j, j + 1) for j in range(len(C))]
    for some in together:
        waiting = [_pool().submit(_stretch, *arrays, some, *ends) for ends in others]
        _stretch(*arrays, some, *first)
        for each in waiting:
            each.result()


def _stretch(
    base: NDArray, rows: NDArray, C: NDArray, out: NDArray, sums: slice, first: int, last: int
) -> None:
    """Makes some sums, of the same rows, on a stretch of the elements."""
    from mapmerge_core.weights.compiled import add_up

    used = np.flatnonzero(C[sums][0])
    if not len(used):
        out[sums, first:last] = base[first:last]
    for start in range(0, len(used), _ROWS):
        terms = used[start : start + _ROWS]
        coefficients = np.ascontiguousarray(C[sums][:, terms])
        stretch = np.uint64(first), np.uint64(last)
        add_up(None if start else base, tuple(rows[n] for n in terms), coefficients, out[sums], *stretch)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads() - 1), thread_name_prefix="sum")
