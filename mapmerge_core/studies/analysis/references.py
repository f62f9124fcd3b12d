"""What merged models are held against: the fine-tuned models and the pre-trained one, and a preference's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.search.preferences import normalise

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudyConfig
    from mapmerge_core.studies.store import Measurements, Split, Store
    from mapmerge_core.tasks.objective import Objective


@dataclass(frozen=True, eq=False)
class References:
    """The pre-trained model and the N fine-tuned ones, in the study's first merge, task arithmetic.

    Attributes:
        merge_id: That merge.
        models: The N models' names.
        X: Their points, ``N + 1 x N``: the pre-trained model's first.
        Y: Their values, ``N + 1 x K``, NaN where they haven't been measured.
        single: For each objective (K,) the value of the task's own model, or, where it has none, the best
            value of a fine-tuned model that was measured; NaN where nothing was.
    """

    merge_id: int
    models: tuple[str, ...]
    X: np.ndarray
    Y: np.ndarray
    single: np.ndarray

    @property
    def pretrained(self) -> np.ndarray:
        """The pre-trained model's values (K,)."""
        return np.asarray(self.Y[0])

    @property
    def names(self) -> tuple[str, ...]:
        """What tables and plots call the rows of ``X``."""
        return ("Pre-trained", *(f"{model}'s own model" for model in self.models))


def references(store: Store, study_id: int, split: Split = "val") -> References:
    """Return what was measured of a study's references on a split.

    Raises:
        StudyError: There is no such study.
    """
    config = store.merges.config(study_id)
    merge_id = store.merges.all(study_id)[0].id
    return references_in(store.evaluations.table(merge_id, split), merge_id, config)


def references_in(table: Measurements | None, merge_id: int, config: StudyConfig) -> References:
    """Return the references in the table of a study's first merge."""
    models, objectives = config.model_names, config.objectives
    n = len(models)
    X = np.eye(n + 1, n, k=-1)
    Y = np.full((n + 1, len(objectives)), np.nan) if table is None else np.array([table.at(x) for x in X])
    single = [_single(Y[1:, k], objective, models) for k, objective in enumerate(objectives)]
    return References(merge_id, models, X, Y, np.array(single))


def _single(values: np.ndarray, objective: Objective, models: Sequence[str]) -> float:
    """Return an objective's reference among the values (N,) of the fine-tuned models."""
    if objective.model is not None:
        return float(values[models.index(objective.model)])
    measured = values[np.isfinite(values)]
    if not measured.size:
        return float("nan")
    return float(measured.max() if objective.metric.maximize else measured.min())


def shares_of(weights: Mapping[str, float] | None, objectives: Sequence[Objective]) -> np.ndarray:
    """Return a preference as shares of the objectives (K,), which sum to 1.

    Args:
        weights: By an objective's name; those left out have none. None weighs all alike.
        objectives: The study's.

    Raises:
        StudyError: A name is no objective's.
        SearchError: Weights are negative, not finite or all zero.
    """
    names = [objective.name for objective in objectives]
    weights = dict.fromkeys(names, 1.0) if weights is None else weights
    for name in weights:
        if name not in names:
            raise StudyError(f"There is no objective '{name}': the study has {', '.join(names)}.")
    return normalise([weights.get(name, 0.0) for name in names], len(names))
