"""What a study is made of. Nothing here imports torch, so that pages can describe studies at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.files import absolute
from mapmerge_core.studies.config.run import check_seed
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families import FamilyInfo, family_info
from mapmerge_core.tasks.metric import METRICS, Metric, find_metric
from mapmerge_core.weights.io.hub import HubRef, parse_source

if TYPE_CHECKING:
    from collections.abc import Mapping

TransformKind = Literal["ties_trim", "ties", "dare"]


@dataclass(frozen=True)
class TaskSpec:
    """One task: its fine-tuned checkpoint, the data that it is measured on, and the metric.

    Attributes:
        name: Its name.
        checkpoint: A file or folder, absolute, or a hub reference.
        data: Where its examples come from; None for a family that brings its own.
        metric: What is measured; None for the family's usual one.
    """

    name: str
    checkpoint: Path | HubRef
    data: DataSource | None
    metric: Metric | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", _weights(self.checkpoint))
        if self.data is not None and isinstance(self.data.path, Path):
            absolute(self.data.path)  # refuses what can't be a path


@dataclass(frozen=True)
class Transform:
    """What is done to a study's task vectors before any merge (see ``weights.transforms``).

    Attributes:
        kind: "ties_trim" (trim), "ties" (trim and elect signs) or "dare" (drop at random, rescale).
        keep: Share of each task vector that trimming keeps.
        drop: Share of each task vector that DARE drops.
        seed: Seed of what DARE drops.

    Raises:
        StudyError: for an unknown kind, and for shares that leave nothing or aren't shares.
    """

    kind: TransformKind
    keep: float = 0.2
    drop: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(TransformKind):
            raise StudyError(
                f"The transform '{self.kind}' is unknown: use {', '.join(get_args(TransformKind))}."
            )
        if not 0 < self.keep <= 1:
            raise StudyError(
                f"TIES keeps a share of each task vector above 0 and at most 1, not {self.keep:g}."
            )
        if not 0 <= self.drop < 1:
            raise StudyError(f"DARE drops a share of each task vector from 0 to below 1, not {self.drop:g}.")
        check_seed(self.seed)

    @property
    def label(self) -> str:
        """Such as "TIES-trim 20 %" or "DARE 50 %"."""
        names = {"ties_trim": "TIES-trim", "ties": "TIES", "dare": "DARE"}
        return f"{names[self.kind]} {100 * (self.drop if self.kind == 'dare' else self.keep):g} %"


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The fixed parts of a study; the order of its tasks is the order of every c's coefficients.

    Paths become absolute, so that a study opens from any folder.

    Attributes:
        family: How parameters become predictions: one of ``tasks.families.FAMILIES``, or a person's own
            ``module:function``.
        architecture: Path of a configuration JSON, or a name that the family's library knows; ``""`` where
            the pre-trained model's folder tells.
        pretrained: Checkpoint that all the fine-tuned models started from: a file, a folder or a hub
            reference.
        tasks: Two tasks or more, with different names.
        transform: What is done to the task vectors first; the "single-task models" of a study with one are
            the pre-trained model plus a transformed task vector.
        options: The family's own settings by name.

    Raises:
        StudyError: for fewer than two tasks, for names that are empty, taken or reserved, for an unknown
            family, and for an architecture, data or a metric that is missing.
    """

    family: str = "clip"
    architecture: str = ""
    pretrained: Path | HubRef
    tasks: tuple[TaskSpec, ...]
    transform: Transform | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            info = family_info(self.family)
        except MapMergeError as error:
            raise StudyError(str(error)) from error
        if info.needs_architecture and not self.architecture:
            raise StudyError(f"The family '{self.family}' needs an architecture: name one.")
        if len(self.tasks) < 2:
            raise StudyError(
                f"A study merges two tasks or more, but {len(self.tasks)} was given: add another."
            )
        names = [task.name for task in self.tasks]
        for name in names:
            if not name.strip():
                raise StudyError("A task has no name: give every task a name of its own.")
            if name == "pretrained":
                raise StudyError("'pretrained' means the pre-trained model: give that task another name.")
            if names.count(name) > 1:
                raise StudyError(f"Two tasks are called '{name}': give every task a name of its own.")
        object.__setattr__(self, "tasks", tuple(_completed(task, info) for task in self.tasks))
        object.__setattr__(self, "pretrained", _weights(self.pretrained))
        if self.architecture.endswith(".json"):
            object.__setattr__(self, "architecture", str(absolute(self.architecture)))

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names in the order of the coefficients."""
        return tuple(task.name for task in self.tasks)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metric of each task."""
        return tuple(task.metric for task in self.tasks if task.metric)

    @property
    def weights(self) -> dict[str, Path | HubRef]:
        """Where each model's weights are, by role ("pretrained", "MNIST checkpoint", ...)."""
        return {"pretrained": self.pretrained} | {
            f"{task.name} checkpoint": task.checkpoint for task in self.tasks
        }

    def places(self) -> dict[str, Path | HubRef]:
        """Everything that an evaluation depends on and that lies in files, by role ("MNIST data", ...)."""
        places = {"pretrained": self.pretrained}
        if self.architecture.endswith(".json"):
            places["architecture"] = Path(self.architecture)
        for task in self.tasks:
            places[f"{task.name} checkpoint"] = task.checkpoint
            if task.data is not None and isinstance(task.data.path, Path):
                places[f"{task.name} data"] = task.data.path
        return places

    def files(self) -> dict[str, Path]:
        """Those of `places` that are a person's own files and folders."""
        return {role: place for role, place in self.places().items() if isinstance(place, Path)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        usual = family_info(self.family).metric
        values: dict[str, Any] = {
            "family": self.family,
            "architecture": self.architecture,
            "pretrained": str(self.pretrained),
            "tasks": [_task_to_dict(task, usual) for task in self.tasks],
        }
        if self.transform:
            values["transform"] = asdict(self.transform)
        if self.options:
            values["options"] = dict(self.options)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudySpec:
        """The spec that ``to_dict`` described."""
        return cls(
            family=values["family"],
            architecture=values["architecture"],
            pretrained=values["pretrained"],
            tasks=tuple(_task_from_dict(task) for task in values["tasks"]),
            transform=Transform(**values["transform"]) if "transform" in values else None,
            options=values.get("options", {}),
        )


def _weights(place: Path | HubRef | str) -> Path | HubRef:
    source = parse_source(place)
    return absolute(source) if isinstance(source, Path) else source


def _completed(task: TaskSpec, info: FamilyInfo) -> TaskSpec:
    """A task with its metric.

    Raises:
        StudyError: It has no data or no metric, and its family gives none.
    """
    if info.examples is not None and task.data is None:
        raise StudyError(f"The task '{task.name}' has no dataset: choose one, or leave the task out.")
    metric = task.metric or info.metric
    if metric is None:
        raise StudyError(
            f"The task '{task.name}' has no metric: say which ({', '.join(METRICS)}, or one of your own)."
        )
    return replace(task, metric=metric)


def _task_to_dict(task: TaskSpec, usual: Metric | None) -> dict[str, Any]:
    values: dict[str, Any] = {"name": task.name, "checkpoint": str(task.checkpoint)}
    if task.data is not None:
        said = task.data.to_dict()
        values["data"] = said["path"] if list(said) == ["path"] else said
    if task.metric and task.metric != usual:
        known = METRICS.get(task.metric.name) == task.metric
        values["metric"] = task.metric.name if known else _metric_to_dict(task.metric)
    return values


def _task_from_dict(values: Mapping[str, Any]) -> TaskSpec:
    data, metric = values.get("data"), values.get("metric")
    if isinstance(metric, str):
        metric = find_metric(metric)
    elif metric is not None:
        metric = Metric(**metric)
    return TaskSpec(
        values["name"],
        parse_source(values["checkpoint"]),
        DataSource.from_dict({"path": data} if isinstance(data, str) else data) if data else None,
        metric,
    )


def _metric_to_dict(metric: Metric) -> dict[str, Any]:
    """Only the bounds that there are: JSON has no infinity."""
    values: dict[str, Any] = {"name": metric.name, "maximize": metric.maximize}
    ends = zip(("low", "high"), metric.bounds, strict=True)
    return values | {end: bound for end, bound in ends if abs(bound) != float("inf")}
