"""RegMean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges._statistical import StatisticalMerge
from mapmerge_core.merges.base import register
from mapmerge_core.settings import seed_setting, setting, settings

if TYPE_CHECKING:
    from mapmerge_core.merges._averages import PreparedRegMean


@register
class RegMean(StatisticalMerge):
    """Give each linear layer the weights whose outputs are nearest to those of the fine-tuned models."""

    name = "regmean"
    title = "RegMean"
    source = "Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023"
    passes_per_example = 2  # a Gram matrix costs about as much as its layer

    @settings
    class Settings:
        """Which examples tell, and how far they are trusted."""

        examples: int | None = setting(None, at_least=1, help="Validation examples of each task; none for all.")
        seed: int = seed_setting("Seed of the examples that are drawn.")
        off_diagonal: float = setting(
            0.9,
            at_least=0,
            at_most=1,
            help="What the Gram matrices' entries off the diagonal are multiplied by; 1 is least squares.",
        )

    def implementation(self) -> type[PreparedRegMean]:
        from mapmerge_core.merges._averages import PreparedRegMean

        return PreparedRegMean
