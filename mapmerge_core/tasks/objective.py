"""Objectives: a metric on a task, one column of every table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mapmerge_core.errors import DatasetError

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics.base import Metric


@dataclass(frozen=True)
class Objective:
    """A metric on a task's data.

    Attributes:
        task: The task's name.
        metric: The metric.
        model: The model that was fine-tuned for the task, the reference for "of single", or None.
        name: What people call it: the task, and where that has several metrics the metric, too.
    """

    task: str
    metric: Metric
    model: str | None
    name: str

    @property
    def key(self) -> str:
        """Return what the store calls it, whatever else the task is measured by."""
        return f"{self.task}/{self.metric.name}"


class _Measured(Protocol):
    """A task, or its configuration."""

    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> tuple[Metric, ...]: ...
    @property
    def model(self) -> str | None: ...


def maximize_of(objectives: Iterable[Objective]) -> tuple[bool, ...]:
    """Return for each objective whether more is better, as fronts and preferences take it."""
    return tuple(objective.metric.maximize for objective in objectives)


def objectives_of(tasks: Iterable[_Measured]) -> tuple[Objective, ...]:
    """Return the K objectives of tasks, in the order of the tasks and of their metrics.

    Raises:
        DatasetError: Two objectives would have one name.
    """
    objectives = tuple(
        Objective(task.name, metric, task.model, task.name if len(task.metrics) == 1 else f"{task.name} {metric.name}")
        for task in tasks
        for metric in task.metrics
    )
    names = [objective.name for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(f"Two objectives are named '{name}': give each task another name.")
    return objectives
