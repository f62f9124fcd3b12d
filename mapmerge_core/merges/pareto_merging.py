"""Pareto Merging: one training run gives a model for every preference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from mapmerge_core.errors import StudyError
from mapmerge_core.merges.base import Merge, Needs, PreparedMerge, Progress, Report, StudyFacts, register, state_file
from mapmerge_core.search.spaces import Simplex, Space
from mapmerge_core.settings import label, seed_setting, setting, settings

if TYPE_CHECKING:
    from mapmerge_core.merges._pareto_training import ParetoTraining
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.streamed import Vectors
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@register
class ParetoMerging(Merge):
    """Learn a base model and low-rank tensors that turn a preference over the models into a merged model."""

    name = "pareto_merging"
    title = "Pareto Merging"
    source = "Chen and Kwok, Pareto Merging: Multi-Objective Optimization for Preference-Aware Model Merging, ICML 2025"
    needs = Needs(data=True, logits=True, whole_models=True)
    has_state = True
    is_trained = True
    variants = ()  # a training of thousands of steps starts only where a person asked for it

    @settings
    class Settings:
        """How it is trained; the defaults are the paper's (section 4.1 and Appendix 1).

        The paper doesn't say μ; the one here is that of Lin et al., "Smooth Tchebycheff Scalarization for
        Multi-Objective Optimization", ICML 2024. The balance is not in the paper, hence 0: where merged
        models are weak, the least entropy is that of calling everything by one class; 1 prevents it, if
        classes are about equally frequent.
        """

        steps: int = setting(2000, at_least=1, help="Steps of Adam.")
        data_free: bool = setting(
            default=False, help="Whether to learn from distances of weights, rather than from unlabelled images."
        )
        keep: float | None = setting(
            None, above=0, at_most=1, help="Share of each task vector's entries that TIES keeps (Pareto Merging++)."
        )
        rank: int = setting(16, at_least=1, help="Rank of the tensors A, B and G.")
        batch_size: int = setting(32, at_least=1, help="Images of each task in a step.")
        lr: float = setting(1e-3, above=0, help="Adam's learning rate.")
        seed: int = seed_setting("Seed of preferences, images and the start of A and B.")
        start: float = setting(
            0.3, advanced=True, help="What every λ starts from; data-free also the coefficient to aim at."
        )
        concentration: float = setting(
            1.0,
            above=0,
            advanced=True,
            help="Of the Dirichlet distribution of preferences; 1 is uniform, less prefers the corners.",
        )
        scalarisation: Literal["smooth_tchebycheff", "tchebycheff", "linear"] = setting(
            "smooth_tchebycheff", advanced=True, help="How the tasks' objectives become one number."
        )
        mu: float = setting(
            0.1,
            above=0,
            advanced=True,
            help="μ of the smooth Tchebycheff scalarisation: the smaller, the nearer to the maximum.",
        )
        beta_cos: float = setting(
            0.1, at_least=0, advanced=True, help="Weight of the alignment with the inverse preference."
        )
        beta_norm: float = setting(1.0, at_least=0, advanced=True, help="Weight of the low-rank tensors' norm.")
        balance: float = setting(
            0.0,
            at_least=0,
            advanced=True,
            help="How much an imbalance of predicted classes is added to each task's entropy.",
        )
        personalised: tuple[str, ...] | None = setting(
            None,
            advanced=True,
            help="Names of the tensors to personalise, * for anything; none for the attention projections.",
        )

        @field_validator("personalised")
        @classmethod
        def _names_something(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
            if names is not None and not all(name.strip() for name in names or ("",)):
                raise ValueError("Name the tensors to personalise, or leave the setting out.")
            return names

    def __init__(self, settings: Any = None) -> None:  # noqa: ANN401 - as for Merge
        super().__init__(settings)
        if self.settings.data_free:
            self.needs = Needs(whole_models=True)

    @property
    def label(self) -> str:
        """Its title with "++", and those other settings that differ from the defaults."""
        keep = self.settings.keep
        title = f"{self.title}{'++' if keep is not None else ''}"
        others = label(replace(self.settings, keep=None if keep == 0.2 else keep))
        return f"{title} ({others})" if others else title

    def space(self, models: Sequence[str]) -> Space:
        return Simplex(tuple(models))

    def check(self, facts: StudyFacts) -> None:
        if self.needs.logits and not facts.gives_logits:
            raise StudyError(
                f"{self.title} learns from the logits of image classifiers: train data-free, or choose another merge."
            )
        if self.needs.data:
            for model in facts.models:
                if facts.own_task(model) is None:
                    raise StudyError(
                        f"{self.title} needs unlabelled images of a task of the model '{model}': add its "
                        "dataset, or train data-free."
                    )
        super().check(facts)

    def passes(self, sizes: Sequence[int]) -> int:
        s = self.settings
        return 0 if s.data_free else 3 * s.steps * sum(min(n, s.batch_size) for n in sizes)

    def time_preparation(self, evaluator: Evaluator) -> float:
        from mapmerge_core.merges._sparse import trimmed

        vectors, _ = trimmed(evaluator.vectors, evaluator.exported_vectors, self.settings.keep)
        return self.training(evaluator, vectors).seconds_per_step() * int(self.settings.steps)

    def training(self, evaluator: Evaluator, vectors: TaskVectors) -> ParetoTraining:
        """Return a training run on task vectors (trimmed, if that is set) before its first step."""
        from mapmerge_core.merges._pareto_training import ParetoTraining

        return ParetoTraining(evaluator, vectors, self)

    def prepare(
        self,
        evaluator: Evaluator,
        *,
        progress: Progress | None = None,
        cancel: Event | None = None,
        checkpoint: Path | None = None,
        report: Report | None = None,
    ) -> PreparedMerge:
        from mapmerge_core.merges._pareto_set import PreparedParetoMerging
        from mapmerge_core.merges._sparse import trimmed

        vectors, exported = trimmed(evaluator.vectors, evaluator.exported_vectors, self.settings.keep)
        training = self.training(evaluator, vectors)
        training.run(progress=progress, cancel=cancel, checkpoint=checkpoint, report=report)
        return PreparedParetoMerging(self, vectors, exported, training.lambdas, training.personalisation)

    def load(self, state: Path | None, vectors: Vectors, exported: Vectors) -> PreparedMerge:
        from mapmerge_core.merges._pareto_set import PreparedParetoMerging
        from mapmerge_core.merges._sparse import trimmed

        path = state_file(state, self)
        return PreparedParetoMerging.read(path, self, *trimmed(vectors, exported, self.settings.keep))
