"""Latin hypercube search: a design whose every coordinate is spread evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.methods.base import anchors_setting, register
from mapmerge_core.methods.map import MAP
from mapmerge_core.search.designs import make_design
from mapmerge_core.settings import seed_setting, setting, settings


@register
class LatinHypercube(MAP):
    """Sample a Latin hypercube once, evaluate every objective at each point, and fit surrogates to all."""

    name = "latin_hypercube"
    title = "Latin hypercube search"
    source = "McKay, Beckman and Conover (Technometrics, 1979)"
    advice = "few points, each coordinate spread evenly"

    @settings
    class Settings:
        points: int | None = setting(
            None, at_least=1, help="Points to evaluate, anchors included; as MAP's if left out."
        )
        seed: int = seed_setting()
        anchors: bool = anchors_setting()

    def design(self) -> NDArray[np.float64]:
        how = self.settings
        first = len(self.space.anchors) if how.anchors else 0
        if self.points <= first:
            return make_design("uniform", self.points, self.space, seed=how.seed, anchors=how.anchors)
        others = self.space.latin(self.points - first, how.seed)
        return np.vstack([self.space.anchors[:first], others])
