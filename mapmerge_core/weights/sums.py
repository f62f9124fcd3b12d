"""Weighted sums of long rows, as fast as memory can be read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

_ROWS = 8
"""Rows that one pass adds up: a loop over many more isn't compiled to vector instructions."""
_WORTH_A_THREAD = 1 << 16
_ALIGNMENT = 64
_PIECE = 1 << 15
"""Elements whose sums so far stay in a CPU's cache until they are complete, and can be rounded."""
_WIDENED = 1 << 24
"""Elements of each bfloat16 row that a device other than a CPU holds in a wider dtype at a time."""


ROUNDED_TO = (torch.bfloat16, torch.float16)
"""Dtypes that sums of float32 can be rounded to as they are made."""


class Sums(NamedTuple):
    """Sums to make: base + Σ_n C[j, n] · rows[n] for each row j of ``out``.

    Attributes:
        base: The first summand (d,), float32 or float64.
        rows: N summands, N x d, of the same dtype or bfloat16.
        out: The sums, m x d, of the base's dtype, or rounded to bfloat16; each row contiguous, and apart from
            the others.
        dtype: What sums of float32 are rounded to first, one of `ROUNDED_TO`; the base holds such numbers.
    """

    base: Tensor
    rows: Tensor
    out: Tensor
    dtype: torch.dtype | None = None


def weighted_sums(base: Tensor, rows: Tensor, C: NDArray[np.float64], out: Tensor) -> None:
    """Makes one of the `Sums`; for several, `make_sums` takes less time."""
    make_sums([Sums(base, rows, out)], C)


def make_sums(wanted: Sequence[Sums], C: NDArray[np.float64]) -> None:
    """Writes weighted sums; each element of a base or a row is read once for all sums of it.

    On a CPU every product is rounded before it is added, in the order of the rows, and rows with a
    coefficient of zero are left out: what an element comes to depends neither on its place, nor on the number
    of sums or threads, nor on the processor. Elsewhere they are matrix products.

    Args:
        wanted: All on one device.
        C: Coefficients, m x N; rounded to a base's dtype first.
    """
    if not wanted:
        return
    if wanted[0].out.device.type != "cpu":
        for sums in wanted:
            multiply(sums, C)
        return
    arrays = [_Arrays(_as_array(s.base), _as_array(s.rows), _as_array(s.out), s.dtype) for s in wanted]
    first, *others = _shares([len(sums.base) for sums in wanted], torch.get_num_threads())
    waiting = [_pool().submit(_make, arrays, C, share) for share in others]
    _make(arrays, C, first)
    for each in waiting:
        each.result()


def multiply(sums: Sums, C: NDArray[np.float64]) -> None:
    """As `make_sums`, on any device, rounding as the device's matrix product does."""
    base, rows, out, dtype = sums
    coefficients = torch.tensor(C, dtype=base.dtype, device=base.device)
    if rows.dtype == out.dtype == base.dtype and dtype is None:
        torch.addmm(base, coefficients, rows, out=out)
        return
    for start in range(0, len(base), _WIDENED):
        some = slice(start, start + _WIDENED)
        found = torch.addmm(base[some], coefficients, rows[:, some].to(base.dtype))
        out[:, some] = found.to(dtype or base.dtype)


class _Arrays(NamedTuple):
    """`Sums` as compiled code takes them: bfloat16 numbers by their bits, uint16."""

    base: NDArray
    rows: NDArray
    out: NDArray
    dtype: torch.dtype | None


class _Stretch(NamedTuple):
    """Elements of a number of `Sums`, from ``first`` to ``last``."""

    number: int
    first: int
    last: int


def _as_array(tensor: Tensor) -> NDArray:
    array: NDArray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _shares(sizes: Sequence[int], n_threads: int) -> Iterator[list[_Stretch]]:
    """Shares out all elements of `Sums` of these sizes evenly among as many threads as are of use."""
    total = sum(sizes)
    n = max(1, min(n_threads, total // _WORTH_A_THREAD))
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    ends = [total * i // n // _ALIGNMENT * _ALIGNMENT for i in range(n)] + [total]
    for first, last in pairwise(ends):
        places = enumerate(zip(starts, sizes, strict=True))
        cut = [
            _Stretch(number, max(first - start, 0), min(last - start, size))
            for number, (start, size) in places
        ]
        yield [stretch for stretch in cut if stretch.first < stretch.last]


def _make(wanted: Sequence[_Arrays], C: NDArray[np.float64], share: Sequence[_Stretch]) -> None:
    # Sums that leave out different rows are made one after the other; that is rare.
    used = C != 0
    together = [slice(0, len(C))] if (used == used[:1]).all() else [slice(j, j + 1) for j in range(len(C))]
    for some in together:
        terms = np.flatnonzero(used[some][0])
        groups = [terms[start : start + _ROWS] for start in range(0, len(terms), _ROWS)]
        for number, first, last in share:
            base, rows, out, dtype = wanted[number]
            coefficients = C[some].astype(base.dtype)
            if not groups:
                _copy(base[first:last], out[some, first:last])
            if len(groups) > 1 and out.dtype != base.dtype:
                for row, c in zip(out[some], coefficients, strict=True):
                    _add_in_pieces(_Arrays(base, rows, row, dtype), c, groups, first, last)
                continue
            for i, group in enumerate(groups):
                to = dtype if group is groups[-1] else None
                _add(None if i else base, rows, group, coefficients, out[some], first, last, to)


def _copy(base: NDArray, out: NDArray) -> None:
    tensor = torch.from_numpy(base)
    out[:] = base if out.dtype == base.dtype else _as_array(tensor.to(torch.bfloat16))


def _add_in_pieces(
    sums: _Arrays, c: NDArray, groups: Sequence[NDArray[np.intp]], first: int, last: int
) -> None:
    """Adds up many rows and rounds the sum (d,) once; ``c`` is (N,)."""
    base, rows, out, dtype = sums
    memory = np.empty((1, _PIECE), base.dtype)
    *early, latest = groups
    for start in range(first, last, _PIECE):
        some = slice(start, min(start + _PIECE, last))
        size = some.stop - start
        for i, group in enumerate(early):
            _add(None if i else base[some], rows[:, some], group, c[None], memory, 0, size)
        _add(memory[0], rows[:, some], latest, c[None], out[None, some], 0, size, dtype)


def _add(
    base: NDArray | None,
    rows: NDArray,
    terms: NDArray[np.intp],
    C: NDArray,
    out: NDArray,
    first: int,
    last: int,
    dtype: torch.dtype | None = None,
) -> None:
    from mapmerge_core.weights.compiled import BFLOAT16, FLOAT16, add_up

    coefficients, used = np.ascontiguousarray(C[:, terms]), tuple(rows[n] for n in terms)
    to = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, None: None}[dtype]
    add_up(base, used, coefficients, out, np.uint64(first), np.uint64(last), to)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads() - 1), thread_name_prefix="sum")
