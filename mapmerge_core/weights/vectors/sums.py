"""Weighted sums of long rows, as fast as memory can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
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
ADDED = (torch.float64, torch.float32, *ROUNDED_TO)
"""Dtypes of models that can be added; in float64 if the base is of float64, and in float32 else."""


class Sums(NamedTuple):
    """Sums to make: base + Σ_n C[j, n] · rows[n] for each row j of ``out``, in float32 or float64.

    Attributes:
        base: The first summand (d,), float32 or float64.
        rows: N summands, N x d, of the same dtype or bfloat16.
        out: The sums, m x d, of the base's dtype, or rounded to bfloat16; each row contiguous, and apart from the
            others.
        dtype: What sums of float32 are rounded to first, one of `ROUNDED_TO`; the base holds such numbers.
        are_models: Whether rows are models, of which the difference from the base is added, if there is one. On a CPU
            alone; base and rows may be of any of `ADDED`, and rows are a sequence of N tensors then.
    """

    base: Tensor
    rows: Tensor | Sequence[Tensor]
    out: Tensor
    dtype: torch.dtype | None = None
    are_models: bool = False


def weighted_sums(base: Tensor, rows: Tensor, C: NDArray[np.float64], out: Tensor) -> None:
    """Make one of `Sums`; for several, `make_sums` takes less time."""
    make_sums([Sums(base, rows, out)], C)


def make_sums(wanted: Sequence[Sums], C: NDArray[np.float64]) -> None:
    """Write weighted sums; each element of a base or a row is read once for all sums of it.

    On a CPU every product is rounded before it is added, in the order of the rows, and rows with a coefficient of zero
    are left out: what an element comes to depends neither on its place, nor on the number of sums or threads, nor on
    the processor. Elsewhere they are matrix products.

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
    arrays = [_Arrays.of(sums) for sums in wanted]
    first, *others = _shares([len(sums.base) for sums in wanted], torch.get_num_threads())
    waiting = [_pool().submit(_make, arrays, C, share) for share in others]
    _make(arrays, C, first)
    for future in waiting:
        future.result()


def multiply(sums: Sums, C: NDArray[np.float64]) -> None:
    """Do as `make_sums` on any device, rounded as the device's matrix product rounds."""
    base, rows, out, dtype, _ = sums
    assert isinstance(rows, torch.Tensor)  # noqa: S101 - models are added on a CPU alone
    coefficients = torch.tensor(C, dtype=base.dtype, device=base.device)
    if rows.dtype == out.dtype == base.dtype and dtype is None:
        torch.addmm(base, coefficients, rows, out=out)
        return
    for start in range(0, len(base), _WIDENED):
        columns = slice(start, start + _WIDENED)
        total = torch.addmm(base[columns], coefficients, rows[:, columns].to(base.dtype))
        out[:, columns] = total.to(dtype or base.dtype)


class _Arrays(NamedTuple):
    """`Sums` as compiled code takes them: bfloat16 numbers by their bits, uint16, and float16 by int16."""

    base: NDArray
    rows: list[NDArray]
    out: NDArray
    dtype: torch.dtype | None
    are_models: bool

    @classmethod
    def of(cls, sums: Sums) -> _Arrays:
        rows = sums.rows
        arrays = list(_as_array(rows)) if isinstance(rows, torch.Tensor) else list(map(_as_array, rows))
        return cls(_as_array(sums.base), arrays, _as_array(sums.out), sums.dtype, sums.are_models)

    @property
    def computed_in(self) -> type[np.floating]:
        return np.float64 if self.base.dtype == np.float64 else np.float32

    def piece(self, columns: slice) -> _Arrays:
        """Return these elements of what is added."""
        return self._replace(base=self.base[columns], rows=[row[columns] for row in self.rows])


class _Stretch(NamedTuple):
    """Elements of a number of `Sums`, from ``first`` to ``last``."""

    number: int
    first: int
    last: int


def _as_array(tensor: Tensor) -> NDArray:
    bits = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}.get(tensor.dtype, tensor.dtype)
    array: NDArray = tensor.view(bits).numpy()
    return array


def _shares(sizes: Sequence[int], n_threads: int) -> Iterator[list[_Stretch]]:
    """Share out all elements of `Sums` of these sizes evenly among as many threads as are of use."""
    total = sum(sizes)
    n = max(1, min(n_threads, total // _WORTH_A_THREAD))
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    ends = [total * i // n // _ALIGNMENT * _ALIGNMENT for i in range(n)] + [total]
    for first, last in pairwise(ends):
        places = enumerate(zip(starts, sizes, strict=True))
        cut = [_Stretch(number, max(first - start, 0), min(last - start, size)) for number, (start, size) in places]
        yield [stretch for stretch in cut if stretch.first < stretch.last]


def _make(wanted: Sequence[_Arrays], C: NDArray[np.float64], share: Sequence[_Stretch]) -> None:
    # Sums that leave out different rows are made one after the other; that is rare.
    used = C != 0
    together = [slice(0, len(C))] if (used == used[:1]).all() else [slice(j, j + 1) for j in range(len(C))]
    for chosen in together:
        terms = np.flatnonzero(used[chosen][0])
        groups = [terms[start : start + _ROWS] for start in range(0, len(terms), _ROWS)]
        for number, first, last in share:
            sums = wanted[number]
            with np.errstate(over="ignore"):  # sums that come out as infinity are found by whoever needs them
                coefficients, out = C[chosen].astype(sums.computed_in), sums.out[chosen]
            if not groups:
                _copy(sums.base[first:last], out[:, first:last])
            if len(groups) > 1 and out.dtype != sums.computed_in:
                for row, c in zip(out, coefficients, strict=True):
                    _add_in_pieces(sums, row, c, groups, first, last)
                continue
            for i, group in enumerate(groups):
                to = sums.dtype if group is groups[-1] else None
                _add(sums, group, coefficients, None if i else sums.base, out, first, last, to)


def _copy(base: NDArray, out: NDArray) -> None:
    """Copy a base into sums that have no terms."""
    tensors = []
    for array in (base, out):
        narrow = {np.dtype(np.uint16): torch.bfloat16, np.dtype(np.int16): torch.float16}.get(array.dtype)
        tensor = torch.from_numpy(array)
        tensors.append(tensor if narrow is None else tensor.view(narrow))
    tensors[1].copy_(tensors[0])


def _add_in_pieces(
    sums: _Arrays, out: NDArray, c: NDArray, groups: Sequence[NDArray[np.intp]], first: int, last: int
) -> None:
    """Add up many rows and round the sum ``out`` (d,) once; ``c`` is (N,)."""
    memory = np.empty((1, _PIECE), sums.computed_in)
    *early, latest = groups
    for start in range(first, last, _PIECE):
        columns = slice(start, min(start + _PIECE, last))
        size, piece = columns.stop - start, sums.piece(columns)
        for i, group in enumerate(early):
            _add(piece, group, c[None], None if i else piece.base, memory, 0, size)
        _add(piece, latest, c[None], memory[0], out[None, columns], 0, size, sums.dtype)


def _add(
    sums: _Arrays,
    terms: NDArray[np.intp],
    C: NDArray,
    start: NDArray | None,
    out: NDArray,
    first: int,
    last: int,
    dtype: torch.dtype | None = None,
) -> None:
    """Add some rows to ``start`` (d,), or to what is in ``out`` (m x d), and round to ``dtype``."""
    from mapmerge_core.weights.vectors.compiled import BFLOAT16, FLOAT16, add_up

    coefficients, used = np.ascontiguousarray(C[:, terms]), tuple(sums.rows[n] for n in terms)
    to = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, None: None}[dtype]
    origin = sums.base if sums.are_models else None
    add_up(start, origin, used, coefficients, out, np.uint64(first), np.uint64(last), to)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads() - 1), thread_name_prefix="sum")
