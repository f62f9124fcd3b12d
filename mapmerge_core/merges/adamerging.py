"""AdaMerging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal

from mapmerge_core.merges.base import Merge, Needs, PreparedMerge, Progress, Report, register, state_file
from mapmerge_core.search.spaces import SinglePoint, Space
from mapmerge_core.settings import label, seed_setting, setting, settings

if TYPE_CHECKING:
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.streamed import Vectors


@register
class AdaMerging(Merge):
    """Learn coefficients of the task vectors from validation images without labels."""

    name = "adamerging"
    title = "AdaMerging"
    source = "Yang et al., AdaMerging: Adaptive Model Merging for Multi-Task Learning, ICLR 2024"
    needs = Needs(data=True, logits=True, whole_models=True)
    has_state = True
    variants = ({"level": "task"}, {"level": "layer"}, {"level": "layer", "keep": 0.2})

    @settings
    class Settings:
        """What is learned, and how."""

        level: Literal["task", "layer"] = setting(
            "layer", help="One coefficient for each task vector (task), or one for each tensor of each (layer)."
        )
        keep: float | None = setting(
            None, above=0, at_most=1, help="Share of each task vector's entries that TIES keeps (AdaMerging++)."
        )
        steps: int = setting(500, at_least=1, help="Steps of Adam.")
        batch_size: int = setting(16, at_least=1, help="Images of each task in a step.")
        lr: float = setting(1e-3, above=0, help="Adam's learning rate.")
        start: float = setting(0.3, at_least=0, at_most=1, help="What every coefficient starts from.")
        seed: int = seed_setting("Seed of the images that are drawn.")

    @property
    def label(self) -> str:
        """Its title, level and "++", and those other settings that differ from the defaults."""
        s = self.settings
        title = f"{self.title}{'++' if s.keep is not None else ''}, {s.level}-wise"
        others = label(replace(s, level="layer", keep=None if s.keep == 0.2 else s.keep))
        return f"{title} ({others})" if others else title

    def space(self, models: Sequence[str]) -> Space:
        del models
        return SinglePoint()

    def passes(self, sizes: Sequence[int]) -> int:
        s = self.settings
        return 3 * int(s.steps) * sum(min(n, int(s.batch_size)) for n in sizes)

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
        from mapmerge_core.merges._adamerging import PreparedAdaMerging, learn_coefficients
        from mapmerge_core.merges._sparse import trimmed

        vectors, exported = trimmed(evaluator.vectors, evaluator.exported_vectors, self.settings.keep)
        learned = learn_coefficients(evaluator, vectors, self.settings, progress=progress, cancel=cancel)
        return PreparedAdaMerging(self, vectors, exported, learned)

    def load(self, state: Path | None, vectors: Vectors, exported: Vectors) -> PreparedMerge:
        from mapmerge_core.merges._adamerging import PreparedAdaMerging
        from mapmerge_core.merges._sparse import trimmed

        path = state_file(state, self)
        return PreparedAdaMerging.read(path, self, *trimmed(vectors, exported, self.settings.keep))
