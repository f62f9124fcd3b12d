"""A study of what a folder holds, proposed without loading a model: only names, JSON and headers are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.files import absolute
from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.config.run import RunConfig
from mapmerge_core.studies.config.study import RESERVED, StudyConfig, TaskConfig
from mapmerge_core.studies.config.study_file import STUDY_FILE, StudyFile, read_study_file
from mapmerge_core.studies.discovery.folder_contents import FolderContents, Model, look_into
from mapmerge_core.studies.discovery.guessing import Guess, guess_family
from mapmerge_core.studies.discovery.pairing import pair, short_names
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families import find_family
from mapmerge_core.weights.io.hub import HubRef, parse_source

_PRETRAINED = re.compile(r"(^|[^a-z])(pre-?_?trained|base|zero-?_?shot|init|initial|original)([^a-z]|$)", re.IGNORECASE)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A study that a folder suggests.

    Attributes:
        name: The study's name.
        family: See `StudyConfig`; "" where it can't be told.
        architecture: See `StudyConfig`; "" where it can't be told, or isn't needed.
        pretrained: What the others were fine-tuned from; None where it can't be told.
        models: The fine-tuned models by name.
        tasks: One for each model, with the data whose name fits, None where none does; then those without a model.
        options: Of a study file.
        run: What to run.
        notes: Sentences that say what was guessed, for a person to check.
        missing: Sentences that say what a person must still choose; empty where the study is complete.
    """

    name: str
    family: str = ""
    architecture: str = ""
    pretrained: Path | HubRef | None = None
    models: Mapping[str, Path | HubRef] = field(default_factory=dict)
    tasks: tuple[TaskConfig, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def study_file(self) -> StudyFile:
        """Return the study, once nothing is missing.

        Raises:
            StudyError: Something is; the sentence says what.
        """
        if self.missing or self.pretrained is None:
            raise StudyError(next(iter(self.missing), "The study isn't complete: choose what is missing."))
        config = StudyConfig(
            family=self.family,
            architecture=self.architecture,
            pretrained=self.pretrained,
            models=self.models,
            tasks=self.tasks,
            options=self.options,
        )
        return StudyFile(name=self.name, config=config, run=self.run)


def propose(folder: Path | str) -> Proposal:
    """Propose a study of a folder's manifest, its study file, or else of the models and datasets in it.

    Raises:
        StudyError: There is no such folder, it can't be read, or its manifest or study file isn't good.
    """
    folder = absolute(folder)
    if not folder.is_dir():
        raise StudyError(f"There is no folder {folder}: choose one that holds models.")
    if (folder / "manifest.json").is_file():
        study = StudyFile(name=folder.name, config=config_from_manifest(folder))
        return _complete(study, "All is as the folder's manifest.json says.")
    if (folder / STUDY_FILE).is_file():
        return _complete(
            read_study_file(folder / STUDY_FILE), f"All is as the folder's {STUDY_FILE} says.", folder.name
        )
    try:
        contents = look_into(folder)
    except OSError as error:
        raise StudyError(f"{folder} can't be read: {error.strerror or error}.") from error
    return _guessed(folder, contents)


def _complete(study: StudyFile, note: str, name: str = "") -> Proposal:
    config = study.config
    return Proposal(
        name=study.name or name,
        family=config.family,
        architecture=config.architecture,
        pretrained=config.pretrained,
        models=config.models,
        tasks=config.tasks,
        options=config.options,
        run=study.run,
        notes=(note,),
    )


def _guessed(folder: Path, contents: FolderContents) -> Proposal:
    pairs = pair([model.name for model in contents.models], contents.data)
    pretrained, base, notes = _pretrained(contents.models, pairs)
    finetuned = [model for model in contents.models if model is not base]
    data = {model.name: pairs[model.name] for model in finetuned if model.name in pairs}
    if data:
        matched = ", ".join(f"{name} with {path.name}" for name, path in data.items())
        notes.append(f"Models and datasets go together by their names: {matched}.")
    models, tasks = _models_and_tasks(finetuned, {name: (path, contents.data[path]) for name, path in data.items()})
    unmatched = [path for path in contents.data if path not in data.values()]
    if kept := _skills_to_keep(unmatched, contents, tasks):
        names = ", ".join(task.name for task in kept)
        notes.append(f"No model is called like {names}: a merged model is measured on it as a skill to keep.")
        tasks += kept
        unmatched = [path for path in unmatched if path not in [task.data and task.data.path for task in kept]]
    if unmatched:
        notes.append(f"No model's name fits the data {', '.join(path.name for path in unmatched)}.")
    missing = []
    if pretrained is None:
        missing.append("Say which model the others were fine-tuned from.")
    guess = guess_family(folder, contents, base, finetuned) if contents.models else Guess("", "", ())
    notes += guess.notes
    if not guess.family:
        missing.append("Say which family of models these are.")
    elif find_family(guess.family).needs_architecture and not guess.architecture:
        missing.append("Say which architecture the models have.")
    if not models:
        missing.append(f"Add fine-tuned models: a study merges one or more, and {folder} holds none.")
    missing += [f"Choose the data that '{task.name}' is measured on." for task in tasks if task.data is None]
    return Proposal(
        name=folder.name,
        family=guess.family,
        architecture=guess.architecture,
        pretrained=pretrained,
        models=models,
        tasks=tasks,
        notes=tuple(notes),
        missing=tuple(missing),
    )


def _pretrained(
    models: Sequence[Model], pairs: Mapping[str, Path]
) -> tuple[Path | HubRef | None, Model | None, list[str]]:
    """Return the pre-trained model, which of the folder's models it is, if any, and notes on what was guessed."""
    bases = {model.base for model in models if model.base}
    if len(bases) == 1 and any(model.is_adapter for model in models):
        [base] = bases
        return _base_of_adapters(base, models)
    named = [model for model in models if _PRETRAINED.search(model.name) and not model.is_adapter]
    if len(named) == 1:
        note = f"{named[0].name} is taken for the pre-trained model, by its name."
        return named[0].path, named[0], [note]
    alone = [model for model in models if model.name not in pairs and not model.is_adapter]
    if len(alone) == 1 and len(pairs) >= 2:
        note = f"{alone[0].name} is taken for the pre-trained model, for no data has its name."
        return alone[0].path, alone[0], [note]
    if len(bases) == 1 and _HUB_NAME.fullmatch(base := next(iter(bases))) and len(models) >= 2:
        return _reference(base), None, [f"The models' configurations say that they started from {base}."]
    return None, None, []


def _base_of_adapters(base: str, models: Sequence[Model]) -> tuple[Path | HubRef | None, Model | None, list[str]]:
    """Find the model that adapters name: a folder beside them of that name, else one on the hub."""
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


def _models_and_tasks(
    models: Sequence[Model], data: Mapping[str, tuple[Path, str]]
) -> tuple[dict[str, Path | HubRef], tuple[TaskConfig, ...]]:
    """Name each model and its task as its dataset is called, or by what is its own in the model's name."""
    short = short_names([model.name for model in models])
    wanted = [data[model.name][1] if model.name in data else short[model.name] for model in models]
    names = [
        model.name if wanted.count(name) > 1 or name.lower() in RESERVED else name
        for model, name in zip(models, wanted, strict=True)
    ]
    tasks = [
        TaskConfig(name=name, data=DataSource(path=data[model.name][0]) if model.name in data else None, model=name)
        for model, name in zip(models, names, strict=True)
    ]
    return {name: model.path for model, name in zip(models, names, strict=True)}, tuple(tasks)


def _skills_to_keep(
    unmatched: Sequence[Path], contents: FolderContents, tasks: Sequence[TaskConfig]
) -> tuple[TaskConfig, ...]:
    """Make tasks without a model of datasets that lie beside the models' own, once each model has its own."""
    paths = [task.data.path for task in tasks if task.data is not None]
    if len(paths) < len(tasks):
        return ()
    places = {(path.parent, path.suffix) for path in paths if isinstance(path, Path)}
    taken = {task.name for task in tasks}
    return tuple(
        TaskConfig(name=contents.data[path], data=DataSource(path=path))
        for path in unmatched
        if (path.parent, path.suffix) in places
        and contents.data[path] not in taken
        and contents.data[path].lower() not in RESERVED
    )
