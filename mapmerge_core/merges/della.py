"""DELLA-Merging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import SettingError
from mapmerge_core.merges.base import register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.search.spaces import Box, Space
from mapmerge_core.settings import seed_setting, setting, settings

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@register
class Della(LinearMerge):
    """Drop entries of each task vector at random, small ones rather than large ones, and merge as TIES does.

    With ``elect`` each task vector is divided by how many agree, so that x = (1, ..., 1) is the paper's merge
    with λ = 1; without, task vectors are added as they are then (mergekit's ``della_linear``).
    """

    name = "della"
    title = "DELLA"
    source = "Deep et al., DELLA-Merging: Reducing Interference through Magnitude-Based Sampling, 2024"

    @settings
    class Settings:
        """How much is dropped, and what becomes of the rest."""

        density: float = setting(0.5, above=0, below=1, help="Share of entries to keep, on average.")
        epsilon: float = setting(
            0.15,
            at_least=0,
            below=0.5,
            help="By how much the probability of keeping a row's largest entry is above the density, and "
            "that of its smallest below.",
        )
        elect: bool = setting(default=True, help="Whether to elect a sign for each parameter and average what agrees.")
        seed: int = seed_setting("Seed of what is dropped; the same seed drops the same.")

    def __init__(self, settings: Any = None) -> None:  # noqa: ANN401 - as for Merge
        super().__init__(settings)
        density, epsilon = self.settings.density, self.settings.epsilon
        if not 0 < density - epsilon <= density + epsilon < 1:
            raise SettingError(
                f"DELLA can't have epsilon = {epsilon:g} with density = {density:g}: the density plus and "
                "minus epsilon must be above 0 and below 1."
            )

    def space(self, models: Sequence[str]) -> Space:
        return Box(tuple(models), high=2.0, default=1.0) if self.settings.elect else super().space(models)

    def transform_vectors(self, vectors: TaskVectors) -> TaskVectors:
        from mapmerge_core.merges._sparse import average_agreeing_, drop_by_rank, transform_tensors

        density, epsilon = self.settings.density, self.settings.epsilon
        dropped = transform_tensors(vectors, lambda v, rng: drop_by_rank(v, rng, density, epsilon), self.settings.seed)
        return average_agreeing_(dropped) if self.settings.elect else dropped
