"""Direct search: evaluate a large design and keep what nothing dominates (MAP, Section 5.2)."""

from __future__ import annotations

from mapmerge_core.methods.map import MAP

PAPER_POINTS = {2: 200, 3: 300, 4: 300, 5: 500, 6: 500, 7: 1000, 8: 1000}
"""Points that the paper's direct search evaluates for each number of tasks (MAP, Table 2)."""


class DirectSearch(MAP):
    """The brute-force baseline, which samples as MAP does, but more.

    Its front is the non-dominated subset of what was measured, without surrogates. Arguments and errors are
    ``MAP``'s.
    """

    @staticmethod
    def default_points(n_vectors: int) -> int:
        """The paper's budget for N tasks, and for more tasks that of eight."""
        return PAPER_POINTS.get(n_vectors, PAPER_POINTS[8])
