"""DARE with task arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges.base import register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.settings import seed_setting, setting, settings

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@register
class Dare(LinearMerge):
    """Drop entries of each task vector at random, enlarge the others, and add a multiple of each."""

    name = "dare"
    title = "DARE"
    source = "Yu et al., Language Models are Super Mario, ICML 2024, equation 1"
    searches_scalar = True

    @settings
    class Settings:
        """How much is dropped."""

        drop: float = setting(0.5, at_least=0, below=1, help="Probability that an entry is dropped.")
        seed: int = seed_setting("Seed of what is dropped; the same seed drops the same.")

    def transform_vectors(self, vectors: TaskVectors) -> TaskVectors:
        from mapmerge_core.merges._sparse import drop_at_random, transform_tensors

        drop = self.settings.drop
        return transform_tensors(vectors, lambda v, rng: drop_at_random(v, rng, drop), self.settings.seed)
