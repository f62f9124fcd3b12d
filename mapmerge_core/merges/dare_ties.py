"""DARE with TIES."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges.base import register
from mapmerge_core.merges.dare import Dare

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@register
class DareTies(Dare):
    """Drop entries of each task vector at random, elect a sign for each parameter, average what agrees.

    Each task vector is divided by how many agree, so that x = (1, ..., 1) is TIES with λ = 1, with DARE's
    drop in the place of its trimming.
    """

    name = "dare_ties"
    title = "DARE + TIES"
    high = 2.0
    default = 1.0
    searches_scalar = False

    def transform_vectors(self, vectors: TaskVectors) -> TaskVectors:
        from mapmerge_core.merges._sparse import average_agreeing_

        return average_agreeing_(super().transform_vectors(vectors))
