"""What a study is made of: models, tasks and the metrics on them. These types are the study file's schema, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, PlainValidator, Strict, TypeAdapter, ValidationError, ValidationInfo
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.files import absolute
from mapmerge_core.merges.base import StudyFacts
from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families import find_family
from mapmerge_core.tasks.metrics.base import Metric
from mapmerge_core.tasks.objective import Objective, objectives_of
from mapmerge_core.weights.io.hub import HubRef, is_adapter, parse_source

CLOSED = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
"""Unknown fields are refused; `Text` and its like take no other type for theirs."""

Text = Annotated[str, Strict()]

RESERVED = ("pretrained", "all", "others", "mean", "worst")
"""Names that mean something in rules and sources, so that no task or model can have them."""
_FILES = ("path", "class_names", "templates")
"""Of a dataset's settings, those that may be files."""


class PlacedError(StudyError):
    """Something is wrong at one place of a study, which a file can show the line of.

    Args:
        message: One sentence.
        place: Keys and indices that lead there, such as ("tasks", 0, "name").
    """

    def __init__(self, message: str, *place: str | int) -> None:
        super().__init__(message)
        self.place = place


def as_pydantic(error: MapMergeError) -> PydanticCustomError:
    """Return an error to raise inside pydantic, which adds the place to its sentence."""
    return PydanticCustomError("sentence", "{sentence}", {"sentence": str(error)})


def _folder(info: ValidationInfo) -> Path:
    """Return the folder that relative paths are relative to: a study file's own."""
    folder: Path = (info.context or {}).get("folder") or Path.cwd()
    return folder


def _place(value: Any, info: ValidationInfo) -> Path | HubRef:  # noqa: ANN401 - whatever a file holds
    if not isinstance(value, str | Path | HubRef):
        raise PydanticCustomError("place_type", "should be the path of a file or folder, or a reference to a hub")
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("empty", "is empty")
    try:
        source = parse_source(value)
        return absolute(_folder(info) / source.expanduser()) if isinstance(source, Path) else source
    except RuntimeError as error:
        raise as_pydantic(StudyError(f"The path '{value}' can't be used ({error}): choose another.")) from error
    except MapMergeError as error:
        raise as_pydantic(error) from error


def _architecture(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
    if isinstance(value, str) and value.endswith(".json"):
        return str(_place(value, info))
    return value


def _data(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, dict):
        return value
    folder = _folder(info)
    try:
        source = DataSource.from_dict({name: _at(folder, name, setting) for name, setting in value.items()})
    except MapMergeError as error:
        raise as_pydantic(error) from error
    return source


def _at(folder: Path, name: str, value: Any) -> Any:  # noqa: ANN401
    """Return a dataset's setting; a file's path is taken from the folder."""
    if name not in _FILES or not isinstance(value, str) or "://" in value:
        return value
    # What a dataset takes for a path is one, but a shipped set of templates isn't.
    read = getattr(DataSource.from_dict({"path": "x", name: value}), name)
    return folder / Path(value).expanduser() if isinstance(read, Path) else value


def _metrics(value: Any) -> Any:  # noqa: ANN401
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(_metric(entry) for entry in listed)


def _metric(value: Any) -> Any:  # noqa: ANN401
    """Return a registered metric by its name, or one of a person's own from its direction and bounds."""
    try:
        if isinstance(value, str):
            return METRICS[value]
        if isinstance(value, dict):
            return _own_metric(value)
    except MapMergeError as error:
        raise as_pydantic(error) from error
    return value


def _own_metric(values: Mapping[str, Any]) -> Metric:
    for name in values:
        if name not in ("name", "maximize", "low", "high"):
            raise StudyError(f"A metric has no field '{name}': it may have name, maximize, low, high.")
    if not isinstance(values.get("name"), str) or not isinstance(values.get("maximize"), bool):
        raise StudyError("A metric of one's own needs a 'name' and 'maximize', true or false.")
    bounds = {end: values[end] for end in ("low", "high") if values.get(end) is not None}
    for end, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise StudyError(f"The bound '{end}' of the metric '{values['name']}' should be a number.")
    low, high = (float(bounds.get(end, usual)) for end, usual in (("low", -math.inf), ("high", math.inf)))
    return Metric(values["name"], values["maximize"], low, high)


Place = Annotated[Path | HubRef, PlainValidator(_place)]
"""Where weights are: a file or folder, absolute, or a reference to a hub."""


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class TaskConfig:
    """A task: what merged models are measured on.

    Attributes:
        name: Its name.
        data: Where its examples come from; None for a family that brings its own.
        model: The model that was fine-tuned for it, its reference for "of single"; None for a skill to keep.
        metrics: What is measured on it, in one pass; the family's usual metric where nothing is given.
    """

    name: Text
    data: Annotated[DataSource | None, BeforeValidator(_data)] = None
    model: Text | None = None
    metrics: Annotated[tuple[Metric, ...], BeforeValidator(_metrics)] = ()


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class StudyConfig:
    """The fixed parts of a study: N models to merge and K objectives to measure.

    Attributes:
        family: How parameters become predictions: a registered family, or a person's own ``module:function``.
        architecture: A configuration file, or a name that the family's library knows; "" where the
            pre-trained model's folder tells.
        pretrained: The model that all fine-tuned ones started from: a file, a folder or a hub reference.
        models: The fine-tuned models by name, in the order of every point's coordinates.
        tasks: One or more.
        options: The family's own settings by name.

    Raises:
        StudyError: There is no model or no task, a name is empty, taken or reserved, the family is unknown,
            or an architecture, data, a metric or a model that a task names is missing.
    """

    family: Text = "clip"
    architecture: Annotated[Text, BeforeValidator(_architecture)] = ""
    pretrained: Place
    models: Mapping[Text, Place]
    tasks: tuple[TaskConfig, ...]
    options: Mapping[Text, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            family = find_family(self.family)
        except MapMergeError as error:
            raise PlacedError(str(error), "family") from error
        try:
            family.check_options(self.options)
        except MapMergeError as error:
            raise PlacedError(str(error), "options") from error
        if family.needs_architecture and not self.architecture:
            raise PlacedError(f"The family '{self.family}' needs an architecture: name one.", "architecture")
        if not self.models:
            raise PlacedError("A study merges one model or more, and none was given: add one.", "models")
        if not self.tasks:
            raise PlacedError("A study measures one task or more, and none was given: add one.", "tasks")
        _check_names("model", list(self.models), [("models", name) for name in self.models])
        _check_names("task", [task.name for task in self.tasks], [("tasks", i, "name") for i in range(len(self.tasks))])
        usual = family.usual_metric()
        tasks = []
        for i, task in enumerate(self.tasks):
            if task.model is not None and task.model not in self.models:
                raise PlacedError(
                    f"The task '{task.name}' names the model '{task.model}', which the study doesn't have: choose "
                    f"from {', '.join(self.models)}.",
                    *("tasks", i, "model"),
                )
            if family.examples is not None and task.data is None:
                raise PlacedError(
                    f"The task '{task.name}' has no dataset: choose one, or leave the task out.", "tasks", i
                )
            metrics = task.metrics or (() if usual is None else (usual,))
            if not metrics:
                raise PlacedError(
                    f"The task '{task.name}' has no metric: say which ({', '.join(METRICS.names)}, or your own).",
                    *("tasks", i),
                )
            tasks.append(TaskConfig(name=task.name, data=task.data, model=task.model, metrics=metrics))
        object.__setattr__(self, "tasks", tuple(tasks))
        object.__setattr__(self, "models", dict(self.models))
        try:
            objectives_of(self.tasks)
        except MapMergeError as error:
            raise PlacedError(str(error), "tasks") from error

    def __eq__(self, other: object) -> bool:
        """Return whether two studies are the same; models in another order are other coordinates."""
        if not isinstance(other, StudyConfig):
            return NotImplemented
        return self.model_names == other.model_names and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.family, self.pretrained, self.model_names))

    @property
    def model_names(self) -> tuple[str, ...]:
        """The N models' names, in the order of a point's coordinates."""
        return tuple(self.models)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The K objectives, in the order of every table's columns."""
        return objectives_of(self.tasks)

    @property
    def has_parts(self) -> bool:
        """Whether merged models can be measured on a part of each validation split."""
        brings_data = find_family(self.family).examples is None
        return not brings_data and all(metric.is_mean for task in self.tasks for metric in task.metrics)

    def facts(self, vectors: str = "float32") -> StudyFacts:
        """Return what merges need to know to say whether they can serve this study.

        Args:
            vectors: What task vectors are held in.
        """
        return StudyFacts(
            models=self.model_names,
            objectives=self.objectives,
            tasks_with_data=frozenset(task.name for task in self.tasks if task.data is not None),
            gives_logits=find_family(self.family).gives_logits,
            in_low_rank=any(is_adapter(place) for place in self.models.values()),
            vectors=vectors,
        )

    @property
    def weights(self) -> dict[str, Path | HubRef]:
        """Where each model's weights are, by role: "pretrained", "MNIST model", ..."""
        return {"pretrained": self.pretrained} | {f"{name} model": place for name, place in self.models.items()}

    def places(self) -> dict[str, Path | HubRef]:
        """Return all that an evaluation depends on and that lies in files, by role ("MNIST data", ...)."""
        places = self.weights
        if self.architecture.endswith(".json"):
            places["architecture"] = Path(self.architecture)
        for task in self.tasks:
            if task.data is not None and isinstance(task.data.path, Path):
                places[f"{task.name} data"] = task.data.path
        return places

    def files(self) -> dict[str, Path]:
        """Return those of `places` that are a person's own files and folders."""
        return {role: place for role, place in self.places().items() if isinstance(place, Path)}

    def with_tasks(self, names: Sequence[str]) -> StudyConfig:
        """Return the study of some of its tasks, without the models that only other tasks have.

        Args:
            names: The tasks, in the order in which they and their models are to come.

        Raises:
            StudyError: There is no such task, or no model is left.
        """
        tasks = {task.name: task for task in self.tasks}
        for name in names:
            if name not in tasks:
                raise StudyError(f"The study has no task '{name}': choose among {', '.join(tasks)}.")
        chosen = tuple(tasks[name] for name in names)
        of_tasks = {task.model for task in self.tasks}
        models = [task.model for task in chosen if task.model] + [name for name in self.models if name not in of_tasks]
        return replace(self, tasks=chosen, models={name: self.models[name] for name in models})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML; `from_dict` reads the same study from them."""
        usual = find_family(self.family).usual_metric()
        values: dict[str, Any] = {
            "family": self.family,
            "architecture": self.architecture,
            "pretrained": str(self.pretrained),
            "models": {name: str(place) for name, place in self.models.items()},
            "tasks": [_task_values(task, usual) for task in self.tasks],
            "options": dict(self.options),
        }
        return {name: value for name, value in values.items() if value or name in ("models", "tasks")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: Path | None = None) -> StudyConfig:
        """Read a study from plain values.

        Args:
            values: As `to_dict` returns them.
            folder: What relative paths are relative to.

        Raises:
            StudyError: They are no study.
        """
        try:
            return TypeAdapter(cls).validate_python(dict(values), context={"folder": folder or Path.cwd()})
        except ValidationError as error:
            raise StudyError(f"The study can't be read: {error.errors()[0]['msg']}.") from error


def _check_names(what: str, names: list[str], places: list[tuple[str | int, ...]]) -> None:
    for name, place in zip(names, places, strict=True):
        if not name.strip():
            raise PlacedError(f"A {what} has no name: give every {what} a name of its own.", *place)
        if name.lower() in RESERVED:
            raise PlacedError(f"'{name}' means something else in rules: give that {what} another name.", *place)
    for i, name in enumerate(names):
        if name in names[:i]:
            raise PlacedError(f"Two {what}s are called '{name}': give every {what} a name of its own.", *places[i])


def _task_values(task: TaskConfig, usual: Metric | None) -> dict[str, Any]:
    values: dict[str, Any] = {"name": task.name}
    if task.data is not None:
        data = task.data.to_dict()
        values["data"] = data["path"] if list(data) == ["path"] else data
    if task.model is not None:
        values["model"] = task.model
    if task.metrics != ((usual,) if usual else ()):
        metrics = [_metric_values(metric) for metric in task.metrics]
        values["metrics"] = metrics[0] if len(metrics) == 1 else metrics
    return values


def _metric_values(metric: Metric) -> str | dict[str, Any]:
    """Return a metric's name, or of a person's own its direction and those bounds that there are."""
    if metric.name in METRICS and METRICS[metric.name] == metric:
        return metric.name
    ends = zip(("low", "high"), metric.bounds, strict=True)
    bounds = {end: bound for end, bound in ends if abs(bound) != float("inf")}
    return {"name": metric.name, "maximize": metric.maximize} | bounds
