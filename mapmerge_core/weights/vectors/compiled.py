"""The loop of a merge as machine code; importing this takes most of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

_BLOCK = np.uint64(4096)
"""Elements of each row that stay in a core's cache while several sums are made of them."""
BFLOAT16, FLOAT16 = np.uint16(0), np.int16(0)
"""What a sum is rounded to; the compiler sees which by their types."""
_SIGN, _INFINITY, _ONE = np.uint32(1 << 31), np.uint32(0x7F800000), np.uint32(1)
_NOT_A_NUMBER = np.uint32(0x7FC0)
_LARGEST, _LEAST_NORMAL = np.uint32(0x477FE000), np.uint32(0x38800000)
"""Of float16's positive numbers, as the bits of a float32: 65,504 and 2^-14."""
_TWO_TO_112, _LARGEST_EXPONENT = np.float32(2.0**112), np.uint32(0x0F800000)
_THREE_QUARTERS = np.float32(0.75)
"""Around it, float32's neighbours are as far apart as float16's least numbers: 2^-24."""


def _compiled(function: Callable) -> Any:  # noqa: ANN401 - the compiler's own kind of function
    """Compile at the first call; machine code is kept for other processes where a folder can be written."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to keep it
        return njit(nogil=True)(function)


def _number(element):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see below
    """What an element stands for: uint16 are the bits of a bfloat16, int16 those of a float16."""


@overload(_number)
def _number_of(element):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    if element == types.uint16:
        return lambda element: np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)

    def of_float16(element):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        bits = np.uint32(element) & np.uint32(0xFFFF)
        size = np.uint32(np.uint32(bits & np.uint32(0x7FFF)) << np.uint32(13))
        # The exponent is moved by a product, which is right for numbers below the least normal one, too.
        moved = np.float32(size.view(np.float32) * _TWO_TO_112).view(np.uint32)
        moved = moved if size < _LARGEST_EXPONENT else np.uint32(moved | _INFINITY)
        sign = np.uint32(np.uint32(bits & np.uint32(0x8000)) << np.uint32(16))
        return np.uint32(sign | moved).view(np.float32)

    if element == types.int16:
        return of_float16
    return lambda element: element


@njit
def _without(bits, n):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Round the last ``n`` bits of a number off, to the nearest that is left, of two the even one."""
    odd = np.uint32(np.uint32(bits >> n) & _ONE)
    almost_half = np.uint32(np.uint32(_ONE << np.uint32(n - _ONE)) - _ONE)
    return np.uint32(np.uint32(np.uint32(bits + almost_half) + odd) >> n)


@njit
def _upper(number):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The 16 bits of the nearest bfloat16."""
    bits = np.float32(number).view(np.uint32)
    is_number = np.uint32(bits & ~_SIGN) <= _INFINITY
    return np.uint16(_without(bits, np.uint32(16)) if is_number else _NOT_A_NUMBER)


def _rounded(number, to):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see below
    """The nearest float32 that a narrower dtype has: `BFLOAT16`, `FLOAT16`, or None for the number itself."""


@overload(_rounded)
def _rounded_of(number, to):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
    def bfloat16(number, to):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
        return _number(_upper(number))

    def float16(number, to):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
        bits = np.float32(number).view(np.uint32)
        sign, size = np.uint32(bits & _SIGN), np.uint32(bits & ~_SIGN)
        normal = np.uint32(_without(size, np.uint32(13)) << np.uint32(13))
        normal = _INFINITY if normal > _LARGEST else normal
        small = np.float32(np.float32(size.view(np.float32) + _THREE_QUARTERS) - _THREE_QUARTERS)
        nearest = small.view(np.uint32) if size < _LEAST_NORMAL else normal
        nearest = size if size > _INFINITY else nearest  # which is not a number
        return np.uint32(sign | nearest).view(np.float32)

    if to == types.uint16:
        return bfloat16
    if to == types.int16:
        return float16
    return lambda number, to: number  # noqa: ARG005


def _stored(number, like):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see below
    """A number as it is kept beside ``like``: as it is, or as the 16 bits of the nearest bfloat16."""


@overload(_stored)
def _stored_of(number, like):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
    if like == types.uint16:
        return lambda number, like: _upper(number)  # noqa: ARG005
    return lambda number, like: number  # noqa: ARG005


@_compiled
def _add(base, origin, rows, c, out, start, stop, to):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    # Unsigned indices can't count from an array's end, so that the loop needs no check and runs in vectors.
    for i in range(start, stop):
        total = out[i] if base is None else _number(base[i])
        for n in range(len(rows)):
            if origin is None:
                total = total + c[n] * _number(rows[n][i])
            else:
                difference = _number(rows[n][i]) - _number(origin[i])
                # What doesn't differ keeps its bits: -0 + 0 would be +0.
                total = total if difference == 0 else total + c[n] * difference
        out[i] = _stored(_rounded(total, to), out[i])


@_compiled
def add_up(base, origin, rows, C, out, first, last, to):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write base + Σ_n C[j, n] · (rows[n] − origin) into each row j of ``out``, from ``first`` to ``last``.

    Other threads can run meanwhile. Products are rounded before they are added.

    Args:
        base: The first summand (d,), or None for what is in ``out``.
        origin: What is subtracted from rows (d,), or None for nothing.
        rows: A tuple of N contiguous arrays (d,). As the others they are float32 or float64, or the bits of bfloat16
            (uint16) or float16 numbers (int16).
        C: Coefficients, m x N.
        out: The sums, m x d, contiguous rows; may not overlap the others. As base's dtype, or uint16 for sums that are
            rounded to bfloat16, for which ``base`` is needed.
        first: Where to begin, uint64.
        last: Where to end, uint64.
        to: What to round a sum of float32 to first: `BFLOAT16`, `FLOAT16`, or None for nothing.
    """
    start = first
    while start < last:
        stop = min(start + _BLOCK, last)
        for j in range(out.shape[0]):
            _add(base, origin, rows, C[j], out[j], start, stop, to)
        start = stop
