"""A study as a YAML file: what it is made of and how it is run, for a person to write, share and keep.

Reading one imports nothing heavy and opens no other file. Its errors name the file, the line and the field.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.methods.catalogue import TITLES, MethodName, default_points
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.files import absolute
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import StudySpec, TaskSpec, Transform
from mapmerge_core.studies.config.study_schema import USED_BY, StudyFields, explained
from mapmerge_core.studies.config.yaml_lines import MAX_BYTES, Lines, NotYaml, dump_yaml, read_yaml
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families import family_info
from mapmerge_core.tasks.metric import Metric, find_metric
from mapmerge_core.weights.io.hub import parse_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mapmerge_core.studies.config.study_schema import DataFields, MethodFields, MetricFields, TaskFields
    from mapmerge_core.weights.io.hub import HubRef

STUDY_FILE = "study.yaml"
"""What a folder's study file is called."""


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """What a study file says.

    Attributes:
        name: The study's name; "" for one made from its tasks.
        spec: What the study is made of.
        method: What to run.
        settings: How to run it; the points are the paper's where the file doesn't say.
    """

    name: str = ""
    spec: StudySpec
    method: MethodName
    settings: RunSettings


def read_study_file(path: Path | str) -> StudyFile:
    """Reads a study file; its paths are relative to its own folder.

    Raises:
        StudyError: It can't be read, or isn't a study; the sentence names file, line and field.
    """
    file = absolute(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror or error}.") from error
    if len(content) > MAX_BYTES:
        raise StudyError(f"{path} is larger than {MAX_BYTES // 1_000_000} MB, so it is no study.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} isn't a study: it holds bytes that aren't text in UTF-8.") from error
    return parse_study(text, file.parent, called=str(path))


def parse_study(text: str, folder: Path | str, *, called: str = "") -> StudyFile:
    """Reads the text of a study file.

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
    try:
        said = StudyFields.model_validate(values)
    except ValidationError as error:
        # What is left out comes last: it may only be misspelt.
        problems = sorted(
            error.errors(include_url=False),
            key=lambda problem: (problem["type"] == "missing", lines.of(problem["loc"])),
        )
        sentence = explained(problems[0])
        if len(problems) > 1:
            sentence = f"{sentence.removesuffix('.')} (and {len(problems) - 1} more)."
        raise StudyError(f"{_where(called, lines.of(problems[0]['loc']))}: {sentence}") from error
    return _Reader(absolute(folder), called, lines).study(said)


def study_text(study_file: StudyFile, folder: Path | str) -> str:
    """A study as the text of a study file in ``folder``, with paths relative to it where they lie below.

    `parse_study` reads the same study from it.
    """
    folder = absolute(folder)
    spec = study_file.spec
    said = spec.to_dict()
    tasks = []
    for task, values in zip(spec.tasks, said["tasks"], strict=True):
        tasks.append(values | {"checkpoint": _relative(task.checkpoint, folder)})
        if task.data is not None:
            data = task.data.to_dict()
            for name in _PATHS:
                if isinstance(place := getattr(task.data, name), Path):
                    data[name] = _relative(place, folder, name)
            tasks[-1]["data"] = data["path"] if list(data) == ["path"] else data
    architecture = Path(spec.architecture) if spec.architecture.endswith(".json") else None
    values = {
        "name": study_file.name,
        "family": spec.family,
        "architecture": _relative(architecture, folder) if architecture else spec.architecture,
        "pretrained": _relative(spec.pretrained, folder),
        "transform": said.get("transform"),
        "options": said.get("options"),
        "tasks": tasks,
        "method": {"name": study_file.method} | _chosen(study_file.method, study_file.settings),
    }
    return dump_yaml({name: value for name, value in values.items() if value})


def write_study_file(path: Path | str, study_file: StudyFile) -> None:
    """Writes a study file.

    Raises:
        StudyError: It can't be written; a file that was there before is then as it was.
    """
    file = absolute(path)
    beside = file.with_name(f".{file.name}.part")
    try:
        beside.write_text(study_text(study_file, file.parent), encoding="utf-8")
        beside.replace(file)
    except (OSError, UnicodeEncodeError) as error:
        beside.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "a path in it isn't text"
        raise StudyError(f"{path} can't be written: {reason}.") from error


# Of a dataset's settings, those that may be files.
_PATHS = ("path", "class_names", "templates")


def _relative(place: Path | object, folder: Path, setting: str = "path") -> str:
    """A path as the file says it: relative where that reads back as the same path."""
    if not isinstance(place, Path) or not place.is_relative_to(folder) or place == folder:
        return str(place)
    short = place.relative_to(folder).as_posix()
    if ":" in short or short.startswith("~"):
        return str(place)
    read_back = getattr(DataSource.from_dict({"path": "x", setting: short}), setting)
    return short if isinstance(read_back, Path) else str(place)


def _chosen(method: MethodName, settings: RunSettings) -> dict[str, Any]:
    """The points, and what differs from the usual settings of the method."""
    usual = RunSettings(settings.points, training=Training())
    return {"points": settings.points} | {
        each.name: _plain(getattr(settings, each.name))
        for each in fields(RunSettings)
        if getattr(settings, each.name) not in (None, getattr(usual, each.name))
        and method in USED_BY.get(each.name, (method,))
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever settings hold
    if isinstance(value, Training):
        return {
            each.name: _plain(getattr(value, each.name))
            for each in fields(Training)
            if getattr(value, each.name) != each.default
        }
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, list | tuple) else value


def _where(called: str, line: int | None) -> str:
    if line is None:
        return called or "The study"
    return f"{called}, line {line}" if called else f"Line {line}"


@dataclass(frozen=True)
class _Reader:
    """Makes a study of checked fields.

    Attributes:
        folder: What paths are relative to.
        called: What errors call the file.
        lines: Where each field is.
    """

    folder: Path
    called: str
    lines: Lines

    def study(self, said: StudyFields) -> StudyFile:
        with self._at("family"):
            family_info(said.family)
        with self._at("architecture"):
            architecture = self._architecture(said.architecture or "")
        with self._at("pretrained"):
            pretrained = self._weights(said.pretrained)
        tasks = [self._task(task, place) for place, task in enumerate(said.tasks)]
        names = [task.name for task in tasks]
        twice = [("tasks", place, "name") for place, name in enumerate(names) if name in names[:place]]
        with self._at("transform"):
            transform = Transform(**said.transform.model_dump(exclude_none=True)) if said.transform else None
        with self._at(*(twice[0] if twice else ("tasks",) if len(tasks) < 2 else ())):
            spec = StudySpec(
                family=said.family,
                architecture=architecture,
                pretrained=pretrained,
                tasks=tuple(tasks),
                transform=transform,
                options=said.options or {},
            )
        with self._at("method"):
            method, settings = self._method(said.method, spec)
        return StudyFile(
            name=" ".join((said.name or "").split()), spec=spec, method=method, settings=settings
        )

    def _task(self, said: TaskFields, place: int) -> TaskSpec:
        with self._at("tasks", place, "metric"):
            metric = _metric(said.metric) if said.metric else None
        with self._at("tasks", place, "data"):
            data = self._data(said.data) if said.data else None
        with self._at("tasks", place, "checkpoint"):
            return TaskSpec(said.name, self._weights(said.checkpoint), data, metric)

    def _data(self, said: DataFields) -> DataSource:
        values = said.model_dump(exclude_none=True)
        for name in _PATHS:
            if str(values.get(name)).startswith("~"):
                values[name] = str(self._path(values[name]))
        # What it takes for a path is one.
        as_said = DataSource.from_dict(values)
        for name in _PATHS:
            if isinstance(getattr(as_said, name), Path):
                values[name] = self._path(values[name])
        return DataSource.from_dict(values)

    def _method(self, said: MethodFields | None, spec: StudySpec) -> tuple[MethodName, RunSettings]:
        given = said.model_dump(exclude_none=True, exclude={"name"}) if said else {}
        method: MethodName = (said and said.name) or "map"
        for name in given:
            if method not in USED_BY.get(name, (method,)):
                with self._at("method", name):
                    raise StudyError(
                        f"{TITLES[method]} has no use for '{name}': leave it out, or choose the method "
                        f"{' or '.join(USED_BY[name])}."
                    )
        if method == "pareto_merging":
            with self._at("method", "training"):
                given["training"] = Training(**given.get("training", {}))
        settings = RunSettings(**{"points": default_points(method, len(spec.tasks))} | given)
        settings.check(method, spec)
        return method, settings

    def _architecture(self, said: str) -> str:
        return str(self._path(said)) if said.endswith(".json") else said

    def _weights(self, said: str) -> Path | HubRef:
        source = parse_source(said)
        return self._path(said) if isinstance(source, Path) else source

    def _path(self, said: str) -> Path:
        try:
            return self.folder / Path(said).expanduser()
        except RuntimeError as error:
            raise StudyError(f"The path '{said}' can't be used: there is no such home directory.") from error

    @contextmanager
    def _at(self, *place: str | int) -> Iterator[None]:
        """Has an error say where it is, unless it says so already."""
        try:
            yield
        except _PlacedError:
            raise
        except MapMergeError as error:
            line = self.lines.of(place) if place else None
            raise _PlacedError(f"{_where(self.called, line)}: {error}") from error


class _PlacedError(StudyError):
    """An error that says where it is."""


def _metric(said: MetricFields) -> Metric:
    """A known metric by its name alone, or one of a person's own.

    Raises:
        StudyError: Of one's own it isn't said whether more is better, or the bounds are none.
        MapMergeError: It isn't known.
    """
    if said.maximize is None:
        if said.low is not None or said.high is not None:
            raise StudyError(f"The metric '{said.name}' has bounds, but no 'maximize': say true or false.")
        return find_metric(said.name)
    bounds = said.model_dump(include={"low", "high"}, exclude_none=True)
    metric = Metric(said.name, said.maximize, **bounds)
    if not metric.low < metric.high:
        raise StudyError(f"The metric '{said.name}' can't lie between {said.low:g} and {said.high:g}.")
    return metric
