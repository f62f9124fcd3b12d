"""Which merges that no search chose a study can have, and what can be set for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config.run import check_seed
from mapmerge_core.tasks.families import family_info
from mapmerge_core.weights.io.hub import is_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapmerge_core.studies.store.rows import BaselineRow
    from mapmerge_core.studies.config.study import StudySpec


@dataclass(frozen=True)
class BaselineKind:
    """A baseline that a study can have.

    Attributes:
        name: What the store and the command line call it.
        title: What tables call it.
        explanation: One sentence for a person.
        settings: Everything that can be set, with the defaults.
        uses_data: Whether making it reads the tasks' validation images.
        uses_logits: Whether it needs a family that gives logits, which gradients flow through.
    """

    name: str
    title: str
    explanation: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    uses_data: bool = False
    uses_logits: bool = False


_ADAM = {"steps": 500, "batch_size": 16, "lr": 1e-3, "start": 0.3, "seed": 0}

BASELINES = (
    BaselineKind("soup", "Model soup", "The average of the fine-tuned models."),
    BaselineKind(
        "scalar",
        "Task arithmetic, searched scalar",
        "One coefficient for all task vectors: of 0, 0.1, ..., 1 the one with the best mean metric on the "
        "validation split.",
        uses_data=True,
    ),
    BaselineKind(
        "scalar_03",
        "Task arithmetic, 0.3",
        "The coefficient 0.3 for all task vectors.",
        {"scale": 0.3},
    ),
    BaselineKind(
        "ties",
        "TIES",
        "Keeps the largest entries of each task vector, elects a sign for each parameter and adds the mean "
        "of what agrees with it.",
        {"keep": 0.2, "scale": 1.0},
    ),
    BaselineKind(
        "dare",
        "DARE + task arithmetic",
        "Drops entries of each task vector at random, enlarges the others and adds them with one "
        "coefficient: the one that task arithmetic's search finds, which is made first if it hasn't been.",
        {"drop": 0.5, "seed": 0, "scale": None},
        uses_data=True,
    ),
    BaselineKind(
        "dare_ties",
        "DARE + TIES",
        "TIES, with DARE's random drop in the place of keeping the largest entries.",
        {"drop": 0.5, "seed": 0, "scale": 1.0},
    ),
    BaselineKind(
        "slerp",
        "SLERP",
        "Halfway along the arc between two models, tensor by tensor.",
        {"t": 0.5},
    ),
    BaselineKind(
        "fisher",
        "Fisher merging",
        "An average: each parameter of a model weighs as much as the model's predictions depend on it.",
        {"examples": 256, "seed": 0, "floor": 1e-6},
        uses_data=True,
        uses_logits=True,
    ),
    BaselineKind(
        "regmean",
        "RegMean",
        "Gives each linear layer the weights whose outputs are nearest to those of the fine-tuned models.",
        {"examples": None, "seed": 0, "off_diagonal": 0.9},
        uses_data=True,
        uses_logits=True,
    ),
    BaselineKind(
        "adamerging",
        "AdaMerging, task-wise",
        "Learns one coefficient for each task vector from validation images without labels.",
        _ADAM,
        uses_data=True,
        uses_logits=True,
    ),
    BaselineKind(
        "adamerging_layers",
        "AdaMerging, layer-wise",
        "Learns coefficients for each tensor of each task vector from validation images without labels.",
        _ADAM,
        uses_data=True,
        uses_logits=True,
    ),
    BaselineKind(
        "adamerging_ties",
        "AdaMerging++",
        "Layer-wise AdaMerging on task vectors that TIES has trimmed.",
        {"keep": 0.2} | _ADAM,
        uses_data=True,
        uses_logits=True,
    ),
)
"""Every baseline, in the order of tables."""


def offered(spec: StudySpec) -> tuple[BaselineKind, ...]:
    """The baselines that a study of ``spec`` can have.

    SLERP merges two models only, and some need logits that not every family gives. Adapters are merged in low
    rank, so that only baselines with one coefficient a task can be made of them. A study with a transform has
    none: they belong to the study of the same models without it.
    """
    return tuple(kind for kind in BASELINES if not _obstacle(spec, kind))


def _obstacle(spec: StudySpec, kind: BaselineKind) -> str:
    """Why a study of ``spec`` can't have a baseline, as a sentence; "" where it can."""
    if spec.transform:
        return (
            f"{kind.title} merges task vectors as they are: make it in the study of the same models without "
            f"{spec.transform.label}."
        )
    if kind.name == "slerp" and len(spec.tasks) != 2:
        return (
            f"{kind.title} merges two models, not {len(spec.tasks)}: choose another baseline or a study of "
            "two tasks."
        )
    if kind.uses_logits and not family_info(spec.family).gives_logits:
        return f"{kind.title} needs the logits of image classifiers: choose another baseline."
    in_low_rank = any(is_adapter(task.checkpoint) for task in spec.tasks)
    if in_low_rank and kind.name not in ("soup", "scalar", "scalar_03"):
        return f"{kind.title} needs whole models, and adapters stay in low rank: choose another baseline."
    return ""


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


def check_offered(spec: StudySpec, name: str) -> BaselineKind:
    """The baseline of that name, if a study of ``spec`` can have it.

    Raises:
        StudyError: where there is none, and where the study can't have it.
    """
    kind = find_kind(name)
    if obstacle := _obstacle(spec, kind):
        raise StudyError(obstacle)
    return kind


def label(baseline: BaselineRow) -> str:
    """A baseline's title and, where it wasn't made with the defaults, with what: "TIES (keep 0.5)"."""
    kind = find_kind(baseline.name)
    changed = [
        f"{name.replace('_', ' ')} {'all' if value is None else f'{value:g}'}"
        for name, value in baseline.settings.items()
        if value != kind.settings[name]
    ]
    return f"{kind.title} ({', '.join(changed)})" if changed else kind.title


def check_settings(kind: BaselineKind, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``settings`` completed by the defaults, as numbers of the defaults' types.

    Raises:
        StudyError: for a name that the baseline doesn't know, and for what isn't such a number.
        SearchError: for a seed that a random number generator doesn't take.
    """
    for name in settings:
        if name not in kind.settings:
            known = ", ".join(kind.settings)
            raise StudyError(
                f"{kind.title} has no setting '{name}': "
                + (f"it has {known}." if known else "there is nothing to set.")
            )
    numbers = {
        name: _number(kind, name, settings.get(name, default)) for name, default in kind.settings.items()
    }
    seed = numbers.get("seed")
    if isinstance(seed, int):
        check_seed(seed)
    return numbers


def _number(kind: BaselineKind, name: str, value: Any) -> float | int | None:  # noqa: ANN401 - a person's input
    default = kind.settings[name]
    if value is None and (default is None or name == "examples"):
        return None
    wanted = int if isinstance(default, int) or name == "examples" else float
    try:
        number = wanted(value)
        if number == float(value) and abs(number) != float("inf"):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    what = "whole number" if wanted is int else "number"
    raise StudyError(f"{kind.title} can't be made with {name} = {value!r}: give a {what}.")
