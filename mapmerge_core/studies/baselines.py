"""The merges that no search chose: which there are, how each is made, and the weights that were measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapmerge_core.studies.rows import BaselineRow, Split, StudyRow
    from mapmerge_core.studies.spec import StudySpec
    from mapmerge_core.studies.store import Store


@dataclass(frozen=True)
class BaselineKind:
    """A baseline that a study can have.

    Attributes:
        name: What the store and the command line call it.
        title: What tables call it.
        settings: Everything that can be set, with the defaults.
        uses_data: Whether making it reads the tasks' validation images.
        explanation: One sentence for a person.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    uses_data: bool
    explanation: str


_ADAM = {"steps": 500, "batch_size": 16, "lr": 1e-3, "start": 0.3, "seed": 0}

BASELINES = (
    BaselineKind(
        "soup", "Model soup", {}, uses_data=False, explanation="The average of the fine-tuned models."
    ),
    BaselineKind(
        "scalar",
        "Task arithmetic, searched scalar",
        {},
        uses_data=True,
        explanation="One coefficient for all task vectors: the one of 0, 0.1, ..., 1 with the best mean metric on the "
        "validation split.",
    ),
    BaselineKind(
        "scalar_03",
        "Task arithmetic, 0.3",
        {"scale": 0.3},
        uses_data=False,
        explanation="The coefficient 0.3 for all task vectors.",
    ),
    BaselineKind(
        "ties",
        "TIES",
        {"keep": 0.2, "scale": 1.0},
        uses_data=False,
        explanation="Keeps the largest entries of each task vector, elects a sign for each parameter and averages what "
        "agrees with it.",
    ),
    BaselineKind(
        "dare",
        "DARE + task arithmetic",
        {"drop": 0.5, "seed": 0, "scale": None},
        uses_data=True,
        explanation="Drops entries of each task vector at random, enlarges the others and adds them with one "
        "coefficient: the one that the search of task arithmetic found (that search is made first where it hasn't been).",
    ),
    BaselineKind(
        "dare_ties",
        "DARE + TIES",
        {"drop": 0.5, "seed": 0, "scale": 1.0},
        uses_data=False,
        explanation="TIES, with DARE's random drop in the place of keeping the largest entries.",
    ),
    BaselineKind(
        "slerp",
        "SLERP",
        {"t": 0.5},
        uses_data=False,
        explanation="Halfway along the arc between two models, tensor by tensor.",
    ),
    BaselineKind(
        "fisher",
        "Fisher merging",
        {"examples": 256, "seed": 0, "floor": 1e-6},
        uses_data=True,
        explanation="An average in which each parameter of each model weighs as much as that model's predictions depend "
        "on it.",
    ),
    BaselineKind(
        "regmean",
        "RegMean",
        {"examples": None, "seed": 0, "off_diagonal": 0.9},
        uses_data=True,
        explanation="Gives each linear layer the weights whose outputs are nearest to those of the fine-tuned models.",
    ),
    BaselineKind(
        "adamerging",
        "AdaMerging, task-wise",
        _ADAM,
        uses_data=True,
        explanation="Learns one coefficient for each task vector from validation images without their labels.",
    ),
    BaselineKind(
        "adamerging_layers",
        "AdaMerging, layer-wise",
        _ADAM,
        uses_data=True,
        explanation="Learns a coefficient for each tensor of each task vector from validation images without "
        "their labels.",
    ),
    BaselineKind(
        "adamerging_ties",
        "AdaMerging++",
        {"keep": 0.2, **_ADAM},
        uses_data=True,
        explanation="Layer-wise AdaMerging on task vectors that TIES has trimmed.",
    ),
)
"""Every baseline, in the order of tables."""


def offered(spec: StudySpec) -> tuple[BaselineKind, ...]:
    """The baselines that a study of ``spec`` can have.

    SLERP merges two models only. A study with a transform has none: they belong to the study of the same
    models without it.
    """
    if spec.transform:
        return ()
    return tuple(kind for kind in BASELINES if kind.name != "slerp" or len(spec.tasks) == 2)


def label(baseline: BaselineRow) -> str:
    """A baseline's title and, where it wasn't made with the defaults, with what: "TIES (keep 0.5)"."""
    kind = find_kind(baseline.name)
    changed = [
        f"{name.replace('_', ' ')} {'all' if value is None else f'{value:g}'}"
        for name, value in baseline.settings.items()
        if value != kind.settings[name]
    ]
    return f"{kind.title} ({', '.join(changed)})" if changed else kind.title


def find_kind(name: str) -> BaselineKind:
    """The baseline of that name.

    Raises:
        StudyError: where there is none.
    """
    for kind in BASELINES:
        if kind.name == name:
            return kind
    raise StudyError(
        f"The baseline '{name}' is unknown: use one of {', '.join(kind.name for kind in BASELINES)}."
    )


def find_made(store: Store, study: StudyRow, name: str) -> BaselineRow | None:
    """The study's baseline of that name with the default settings, if it has been made.

    Raises:
        StudyError: for an unknown name.
    """
    settings = dict(find_kind(name).settings)
    if name == "dare":
        searched = store.find_baseline(study.id, "scalar", {})
        settings["scale"] = None if searched is None or searched.c is None else float(searched.c[0])
    return store.find_baseline(study.id, name, settings)


def missing(store: Store, study: StudyRow) -> tuple[BaselineKind, ...]:
    """The baselines that the study can have and hasn't, with the default settings."""
    return tuple(kind for kind in offered(study.spec) if find_made(store, study, kind.name) is None)


def baseline_values(store: Store, baseline: BaselineRow, split: Split = "test") -> np.ndarray:
    """What was measured of a baseline: (K,) in the study's order of tasks, NaN where nothing was yet."""
    if baseline.c is not None:
        known = store.measured(baseline.study_id, baseline.c, split)
    else:
        known = store.baseline_measured(baseline.id, split)
    tasks = store.study(baseline.study_id).spec.task_names
    return np.array([known.get(task, np.nan) for task in tasks])
