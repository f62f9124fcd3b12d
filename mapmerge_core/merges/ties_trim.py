"""Task vectors trimmed as TIES trims them, merged by coefficients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges.base import register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.settings import setting, settings

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@register
class TiesTrim(LinearMerge):
    """Keep the largest entries of each task vector and add a multiple of each."""

    name = "ties_trim"
    title = "Trimmed task vectors"
    source = "Yadav et al., TIES-Merging, NeurIPS 2023, Algorithm 1, step 1"

    @settings
    class Settings:
        """How much is trimmed."""

        keep: float = setting(0.2, above=0, at_most=1, help="Share of each task vector's entries to keep.")

    def transform_vectors(self, vectors: TaskVectors) -> TaskVectors:
        from mapmerge_core.merges._sparse import trim

        return trim(vectors, self.settings.keep)
