"""What a link is: it turns a quadratic form into a metric that stays inside its bounds (MAP, Section 4.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.errors import SearchError
from mapmerge_core.registries import LINKS
from mapmerge_core.registry import Helpful

Array = NDArray[np.float64]

INSIDE = 0.005
"""How far inside its bounds, as a share of its range, a saturated metric is moved before it is unlinked."""

register = LINKS.register


@dataclass(unsafe_hash=True)
class Link(Helpful, ABC):
    """A link with a metric's bounds.

    Args:
        low: The metric's least value l, or minus infinity.
        high: Its greatest value u, or infinity.

    Raises:
        SearchError: The link can't have these bounds.

    Attributes:
        name: What study files and the command line call it.
        bounds: The bounds that it has unless others are given; None where it ignores bounds.
        n_bounds: How many finite bounds a metric has that it suits.
        is_linear: Whether it is the quadratic form itself, so that least squares have a closed form. Fits of other
            links need a small ridge: metrics on a bound would let them grow without end.
    """

    name: ClassVar[str]
    bounds: ClassVar[tuple[float, float] | None]
    n_bounds: ClassVar[int]
    is_linear: ClassVar[bool] = False
    low: float
    high: float

    def __post_init__(self) -> None:
        """Raise a `SearchError` where a subclass can't have these bounds."""

    @abstractmethod
    def value(self, z: Array) -> Array:
        """Return the metric at the quadratic form's values ``z`` (any shape)."""

    @abstractmethod
    def slope(self, z: Array) -> Array:
        """Return the derivative of `value` at ``z``."""

    @abstractmethod
    def inverse(self, y: Array) -> Array:
        """Return a finite ``z`` near the one that gives ``y``; values on a bound are first moved a little inside."""

    def check_values(self, y: Array) -> None:
        """Make sure that metrics (any shape, at least one) lie within the bounds.

        Raises:
            SearchError: One doesn't.
        """
        if y.min() < self.low or y.max() > self.high:
            worst = y.min() if y.min() < self.low else y.max()
            raise SearchError(
                f"A metric of {worst:g} is outside its bounds, {self.low:g} to {self.high:g}: "
                "correct the bounds or the measurement."
            )

    def error_unit(self, y: Array) -> float:
        """Return what errors of metrics ``y`` are a share of, so that a ridge weighs the same in all units."""
        return float(y.std()) or 1.0


def make_link(name: str, bounds: tuple[float, float] | None = None) -> Link:
    """Return the link called ``name`` with a metric's bounds, or with its usual ones.

    Raises:
        RegistryError: There is no such link.
        SearchError: It can't have these bounds.
    """
    kind = LINKS[name]
    if kind.bounds is None:
        return kind(-np.inf, np.inf)
    low, high = kind.bounds if bounds is None else bounds
    if not low < high:
        raise SearchError(f"The bounds {low:g} and {high:g} are empty: the lower one comes first.")
    return kind(low, high)
