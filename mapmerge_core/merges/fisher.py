"""Fisher merging."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges._statistical import StatisticalMerge
from mapmerge_core.merges.base import register
from mapmerge_core.settings import seed_setting, setting, settings

if TYPE_CHECKING:
    from mapmerge_core.merges._averages import PreparedFisher


@register
class Fisher(StatisticalMerge):
    """Average the models, each parameter weighted by how much the model's predictions depend on it."""

    name = "fisher"
    title = "Fisher merging"
    source = "Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022"
    passes_per_example = 4  # labels are drawn first

    @settings
    class Settings:
        """Which examples tell, and how little a parameter can weigh."""

        examples: int | None = setting(256, at_least=1, help="Validation examples of each task; none for all.")
        seed: int = seed_setting("Seed of the examples and labels that are drawn.")
        floor: float = setting(1e-6, above=0, advanced=True, help="Least weight of a parameter.")

    def implementation(self) -> type[PreparedFisher]:
        from mapmerge_core.merges._averages import PreparedFisher

        return PreparedFisher
