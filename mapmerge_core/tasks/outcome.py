"""One measurement, and its examples as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Outcome:
    """One measurement of a merged model on one objective.

    Attributes:
        value: The metric, a fraction for accuracy.
        n_examples: How many examples were measured.
        per_example: One number for each example, see `pack`; in the split's order, or where only some were
            measured in that of `nested_order`.
        seconds: Wall time.
        n_total: How many examples the split has; None where all were measured.
        standard_error: Where all were measured how far the value may be from that on all data like these, for error
            bars; where some were, how far it may be from the whole split's. None where it isn't known.
    """

    value: float
    n_examples: int
    per_example: bytes
    seconds: float
    n_total: int | None = None
    standard_error: float | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether all examples of the split were measured."""
        return self.n_total is None


def pack(per_example: NDArray[Any]) -> bytes:
    """Return one number for each of n examples as bytes: right or wrong as bits, others as float32."""
    if per_example.dtype == np.bool_:
        return np.packbits(per_example).tobytes()
    return per_example.astype("<f4").tobytes()


def unpack(per_example: bytes, n_examples: int) -> NDArray[Any]:
    """Return what `pack` was given (n_examples)."""
    if len(per_example) == 4 * n_examples:
        return np.frombuffer(per_example, "<f4")
    return np.unpackbits(np.frombuffer(per_example, np.uint8), count=n_examples).astype(bool)
