"""Why models and datasets don't fit together, in full, where an error names the first reason only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.inputs.checking import unreadable_images
from mapmerge_core.tasks.families import find_family

if TYPE_CHECKING:
    from mapmerge_core.studies.config import StudyConfig


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a study.

    Attributes:
        problems: (model, what doesn't fit) for each tensor that is missing, too many or of another shape.
        corrupt: The tasks whose datasets hold images that can't be read, and that can do without these.
    """

    problems: tuple[tuple[str, str], ...]
    corrupt: tuple[str, ...]


def diagnose(config: StudyConfig) -> Diagnosis:
    """Look at each model and dataset by itself; what can't be read at all is left to the check's error."""
    corrupt = tuple(unreadable_images(config))
    return Diagnosis(() if corrupt else _problems(config), corrupt)


def _problems(config: StudyConfig) -> tuple[tuple[str, str], ...]:
    from mapmerge_core.weights.io.hub import fetch  # noqa: PLC0415 - these import torch
    from mapmerge_core.weights.io.inspection import inspect_models  # noqa: PLC0415

    try:
        models = {name: fetch(place) for name, place in config.models.items()}
        pretrained = fetch(config.pretrained)
        heads = find_family(config.family).left_out(config.architecture, pretrained)
        inspection = inspect_models(models, pretrained, without=heads)
    except (MapMergeError, OSError):
        return ()
    reports = [*([inspection.pretrained] if inspection.pretrained else []), *inspection.models]
    return tuple(
        (report.name, line)
        for report in reports
        for line in (*report.problems, *(f"holds NaN or infinity in '{key}'" for key in report.not_finite))
    )
