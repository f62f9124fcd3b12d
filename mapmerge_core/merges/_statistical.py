"""Averages of models, weighted by what their own data says about each parameter; nothing here loads torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, ClassVar

from mapmerge_core.merges.base import Merge, Needs, PreparedMerge, Progress, Report, state_file
from mapmerge_core.search.spaces import Simplex, Space

if TYPE_CHECKING:
    from mapmerge_core.merges._averages import PreparedStatistics
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.streamed import Vectors


class StatisticalMerge(Merge):
    """A merge by weights of the models and by statistics of each on its own task, collected once.

    Its settings have ``examples`` and ``seed``.

    Attributes:
        passes_per_example: What statistics cost, in passes of an example forward.
    """

    has_state = True
    needs = Needs(data=True, logits=True, whole_models=True)
    passes_per_example: ClassVar[int]

    def space(self, models: Sequence[str]) -> Space:
        return Simplex(tuple(models))

    def passes(self, sizes: Sequence[int]) -> int:
        examples = self.settings.examples
        return self.passes_per_example * sum(n if examples is None else min(n, examples) for n in sizes)

    def prepare(
        self,
        evaluator: Evaluator,
        *,
        progress: Progress | None = None,
        cancel: Event | None = None,
        checkpoint: Path | None = None,
        report: Report | None = None,
    ) -> PreparedMerge:
        del checkpoint, report
        from mapmerge_core.weights.vectors.streamed import in_memory

        vectors, exported = in_memory(evaluator.vectors), in_memory(evaluator.exported_vectors)
        implementation, statistics = self.implementation(), []
        for number, model in enumerate(vectors.names):

            def count(done: int, total: int, number: int = number) -> None:
                if progress:
                    progress(100 * number + 100 * done // total, 100 * len(vectors))

            examples, seed = self.settings.examples, self.settings.seed
            statistics.append(
                implementation.collect(evaluator, model, examples=examples, seed=seed, progress=count, cancel=cancel)
            )
        return implementation(self, vectors, exported, statistics)

    def load(self, state: Path | None, vectors: Vectors, exported: Vectors) -> PreparedMerge:
        from mapmerge_core.weights.vectors.streamed import in_memory

        return self.implementation().read(state_file(state, self), self, in_memory(vectors), in_memory(exported))

    @abstractmethod
    def implementation(self) -> type[PreparedStatistics]:
        """Import and return the class that merges."""
