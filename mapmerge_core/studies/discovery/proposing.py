"""A study of what a folder holds, proposed without loading a model: only names, JSON and headers are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.methods.catalogue import default_points
from mapmerge_core.studies.discovery.folder_contents import Found, Model, look_into
from mapmerge_core.studies.discovery.guessing import Guess, guess_family
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.discovery.pairing import pair, short_names
from mapmerge_core.files import absolute
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import StudySpec, TaskSpec, Transform
from mapmerge_core.studies.config.study_file import STUDY_FILE, StudyFile, read_study_file
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families import family_info
from mapmerge_core.weights.io.hub import HubRef, parse_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.methods.catalogue import MethodName

_PRETRAINED = re.compile(
    r"(^|[^a-z])(pre-?_?trained|base|zero-?_?shot|init|initial|original)([^a-z]|$)", re.IGNORECASE
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A study that a folder suggests.

    Attributes:
        name: The study's name.
        family: See ``StudySpec``; "" where it can't be told.
        architecture: See ``StudySpec``; "" where it can't be told, or isn't needed.
        pretrained: What the others were fine-tuned from; None where it can't be told.
        tasks: A checkpoint each, and the data whose name fits; None for those for which none does.
        transform: Of a study file.
        options: Of a study file.
        method: What to run.
        settings: How; None where there are too few tasks.
        notes: Sentences that say what was guessed, for a person to check.
        missing: Sentences that say what a person must still choose; empty where the study is complete.
    """

    name: str
    family: str = ""
    architecture: str = ""
    pretrained: Path | HubRef | None = None
    tasks: tuple[TaskSpec, ...] = ()
    transform: Transform | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    method: MethodName = "map"
    settings: RunSettings | None = None
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def study_file(self) -> StudyFile:
        """The study, once nothing is missing.

        Raises:
            StudyError: The first of what is missing.
        """
        if self.missing or self.pretrained is None or self.settings is None:
            raise StudyError(next(iter(self.missing), "The study isn't complete: choose what is missing."))
        spec = StudySpec(
            family=self.family,
            architecture=self.architecture,
            pretrained=self.pretrained,
            tasks=self.tasks,
            transform=self.transform,
            options=self.options,
        )
        return StudyFile(name=self.name, spec=spec, method=self.method, settings=self.settings)


def propose(folder: Path | str) -> Proposal:
    """Proposes a study of a folder's manifest, its study file, or else of the models and datasets in it.

    Raises:
        StudyError: There is no such folder, it can't be read, or its manifest or study file isn't good.
    """
    folder = absolute(folder)
    if not folder.is_dir():
        raise StudyError(f"There is no folder {folder}: choose one that holds models.")
    if (folder / "manifest.json").is_file():
        spec = spec_from_manifest(folder)
        settings = RunSettings(default_points("map", len(spec.tasks)))
        study = StudyFile(name=folder.name, spec=spec, method="map", settings=settings)
        return _complete(study, "All is as the folder's manifest.json says.")
    if (folder / STUDY_FILE).is_file():
        return _complete(
            read_study_file(folder / STUDY_FILE), f"All is as the folder's {STUDY_FILE} says.", folder.name
        )
    try:
        found = look_into(folder)
    except OSError as error:
        raise StudyError(f"{folder} can't be read: {error.strerror or error}.") from error
    return _guessed(folder, found)


def _complete(study: StudyFile, note: str, name: str = "") -> Proposal:
    spec = study.spec
    return Proposal(
        name=study.name or name,
        family=spec.family,
        architecture=spec.architecture,
        pretrained=spec.pretrained,
        tasks=spec.tasks,
        transform=spec.transform,
        options=spec.options,
        method=study.method,
        settings=study.settings,
        notes=(note,),
    )


def _guessed(folder: Path, found: Found) -> Proposal:
    pairs = pair([model.name for model in found.models], found.data)
    pretrained, base, notes = _pretrained(found.models, pairs)
    finetuned = [model for model in found.models if model is not base]
    data = {model.name: pairs[model.name] for model in finetuned if model.name in pairs}
    if data:
        matched = ", ".join(f"{name} with {path.name}" for name, path in data.items())
        notes.append(f"Models and datasets go together by their names: {matched}.")
    if left := [path.name for path in found.data if path not in data.values()]:
        notes.append(f"No model's name fits the data {', '.join(left)}.")
    tasks = _tasks(finetuned, {name: (path, found.data[path]) for name, path in data.items()})
    missing = []
    if pretrained is None:
        missing.append("Say which model the others were fine-tuned from.")
    guess = guess_family(folder, found, base, finetuned) if found.models else Guess("", "", ())
    notes += guess.notes
    if not guess.family:
        missing.append("Say which family of models these are.")
    elif family_info(guess.family).needs_architecture and not guess.architecture:
        missing.append("Say which architecture the models have.")
    if len(tasks) < 2:
        missing.append(f"Add fine-tuned models: a study merges two or more, and {folder} holds {len(tasks)}.")
    missing += [f"Choose the data that '{task.name}' is measured on." for task in tasks if task.data is None]
    return Proposal(
        name=folder.name,
        family=guess.family,
        architecture=guess.architecture,
        pretrained=pretrained,
        tasks=tuple(tasks),
        settings=RunSettings(default_points("map", len(tasks))) if len(tasks) >= 2 else None,
        notes=tuple(notes),
        missing=tuple(missing),
    )


def _pretrained(
    models: Sequence[Model], pairs: Mapping[str, Path]
) -> tuple[Path | HubRef | None, Model | None, list[str]]:
    """The pre-trained model, which of the folder's models it is, if any, and what was guessed."""
    said = {model.base for model in models if model.base}
    if len(said) == 1 and any(model.is_adapter for model in models):
        [base] = said
        return _base_of_adapters(base, models)
    named = [model for model in models if _PRETRAINED.search(model.name) and not model.is_adapter]
    if len(named) == 1:
        note = f"{named[0].name} is taken for the pre-trained model, by its name."
        return named[0].path, named[0], [note]
    alone = [model for model in models if model.name not in pairs and not model.is_adapter]
    if len(alone) == 1 and len(pairs) >= 2:
        note = f"{alone[0].name} is taken for the pre-trained model, for no data has its name."
        return alone[0].path, alone[0], [note]
    if len(said) == 1 and _HUB_NAME.fullmatch(base := next(iter(said))) and len(models) >= 2:
        return _reference(base), None, [f"The models' configurations say that they started from {base}."]
    return None, None, []


def _base_of_adapters(
    base: str, models: Sequence[Model]
) -> tuple[Path | HubRef | None, Model | None, list[str]]:
    """The model that adapters name: a folder beside them of that name, else one on the hub."""
    whole = [model for model in models if not model.is_adapter]
    last = re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    beside = [model for model in whole if model.path.name == last or model.path == Path(base)]
    if beside or len(whole) == 1:
        model = beside[0] if beside else whole[0]
        return model.path, model, [f"The adapters' model {base} is taken to be {model.name}."]
    if Path(base).is_absolute() and Path(base).is_dir():
        return Path(base), None, [f"The adapters name {base} as their model."]
    if _HUB_NAME.fullmatch(base):
        return _reference(base), None, [f"The adapters name {base} on the hub as their model."]
    return None, None, [f"The adapters name {base} as their model, which isn't there."]


def _reference(name: str) -> HubRef | None:
    try:
        source = parse_source(f"hf://{name}")
    except MapMergeError:
        return None
    return source if isinstance(source, HubRef) else None


def _tasks(models: Sequence[Model], data: Mapping[str, tuple[Path, str]]) -> list[TaskSpec]:
    """A task for each model, called as its dataset is, or by what is its own in the model's name."""
    short = short_names([model.name for model in models])
    names = [data[model.name][1] if model.name in data else short[model.name] for model in models]
    return [
        TaskSpec(
            model.name if names.count(name) > 1 or name == "pretrained" else name,
            model.path,
            DataSource(path=data[model.name][0]) if model.name in data else None,
        )
        for model, name in zip(models, names, strict=True)
    ]
