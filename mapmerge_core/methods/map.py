"""MAP: amortised Pareto fronts by quadratic approximation (ICLR 2025), Algorithm 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.methods.base import Batch, check_told
from mapmerge_core.search.designs import Kind, make_design

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PAPER_POINTS = {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}
"""Points that the paper evaluates for each number of tasks (MAP, Table 2)."""


class MAP:
    """Algorithm 1, lines 2 to 6: sample coefficients once, and evaluate every task at each.

    The surrogates and the front (lines 7 to 9) are fitted to the evaluations afterwards.

    Args:
        n_vectors: Number of task vectors N.
        points: Rows to evaluate, anchors included; by default what the paper uses for N.
        seed: Seed of the design.
        low: Lower corner of the box.
        high: Upper corner of the box.
        design: "uniform", "sobol" or "grid" (which may hold fewer rows than the budget).
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
            points = self.default_points(n_vectors)
        C = make_design(design, points, n_vectors, low=low, high=high, seed=seed, anchors=anchors)
        self._waiting: Batch | None = Batch(C, tuple(range(n_vectors)))
        self._n_evaluations = C.size

    @staticmethod
    def default_points(n_vectors: int) -> int:
        """The paper's budget for N tasks; for others six points per parameter (it has 5.6 at N = 8)."""
        return PAPER_POINTS.get(n_vectors, 6 * (n_vectors + 1) * (n_vectors + 2) // 2)

    @property
    def n_evaluations(self) -> int:
        """Points of the design times tasks."""
        return self._n_evaluations

    def ask(self) -> Batch | None:
        """The whole design on every task at first, and None once it has been told."""
        return self._waiting

    def tell(self, batch: Batch, values: ArrayLike) -> None:
        """Takes the design's values (``points x N``).

        Raises:
            SearchError: where the batch isn't the one that was asked for, or the values don't fit it.
        """
        check_told(self._waiting, batch, values)
        self._waiting = None
