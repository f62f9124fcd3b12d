"""MAP: amortised Pareto fronts by quadratic approximation (ICLR 2025), Algorithm 1."""

from __future__ import annotations

import numpy as np

from mapmerge_core.errors import SearchError
from mapmerge_core.search.design import Kind, make_design

PAPER_POINTS = {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}
"""Points that the paper evaluates for each number of tasks (MAP, Table 2)."""


class MAP:
    """Algorithm 1, lines 2 to 6: sample coefficients once, and evaluate every task at each.

    The surrogates and the front (lines 7 to 9) are fitted to the study's evaluations afterwards, whichever
    run they came from.

    Args:
        n_vectors: Number of task vectors N.
        points: Rows to evaluate, anchors included; by default what the paper uses for N.
        seed: Seed of the design.
        low: Lower corner of the box.
        high: Upper corner of the box.
        design: "uniform", "sobol" or "grid".
        anchors: Whether the origin and the unit vectors come first.

    Raises:
        SearchError: for a budget, a box or a design that can't be sampled.
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
        if points is None:
            points = default_points(n_vectors)
        self._waiting = make_design(design, points, n_vectors, low=low, high=high, seed=seed, anchors=anchors)
        self._points = len(self._waiting)
        self._n_vectors = n_vectors

    @property
    def points(self) -> int:
        """Coefficient vectors in the design (a grid may hold fewer than the budget)."""
        return self._points

    def ask(self) -> np.ndarray:
        """The whole design (``points x N``) at first, and ``0 x N`` once it has been told."""
        return self._waiting

    def tell(self, C: np.ndarray, values: np.ndarray) -> None:
        """Takes the design's values (``points x K``).

        Raises:
            SearchError: where ``C`` isn't what was asked for, or has another number of rows than ``values``.
        """
        if not np.array_equal(C, self._waiting) or len(values) != len(C):
            raise SearchError(
                f"MAP asked for {self._waiting.shape} coefficients and was told {len(values)} values for "
                f"{np.shape(C)}: tell the rows that were asked, in their order."
            )
        self._waiting = np.empty((0, self._n_vectors))


def default_points(n_vectors: int) -> int:
    """The paper's budget for N tasks; for other N six points per parameter (the paper has 5.6 at N = 8)."""
    return PAPER_POINTS.get(n_vectors, 6 * (n_vectors + 1) * (n_vectors + 2) // 2)
