"""TIES-Merging."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges.base import register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.settings import setting, settings

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@register
class Ties(LinearMerge):
    """Keep the largest entries of each task vector, elect a sign for each parameter, average what agrees.

    Each task vector is divided by how many agree, so that x = (1, ..., 1) is TIES with λ = 1.
    """

    name = "ties"
    title = "TIES"
    source = "Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023"
    high = 2.0
    default = 1.0

    @settings
    class Settings:
        """How much is trimmed."""

        keep: float = setting(0.2, above=0, at_most=1, help="Share of each task vector's entries to keep.")

    def transform_vectors(self, vectors: TaskVectors) -> TaskVectors:
        from mapmerge_core.merges._sparse import average_agreeing_, trim

        return average_agreeing_(trim(vectors, self.settings.keep))
