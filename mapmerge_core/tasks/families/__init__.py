"""Families of models: each is one module; this one finds them by name and imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.metric import (
    ACCURACY,
    F1,
    LOSS,
    MEAN_CLASS_ACCURACY,
    PERPLEXITY,
    TOP5_ACCURACY,
    Metric,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mapmerge_core.tasks.families.base import Family
    from mapmerge_core.tasks.task import Task


@dataclass(frozen=True)
class FamilyInfo:
    """What is known of a family before its module is imported.

    Attributes:
        title: What people call it.
        place: ``module:class``.
        examples: What its datasets hold; None for a person's own, which brings its own data.
        metrics: What it can measure, the usual one first; empty for a person's own, which says itself.
        needs_architecture: Whether a study names one: otherwise the pre-trained model's folder tells.
        gives_logits: See ``Family.gives_logits``.
    """

    title: str
    place: str
    examples: Literal["images", "texts"] | None
    metrics: tuple[Metric, ...]
    needs_architecture: bool = False
    gives_logits: bool = False

    @property
    def metric(self) -> Metric | None:
        """What is measured unless a study says otherwise; None where a study must say."""
        return self.metrics[0] if self.metrics else None


_OF_IMAGES = (ACCURACY, TOP5_ACCURACY, MEAN_CLASS_ACCURACY, F1, LOSS)

FAMILIES: Mapping[str, FamilyInfo] = {
    "clip": FamilyInfo(
        "CLIP zero-shot (open_clip)",
        "mapmerge_core.tasks.families.clip:ClipZeroShot",
        "images",
        _OF_IMAGES,
        needs_architecture=True,
        gives_logits=True,
    ),
    "clip_transformers": FamilyInfo(
        "CLIP zero-shot (transformers)",
        "mapmerge_core.tasks.families.clip_transformers:TransformersClip",
        "images",
        _OF_IMAGES,
        gives_logits=True,
    ),
    "classifier": FamilyInfo(
        "Classifier with heads (timm)",
        "mapmerge_core.tasks.families.classifier:ClassifierWithHeads",
        "images",
        _OF_IMAGES,
        needs_architecture=True,
    ),
    "language": FamilyInfo(
        "Causal language model (transformers)",
        "mapmerge_core.tasks.families.language:CausalLanguageModel",
        "texts",
        (LOSS, PERPLEXITY),
    ),
}

_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def family_info(name: str) -> FamilyInfo:
    """What is known of a family, one of `FAMILIES` or a person's own ``module:class`` or ``module:function``.

    Raises:
        MapMergeError: The name is neither.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    if _PLACE.fullmatch(name):
        return FamilyInfo(name, name, None, ())
    raise MapMergeError(
        f"There is no family of models '{name}': choose {', '.join(FAMILIES)}, or name your own as "
        "module:function."
    )


def make_family(
    name: str,
    architecture: str,
    pretrained: Path,
    options: Mapping[str, Any],
    tasks: Sequence[Task],
) -> Family:
    """Imports a family and makes it of a pre-trained model.

    A person's own code is imported from Python's path and only here: reading or showing a study runs
    nothing.

    Args:
        name: As for `family_info`.
        architecture: An architecture's name or configuration file; ``""`` where the folder tells.
        pretrained: A local checkpoint or folder.
        options: The family's own settings.
        tasks: The study's tasks.

    Raises:
        MapMergeError: The module or its attribute is missing, or a setting is unknown.
        CheckpointError: The model can't be made.
    """
    family: Any = family_class(name)
    for option in options:
        if option not in family.options:
            raise MapMergeError(
                f"This family of models has no setting '{option}': "
                + (f"choose from {', '.join(family.options)}." if family.options else "it has none.")
            )
    found = _imported(family_info(name).place)
    if found is not family:
        made: Family = family(found, pretrained, tasks, name=name, **options)
        return made
    try:
        made = family(architecture, pretrained, **options)
    except MapMergeError:
        raise
    except Exception as error:
        if name in FAMILIES:
            raise
        raise MapMergeError(
            f"'{name}' can't be made, it raises {type(error).__name__}: {' '.join(str(error).split())}."
        ) from error
    return made


def family_class(name: str) -> type[Family]:
    """Imports a family's class; that of a person's function is ``CallableFamily``.

    Raises:
        MapMergeError: The module or its attribute is missing, or is neither a function nor a family.
    """
    from mapmerge_core.tasks.families.base import Family

    found = _imported(family_info(name).place)
    if isinstance(found, type) and issubclass(found, Family):
        return found
    if isinstance(found, type) or not callable(found):
        raise MapMergeError(f"'{name}' is no function and no family of models: name one of these.")
    from mapmerge_core.tasks.families.custom import CallableFamily

    made: type[Family] = CallableFamily
    return made


def _imported(place: str) -> Any:  # noqa: ANN401 - whatever a person named
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MapMergeError(
            f"The module '{error.name}' of '{place}' is not on Python's path: install it, or set PYTHONPATH."
        ) from error
    except AttributeError as error:
        raise MapMergeError(f"The module '{module}' has no '{attribute}': check the name.") from error
    except Exception as error:  # a person's module may fail in any way
        raise MapMergeError(
            f"The module '{module}' can't be imported, it raises {type(error).__name__}: "
            f"{' '.join(str(error).split())}."
        ) from error
