"""Direct search: evaluate a large design and keep what nothing dominates (MAP, Section 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.methods.map import OneDesign

if TYPE_CHECKING:
    from mapmerge_core.search.design import Kind

PAPER_POINTS = {2: 200, 3: 300, 4: 300, 5: 500, 6: 500, 7: 1000, 8: 1000}
"""Points that the paper's direct search evaluates for each number of tasks (MAP, Table 2)."""


class DirectSearch(OneDesign):
    """The brute-force baseline: its front is the non-dominated subset of what was measured, with no surrogate.

    Arguments and errors are ``OneDesign``'s; ``points`` are by default what the paper uses for N.
    """

    def __init__(
        self,
        n_vectors: int,
        points: int | None = None,
        *,
        seed: int = 0,
        low: float = 0.0,
        high: float = 1.0,
        design: Kind = "uniform",
        anchors: bool = True,
    ) -> None:
        points = default_points(n_vectors) if points is None else points
        super().__init__(n_vectors, points, seed=seed, low=low, high=high, design=design, anchors=anchors)


def default_points(n_vectors: int) -> int:
    """The paper's budget for N tasks, and for more tasks that of eight."""
    return PAPER_POINTS.get(n_vectors, PAPER_POINTS[8])
