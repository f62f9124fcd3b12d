"""Studies of the tiny zoo whose measurements are made up: no model is ever merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.studies.config import RunConfig, StudyConfig
from mapmerge_core.tasks.outcome import Outcome

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Run, Split, Store, Study

N_EXAMPLES = 50


def four_objectives(zoo: Path) -> StudyConfig:
    """Two models and four objectives: two metrics on one task, and a task without a model."""
    values = {
        "family": "clip",
        "architecture": "tiny-clip.json",
        "pretrained": "pretrained.safetensors",
        "models": {task: f"{task}.safetensors" for task in ("Colours", "Stripes")},
        "tasks": [
            {"name": "Colours", "data": "Colours.npz", "model": "Colours", "metrics": ["accuracy", "loss"]},
            {"name": "Stripes", "data": "Stripes.npz", "model": "Stripes"},
            {"name": "Light", "data": "Light.npz"},
        ],
    }
    return StudyConfig.from_dict(values, zoo)


def first_merge(store: Store, study: Study) -> int:
    """The id of the merge that every study has: task arithmetic."""
    return store.merges.all(study.id)[0].id


def put(
    store: Store,
    merge_id: int,
    X: np.ndarray,
    values: np.ndarray,
    split: Split = "val",
    run_id: int | None = None,
    standard_error: float | None = None,
) -> None:
    """Store values (``m x K``) at points (``m x D``); NaN is left out, and what is known stays."""
    config = store.merges.config(store.merges.get(merge_id).study_id)
    for x, row in zip(np.atleast_2d(X), np.atleast_2d(values), strict=True):
        for objective, value in zip(config.objectives, row, strict=True):
            if np.isfinite(value):
                measured = Outcome(float(value), N_EXAMPLES, b"", 0.5, standard_error=standard_error)
                store.evaluations.add(merge_id, x, objective.key, split, measured, run_id=run_id)


def run_config(**settings: object) -> RunConfig:
    """A run; whatever is no field of a run is a setting of its method."""
    fields = RunConfig.__dataclass_fields__
    method_settings = {name: value for name, value in settings.items() if name not in fields}
    return RunConfig(
        **{name: value for name, value in settings.items() if name in fields}, method_settings=method_settings
    )


def finish(
    store: Store, study: Study, values_at: Callable[[np.ndarray], np.ndarray], *, own: bool = True, **settings: object
) -> Run:
    """A finished run whose values come from a formula, unless the store knows others.

    Args:
        store: The store.
        study: The study.
        values_at: Values (K,) at a point.
        own: Whether the run counts the evaluations as its own.
        settings: As for ``run_config``.
    """
    run = store.runs.create(study.id, run_config(**settings))
    method = run.config.make_method(study.config)
    keys = [objective.key for objective in study.config.objectives]
    while (batch := method.ask()) is not None:
        columns = list(batch.objectives)
        X = store.merges.get(run.merge_id).space.points(batch.X)
        for x in X:
            values = np.full(len(keys), np.nan)
            values[columns] = values_at(x)[columns]
            put(store, run.merge_id, x, values, run_id=run.id if own else None)
        known = [store.evaluations.measured(run.merge_id, x, "val") for x in X]
        method.tell(batch, np.array([[row[keys[k]] for k in columns] for row in known]))
    store.runs.set_status(run.id, "done")
    return store.runs.get(run.id)
