"""Fisher merging."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges._statistical import StatisticalMerge
from mapmerge_core.merges.base import register
from mapmerge_core.settings import seed_setting, setting, settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from threading import Event

    from torch import Tensor

    from mapmerge_core.merges._averages import PreparedFisher
    from mapmerge_core.merges.base import Progress
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


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

        examples: int | None = setting(
            256, at_least=1, help="Validation examples of each task; none for all."
        )
        seed: int = seed_setting("Seed of the examples and labels that are drawn.")
        floor: float = setting(1e-6, above=0, advanced=True, help="Least weight of a parameter.")

    def observe(
        self, evaluator: Evaluator, model: str, progress: Progress, cancel: Event | None
    ) -> Mapping[str, Tensor]:
        from mapmerge_core.merges._statistics import fisher_diagonals

        s = self.settings
        return fisher_diagonals(
            evaluator, model, examples=s.examples, seed=s.seed, progress=progress, cancel=cancel
        )

    def prepared(
        self, vectors: TaskVectors, exported: TaskVectors, statistics: Sequence[Mapping[str, Tensor]]
    ) -> PreparedFisher:
        from mapmerge_core.merges._averages import PreparedFisher

        return PreparedFisher(self, vectors, exported, statistics)

    def read(self, path: Path, vectors: TaskVectors, exported: TaskVectors) -> PreparedFisher:
        from mapmerge_core.merges._averages import PreparedFisher

        return PreparedFisher.read(path, self, vectors, exported)
