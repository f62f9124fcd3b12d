"""A study as a YAML file: what it is made of and how it is run, for a person to write, share and keep.

Reading one imports nothing heavy and opens no other file. Its errors name the file, the line and the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.files import absolute, write_atomically
from mapmerge_core.registries import MERGES, METHODS
from mapmerge_core.settings import changed, make
from mapmerge_core.studies.config.run import RunConfig
from mapmerge_core.studies.config.study import PlacedError, StudyConfig, TaskConfig
from mapmerge_core.studies.config.yaml_text import MAX_BYTES, Lines, NotYaml, read_yaml, write_yaml
from mapmerge_core.tasks.data_source import DataSource

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

STUDY_FILE = "study.yaml"
"""What a folder's study file is called."""

_STUDY_FIELDS = ("name", "family", "architecture", "pretrained", "models", "tasks", "options", "run")
_RUN_FIELDS = ("merge", "method", "low", "high", "images", "link", "loss", "device", "precision", "vectors")
_COMPUTE_FIELDS = ("device", "precision", "vectors")
_TASK_FIELDS = (*TaskConfig.__dataclass_fields__, "checkpoint")


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """What a study file says.

    Attributes:
        name: The study's name; "" for one made from its tasks.
        config: What the study is made of.
        run: How to run it; MAP on task arithmetic where the file doesn't say.
    """

    name: str = ""
    config: StudyConfig
    run: RunConfig = field(default_factory=RunConfig)


def read_study_file(path: Path | str) -> StudyFile:
    """Read a study file; its paths are relative to its own folder.

    Raises:
        StudyError: It can't be read, or isn't a study; the sentence names file, line and field.
    """
    return parse_study(_read(path), absolute(path).parent, called=str(path))


def _read(path: Path | str) -> str:
    try:
        with absolute(path).open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror or error}.") from error
    if len(content) > MAX_BYTES:
        raise StudyError(f"{path} is larger than {MAX_BYTES // 1000} kB, so it is no study.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} isn't a study: it holds bytes that aren't text in UTF-8.") from error


def parse_study(text: str, folder: Path | str, *, called: str = "") -> StudyFile:
    """Read the text of a study file.

    Args:
        text: YAML.
        folder: What its paths are relative to.
        called: What errors call the file; "" to begin with the line.

    Raises:
        StudyError: It isn't a study; the sentence names line and field.
    """
    try:
        values, lines = read_yaml(text)
    except NotYaml as error:
        raise StudyError(f"{_where(called, error.line)}: {error}") from error
    if not isinstance(values, dict):
        raise StudyError(f"{_where(called, None)}: it should hold fields such as 'pretrained' and 'tasks'.")
    return _Reader(absolute(folder), called, lines).study(values)


def config_of(values: dict[str, Any], folder: Path | str, *, called: str) -> StudyConfig:
    """Read what a study is made of from the plain values of a study file (otherwise as `parse_study`)."""
    return _Reader(absolute(folder), called, Lines({})).config(values)


def study_text(study_file: StudyFile, folder: Path | str, before: str = "") -> str:
    """Return a study as the text of a study file, from which `parse_study` reads the same study.

    Args:
        study_file: The study.
        folder: Where the file will lie; paths are relative to it where they lie below.
        before: The text that it takes the place of, whose comments are kept.
    """
    folder = absolute(folder)
    config = study_file.config
    values = {"name": study_file.name, **config.to_dict()}
    values["pretrained"] = _relative(config.pretrained, folder)
    values["models"] = {name: _relative(place, folder) for name, place in config.models.items()}
    if config.architecture.endswith(".json"):
        values["architecture"] = _relative(Path(config.architecture), folder)
    for task, task_values in zip(config.tasks, values["tasks"], strict=True):
        if task.data is not None:
            data = task.data.to_dict()
            for name in ("path", "class_names", "templates"):
                if isinstance(place := getattr(task.data, name), Path):
                    data[name] = _relative(place, folder, name)
            task_values["data"] = data["path"] if list(data) == ["path"] else data
    values["run"] = _run_values(study_file.run)
    return write_yaml({name: values[name] for name in _STUDY_FIELDS if values.get(name)}, before)


def write_study_file(path: Path | str, study_file: StudyFile) -> None:
    """Write a study file; the comments of one that is there are kept.

    Raises:
        StudyError: It can't be written; a file that was there before is then as it was.
    """
    file = absolute(path)
    try:
        before = _read(file) if file.is_file() else ""
        with write_atomically(file) as beside:
            beside.write_text(study_text(study_file, file.parent, before), encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a path in it isn't text"
        raise StudyError(f"{path} can't be written: {reason}.") from error


def _run_values(run: RunConfig) -> dict[str, Any]:
    """Return what differs from the usual run."""
    values: dict[str, Any] = {}
    for what, registry in (("merge", MERGES), ("method", METHODS)):
        kind = registry[getattr(run, what)]
        settings = changed(make(kind.Settings, getattr(run, f"{what}_settings"), what=kind.title))
        values[what] = {"name": kind.name, **settings} if settings else kind.name
    usual = RunConfig()
    others = {name: getattr(run, name) for name in _RUN_FIELDS if name not in ("merge", "method", *_COMPUTE_FIELDS)}
    others |= {name: getattr(run.compute, name) for name in _COMPUTE_FIELDS}
    default = {name: getattr(usual.compute if name in _COMPUTE_FIELDS else usual, name) for name in others}
    return values | {name: value for name, value in others.items() if value != default[name]}


def _relative(place: object, folder: Path, setting: str = "path") -> str:
    """Return a path as the file says it: relative where that reads back as the same path."""
    if not isinstance(place, Path) or not place.is_relative_to(folder) or place == folder:
        return str(place)
    short = place.relative_to(folder).as_posix()
    if ":" in short or short.startswith("~"):
        return str(place)
    read_back = getattr(DataSource.from_dict({"path": "x", setting: short}), setting)
    return short if isinstance(read_back, Path) else str(place)


def _where(called: str, line: int | None) -> str:
    if line is None:
        return called or "The study"
    return f"{called}, line {line}" if called else f"Line {line}"


@dataclass(frozen=True)
class _Reader:
    """Makes a study of plain values.

    Attributes:
        folder: What paths are relative to.
        called: What errors call the file.
        lines: Where each field is.
    """

    folder: Path
    called: str
    lines: Lines

    def study(self, values: dict[str, Any]) -> StudyFile:
        config = self.config(values)
        run = self._run(values.get("run"))
        try:
            run.check(config)
        except PlacedError as error:
            raise self._error(str(error), "run", *error.place) from error
        except MapMergeError as error:
            raise self._error(str(error), "run", "method") from error
        return StudyFile(name=" ".join((values.get("name") or "").split()), config=config, run=run)

    def config(self, values: dict[str, Any]) -> StudyConfig:
        name = values.get("name") or ""
        if not isinstance(name, str):
            raise self._error(f"name should be text, not {_given(name)}: put it in quotes.", "name")
        self._check_fields(values, (), "a study", _STUDY_FIELDS)
        values = self._with_models(values)
        try:
            return TypeAdapter(StudyConfig).validate_python(
                {key: value for key, value in values.items() if key not in ("name", "run")},
                context={"folder": self.folder},
            )
        except PlacedError as error:
            raise self._error(str(error), *error.place) from error
        except ValidationError as error:
            raise self._explained(error) from error

    def _with_models(self, values: dict[str, Any]) -> dict[str, Any]:
        """Let a task's checkpoint declare a model of the task's name."""
        tasks, models = values.get("tasks"), values.get("models")
        if models is not None and not isinstance(models, dict):
            raise self._error("models should hold names with a checkpoint each.", "models")
        named, changed_tasks = dict(models or {}), []
        models = dict(named)
        for i, task in enumerate(tasks if isinstance(tasks, list) else []):
            if not isinstance(task, dict):
                raise self._error(f"tasks[{i}] should be a task, with {', '.join(_TASK_FIELDS)}.", "tasks", i)
            self._check_fields(task, ("tasks", i), "a task", _TASK_FIELDS)
            entry = dict(task)
            if "checkpoint" in entry:
                checkpoint, name = entry.pop("checkpoint"), entry.get("name")
                if "model" in entry or (isinstance(name, str) and name in named):
                    raise self._error(
                        f"The task '{name}' has a 'checkpoint', and its model is named, too: keep one.",
                        *("tasks", i, "checkpoint"),
                    )
                if isinstance(name, str):
                    models[name], entry["model"] = checkpoint, name
            changed_tasks.append(entry)
        if isinstance(tasks, list):
            values = values | {"tasks": changed_tasks}
        return values | {"models": models}

    def _run(self, values: Any) -> RunConfig:  # noqa: ANN401 - whatever the file holds
        if values is None:
            return RunConfig()
        if not isinstance(values, dict):
            raise self._error(f"run should be a run, with {', '.join(_RUN_FIELDS)}.", "run")
        self._check_fields(values, ("run",), "a run", _RUN_FIELDS)
        flat = {name: value for name, value in values.items() if name not in ("merge", "method", *_COMPUTE_FIELDS)}
        flat["compute"] = {name: values[name] for name in _COMPUTE_FIELDS if name in values}
        for what in ("merge", "method"):
            named = values.get(what)
            if isinstance(named, Mapping):
                settings = dict(named)
                flat[what] = settings.pop("name", getattr(RunConfig(), what))
                flat[f"{what}_settings"] = settings
            elif named is not None:
                flat[what] = named
        try:
            return TypeAdapter(RunConfig).validate_python(flat)
        except PlacedError as error:
            raise self._error(str(error), "run", *error.place) from error
        except ValidationError as error:
            raise self._explained(error, "run") from error

    def _check_fields(
        self, values: Mapping[str, Any], place: tuple[str | int, ...], what: str, fields: tuple[str, ...]
    ) -> None:
        for name in values:
            if name not in fields:
                field = _shown((*place, name))
                raise self._error(f"{field} isn't a field of {what}: it may have {', '.join(fields)}.", *place, name)

    def _explained(self, error: ValidationError, *before: str) -> StudyError:
        """Return the first of pydantic's errors as a sentence; what is left out comes last, it may be misspelt."""
        problems = sorted(
            error.errors(include_url=False),
            key=lambda problem: (problem["type"] == "missing", self.lines.of((*before, *problem["loc"])) or 0),
        )
        first = problems[0]
        place = tuple(part for part in (*before, *first["loc"]) if part != "compute")  # which no file has
        sentence = _sentence(first, place)
        if len(problems) > 1 and first["type"] != "sentence":
            sentence = f"{sentence.removesuffix('.')} (and {len(problems) - 1} more)."
        return self._error(sentence, *place)

    def _error(self, sentence: str, *place: str | int) -> StudyError:
        line = self.lines.of(place) if place else None
        return StudyError(f"{_where(self.called, line)}: {sentence}")


_SHOULD = {
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "bool_type": "should be true or false",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "dict_type": "should hold fields",
    "mapping_type": "should hold fields",
    "dataclass_type": "should hold fields",
}


def _sentence(problem: ErrorDetails, place: tuple[str | int, ...]) -> str:
    """Return one of pydantic's errors as a sentence that names the field."""
    kind, field = problem["type"], _shown(place)
    if kind == "sentence":
        return str(problem["ctx"]["sentence"])
    if kind == "empty":
        return f"{field} is empty: fill it in, or leave the field out."
    if kind == "missing":
        return f"{_shown(place[:-1]) or 'the study'} has no '{place[-1]}': add it."
    given = problem["input"]
    but = f", not {_given(given)}" if not isinstance(given, list | dict) and given is not None else ""
    if kind == "literal_error":
        return f"{field} should be {problem['ctx']['expected']}{but}."
    quotes = ": put it in quotes" if kind == "string_type" and but else ""
    return f"{field} {_SHOULD.get(kind, problem['msg'])}{but}{quotes}."


def _given(value: Any) -> str:  # noqa: ANN401
    return json.dumps(value, default=str, ensure_ascii=False)[:60]


def _shown(place: tuple[str | int, ...]) -> str:
    """Return a place as text, such as ``tasks[1].data.path``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")
