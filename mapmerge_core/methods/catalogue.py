"""The methods by the names that runs know them by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.errors import SearchError
from mapmerge_core.methods.map import MAP

if TYPE_CHECKING:
    from mapmerge_core.methods.base import Method
    from mapmerge_core.search.design import Kind


def make_method(
    name: str,
    n_vectors: int,
    *,
    points: int,
    seed: int,
    low: float,
    high: float,
    design: Kind,
    anchors: bool,
) -> Method:
    """A new method for N task vectors, ready to be asked.

    Raises:
        SearchError: for a name that this version doesn't know, and for settings that can't be sampled.
    """
    if name != "map":
        raise SearchError(f"The method '{name}' is unknown: use 'map'.")
    return MAP(n_vectors, points, seed=seed, low=low, high=high, design=design, anchors=anchors)
