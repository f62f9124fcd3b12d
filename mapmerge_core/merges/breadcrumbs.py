"""Model Breadcrumbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges.base import register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.settings import setting, settings

if TYPE_CHECKING:
    from torch import Tensor


@register
class Breadcrumbs(LinearMerge):
    """Drop the largest and the smallest entries of each task vector, tensor by tensor, and add a multiple."""

    name = "breadcrumbs"
    title = "Model Breadcrumbs"
    source = "Davari and Belilovsky, Model Breadcrumbs: Scaling Multi-Task Model Merging, ECCV 2024"

    @settings
    class Settings:
        """How much is dropped at both ends."""

        density: float = setting(0.9, above=0, at_most=1, help="Share of each tensor's entries to keep.")
        gamma: float = setting(0.01, at_least=0, below=1, help="Share of the largest entries to drop.")

    def transform(self, change: Tensor) -> Tensor:
        from mapmerge_core.merges._sparse import drop_outliers

        return drop_outliers(change, self.settings.density, self.settings.gamma)
