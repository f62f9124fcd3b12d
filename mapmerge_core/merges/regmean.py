"""RegMean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges._statistical import StatisticalMerge
from mapmerge_core.merges.base import register
from mapmerge_core.settings import seed_setting, setting, settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from threading import Event

    from mapmerge_core.merges._averages import PreparedRegMean
    from mapmerge_core.merges._statistics import Gram
    from mapmerge_core.merges.base import Progress
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


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

        examples: int | None = setting(
            None, at_least=1, help="Validation examples of each task; none for all."
        )
        seed: int = seed_setting("Seed of the examples that are drawn.")
        off_diagonal: float = setting(
            0.9,
            at_least=0,
            at_most=1,
            help="What the Gram matrices' entries off the diagonal are multiplied by; 1 is least squares.",
        )

    def observe(
        self, evaluator: Evaluator, model: str, progress: Progress, cancel: Event | None
    ) -> Mapping[str, Gram]:
        from mapmerge_core.merges._statistics import gram_matrices

        s = self.settings
        return gram_matrices(
            evaluator, model, examples=s.examples, seed=s.seed, progress=progress, cancel=cancel
        )

    def prepared(
        self, vectors: TaskVectors, exported: TaskVectors, statistics: Sequence[Mapping[str, Gram]]
    ) -> PreparedRegMean:
        from mapmerge_core.merges._averages import PreparedRegMean

        return PreparedRegMean(self, vectors, exported, statistics)

    def read(self, path: Path, vectors: TaskVectors, exported: TaskVectors) -> PreparedRegMean:
        from mapmerge_core.merges._averages import PreparedRegMean

        return PreparedRegMean.read(path, self, vectors, exported)
