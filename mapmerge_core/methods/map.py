"""MAP: amortised Pareto fronts by quadratic approximation (ICLR 2025), Algorithm 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from mapmerge_core.errors import SearchError
from mapmerge_core.methods.base import Batch, Method, anchors_setting, links_of, register
from mapmerge_core.registries import LINKS
from mapmerge_core.search.designs import anchors_outside, make_design
from mapmerge_core.search.surrogates.features import n_parameters
from mapmerge_core.settings import seed_setting, setting, settings

if TYPE_CHECKING:
    import numpy as np

    from mapmerge_core.search.spaces import Space


@register
class MAP(Method):
    """Sample points once, evaluate every objective at each, and fit surrogates to all."""

    name = "map"
    title = "MAP"
    source = "MAP (ICLR 2025), Algorithm 1"
    advice = "the usual choice"
    paper_points: ClassVar[dict[int, int]] = {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}
    """Points that the paper evaluates for each number of tasks (Table 2)."""

    @settings
    class Settings:
        points: int | None = setting(
            None, at_least=1, help="Points to evaluate, anchors included; the paper's number if left out."
        )
        seed: int = seed_setting()
        design: Literal["uniform", "sobol", "grid"] = setting(
            "uniform", advanced=True, help="How points are spread: the paper's is uniform."
        )
        anchors: bool = anchors_setting()

    @classmethod
    def default_points(cls, space: Space) -> int:
        return cls.paper_points.get(space.n, 6 * n_parameters(space.n_free))

    def start(self) -> None:
        needs_least = [link for link, _ in links_of(self.objectives) if LINKS[link].is_linear]
        outside = anchors_outside(self.space) if self.settings.anchors else 0
        needed = n_parameters(self.space.n_free) + outside
        if self.is_front == "surrogates" and needs_least and self.points < needed:
            why = f" ({outside} anchors outside the box aren't fitted)" if outside else ""
            raise SearchError(
                f"A surrogate of {self.space.n_free} coefficients with the {needs_least[0]} link needs {needed} points "
                f"or more{why}, not {self.points}: raise the budget."
            )
        self._waiting = Batch(self.design(), self.all_objectives)
        self.points = len(self._waiting.X)

    def design(self) -> np.ndarray:
        """Return the points to evaluate."""
        how = self.settings
        return make_design(how.design, self.points, self.space, seed=how.seed, anchors=how.anchors)

    def take(self, batch: Batch, values: np.ndarray) -> Batch | None:
        del batch, values
        return None
