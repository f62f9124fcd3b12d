"""What a number measured on a task means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A number with a direction and bounds.

    Attributes:
        name: Such as ``"accuracy"``.
        maximize: Whether more is better.
        low: Its least possible value, or ``-math.inf``.
        high: Its greatest possible value, or ``math.inf``.
    """

    name: str
    maximize: bool
    low: float = -math.inf
    high: float = math.inf

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest possible value."""
        return self.low, self.high

    @property
    def link(self) -> Literal["identity", "sigmoid", "softplus"]:
        """The surrogate's link that keeps predictions inside the bounds (MAP, Section 4.1)."""
        if math.isfinite(self.low):
            return "sigmoid" if math.isfinite(self.high) else "softplus"
        return "identity"


ACCURACY = Metric("accuracy", maximize=True, low=0.0, high=1.0)


@dataclass(frozen=True)
class Outcome:
    """One measurement of a merged model on one task.

    Attributes:
        value: The metric, a fraction for accuracy.
        n_examples: How many examples were measured.
        correct: 0 or 1 for each example in the split's order, packed by ``numpy.packbits``.
        seconds: Wall time.
    """

    value: float
    n_examples: int
    correct: bytes
    seconds: float
