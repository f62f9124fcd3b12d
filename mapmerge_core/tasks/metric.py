"""What a number measured on a task means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mapmerge_core.errors import MapMergeError

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    def link(self) -> Literal["identity", "softplus", "sigmoid"]:
        """The surrogate's link that keeps predictions inside the bounds (MAP, Section 4.1)."""
        n_bounds = math.isfinite(self.low) + math.isfinite(self.high)
        return ("identity", "softplus", "sigmoid")[n_bounds]

    @property
    def is_share(self) -> bool:
        """Whether it lies in [0, 1] and is therefore shown in percent."""
        return self.low == 0.0 and self.high == 1.0

    @property
    def of_right_answers(self) -> bool:
        """Whether it is the share of examples that are right, whose error is binomial."""
        return self.name in (ACCURACY.name, TOP5_ACCURACY.name)

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean over examples, so that some of them estimate that of all."""
        return self.of_right_answers or self.name == LOSS.name


ACCURACY = Metric("accuracy", maximize=True, low=0.0, high=1.0)
TOP5_ACCURACY = Metric("top-5 accuracy", maximize=True, low=0.0, high=1.0)
MEAN_CLASS_ACCURACY = Metric("mean per-class accuracy", maximize=True, low=0.0, high=1.0)
F1 = Metric("F1", maximize=True, low=0.0, high=1.0)
LOSS = Metric("loss", maximize=False, low=0.0)
PERPLEXITY = Metric("perplexity", maximize=False, low=1.0)

METRICS = {
    metric.name: metric for metric in (ACCURACY, TOP5_ACCURACY, MEAN_CLASS_ACCURACY, F1, LOSS, PERPLEXITY)
}


def find_metric(name: str) -> Metric:
    """The metric with this name.

    Raises:
        MapMergeError: There is none.
    """
    if name not in METRICS:
        raise MapMergeError(f"There is no metric '{name}': choose one of {', '.join(METRICS)}.")
    return METRICS[name]


@dataclass(frozen=True)
class Outcome:
    """One measurement of a merged model on one task.

    Attributes:
        value: The metric, a fraction for accuracy.
        n_examples: How many examples were measured.
        per_example: One number for each example, see `pack`; in the split's order, or where only some were
            measured in that of `nested_order`.
        seconds: Wall time.
        n_total: How many examples the split has; None where all were measured.
    """

    value: float
    n_examples: int
    per_example: bytes
    seconds: float
    n_total: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all examples of the split were measured."""
        return self.n_total is None


def pack(per_example: NDArray[Any]) -> bytes:
    """One number for each example (n) as bytes: right or wrong as bits, losses as little-endian float32."""
    if per_example.dtype == np.bool_:
        return np.packbits(per_example).tobytes()
    return per_example.astype("<f4").tobytes()


def unpack(per_example: bytes, n_examples: int) -> NDArray[Any]:
    """What `pack` was given (n_examples)."""
    if len(per_example) == 4 * n_examples:
        return np.frombuffer(per_example, "<f4")
    return np.unpackbits(np.frombuffer(per_example, np.uint8), count=n_examples).astype(bool)
