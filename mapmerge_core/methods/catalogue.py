"""The methods by the names that runs know them by, and their usual budgets."""

from __future__ import annotations

from typing import Literal

from mapmerge_core.methods import nested
from mapmerge_core.methods.direct import DirectSearch
from mapmerge_core.methods.map import MAP
from mapmerge_core.search.preference_grid import default_grid
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate

MethodName = Literal["map", "bayesian", "nested", "direct", "pareto_merging"]

SEARCHES: tuple[MethodName, ...] = ("map", "bayesian", "nested", "direct")
"""The methods that ask for coefficients; Pareto Merging learns a set of models instead."""

TITLES: dict[MethodName, str] = {
    "map": "MAP",
    "bayesian": "Bayesian MAP",
    "nested": "Nested MAP",
    "direct": "Direct search",
    "pareto_merging": "Pareto Merging",
}


def default_points(name: MethodName, n_vectors: int) -> int:
    """The paper's budget of a method for N tasks.

    Bayesian MAP takes twice the points that determine a surrogate (12 for two tasks, Appendix D); nested
    MAP's points are those of each pair, Pareto Merging's the preferences that are measured once it has
    learned.
    """
    if name == "pareto_merging":
        return default_grid(n_vectors)
    if name == "map":
        return MAP.default_points(n_vectors)
    if name == "direct":
        return DirectSearch.default_points(n_vectors)
    return nested.PAPER_POINTS if name == "nested" else 2 * QuadraticSurrogate.n_parameters(n_vectors)
