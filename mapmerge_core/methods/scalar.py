"""Scalar search: one coefficient for all models (task arithmetic, Ilharco et al., ICLR 2023)."""

from __future__ import annotations

import numpy as np

from mapmerge_core.errors import SearchError
from mapmerge_core.methods.base import Batch, Choice, Method, register
from mapmerge_core.search.fronts import signs
from mapmerge_core.search.spaces import Box, Space
from mapmerge_core.settings import seed_setting, setting, settings


@register
class ScalarSearch(Method):
    """Try one coefficient for all models, from end to end of the box, and take the best mean of the objectives."""

    name = "scalar"
    title = "Scalar search"
    source = "Editing Models with Task Arithmetic (ICLR 2023)"
    advice = "a baseline: one number for all models"
    is_front = "single"

    @settings
    class Settings:
        points: int | None = setting(None, at_least=2, help="How many coefficients to try; 11 if left out.")
        seed: int = seed_setting()

    @classmethod
    def default_points(cls, space: Space) -> int:
        del space
        return 11

    def start(self) -> None:
        if not isinstance(self.space, Box):
            raise SearchError(
                f"{self.title} needs coefficients that can all be one number: choose another method for this merge."
            )
        # Tenths as they are typed, so that its 0.3 is the fixed scalar's.
        shares = np.arange(self.points)[:, None] / (self.points - 1)
        X = self.space.low + shares * (self.space.high - self.space.low)
        self._waiting = Batch(X, self.all_objectives)

    def take(self, batch: Batch, values: np.ndarray) -> Batch | None:
        goodness = (values * signs([objective.maximize for objective in self.objectives])).mean(axis=1)
        best = int(goodness.argmax())
        self._choice = Choice(batch.X[best], values[best])
        return None

    def choose(self) -> Choice:
        return self._choice
