"""Which models a table is about: the demo zoo, another folder with a manifest, or a person's STUDY.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.spec import (
    DEMO_ZOO,
    StudySpec,
    TaskSpec,
    demo_settings,
    demo_tasks,
    read_manifest,
    spec_from_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

FIELDS = {"zoo", "architecture", "pretrained", "tasks", "high"}


@dataclass(frozen=True)
class Models:
    """The models of a table.

    Attributes:
        name: What results call them.
        spec: All tasks; the table's set of n tasks is the first n, unless its tasks are named.
        high: Upper corner of the sampled box; None for 1 up to four tasks and 0.6 from five, as in the demo.
    """

    name: str
    spec: StudySpec
    high: float | None = None

    def first(self, n_tasks: int) -> tuple[str, ...]:
        """The names of the first n tasks.

        Raises:
            StudyError: for fewer than two tasks and for more than there are.
        """
        names = self.spec.task_names
        if not 2 <= n_tasks <= len(names):
            raise StudyError(f"{self.name} has 2 to {len(names)} tasks to merge, not {n_tasks}.")
        return names[:n_tasks]

    def subset(self, names: Sequence[str]) -> StudySpec:
        """The study of these tasks, in this order.

        Raises:
            StudyError: for a task that isn't one, and for sets that are none.
        """
        offered = {task.name: task for task in self.spec.tasks}
        for name in names:
            if name not in offered:
                raise StudyError(f"{self.name} has no task '{name}': choose among {', '.join(offered)}.")
        return replace(self.spec, tasks=tuple(offered[name] for name in names))

    def upper(self, n_tasks: int) -> float:
        """Upper corner of the box that is sampled for n tasks."""
        return demo_settings(n_tasks).high if self.high is None else self.high


def from_zoo(zoo: str) -> Models:
    """The models of the demo zoo ("demo") or of a folder with a manifest.json, in the demo's order.

    Raises:
        StudyError: where there is no good manifest.
    """
    folder = DEMO_ZOO if zoo == "demo" else Path(zoo)
    manifest = read_manifest(folder)
    return Models(manifest.title, spec_from_manifest(folder, demo_tasks(len(manifest.tasks), folder)))


def from_study(path: Path) -> Models:
    """The models that a STUDY.yaml names, its paths taken from its own folder (benchmarks/README.md).

    Raises:
        StudyError: where it can't be read, or isn't what it should be.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{path} isn't YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise StudyError(f"{path} should hold fields such as 'pretrained' and 'tasks'.")
    unknown = {str(name) for name in values} - FIELDS
    if unknown:
        raise StudyError(f"{path} has the field '{min(unknown)}': it may have {', '.join(sorted(FIELDS))}.")
    high = values.get("high")
    if high is not None and (isinstance(high, bool) or not isinstance(high, int | float) or high <= 0):
        raise StudyError(f"'high' in {path} is the largest coefficient, a number above 0, not {high!r}.")
    return Models(path.stem, _spec(path, values), None if high is None else float(high))


def _spec(path: Path, values: dict[str, Any]) -> StudySpec:
    tasks = values.get("tasks")
    if "zoo" in values:
        if "pretrained" in values or "architecture" in values:
            raise StudyError(f"{path} names a zoo, which has its own models: leave out all others.")
        if tasks is not None and not (isinstance(tasks, list) and all(isinstance(t, str) for t in tasks)):
            raise StudyError(f"'tasks' in {path} is a list of the zoo's task names.")
        return spec_from_manifest(path.parent / _text(path, values, "zoo"), tasks)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise StudyError(f"'tasks' in {path} is a list of tasks, each with a name, a checkpoint and data.")
    architecture = _text(path, values, "architecture")
    if architecture.endswith(".json"):
        architecture = str(path.parent / architecture)
    return StudySpec(
        architecture=architecture,
        pretrained=path.parent / _text(path, values, "pretrained"),
        tasks=tuple(
            TaskSpec(
                _text(path, task, "name"),
                path.parent / _text(path, task, "checkpoint"),
                path.parent / _text(path, task, "data"),
            )
            for task in tasks
        ),
    )


def _text(path: Path, values: dict[str, Any], name: str) -> str:
    text = values.get(name)
    if not isinstance(text, str) or not text.strip():
        raise StudyError(f"{path} needs '{name}' as text: see benchmarks/README.md.")
    return text


def parse_set(text: str, models: Models, seeds: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """What one word after ``--tasks`` means: "4", "MNIST,Flags", or either with seeds of its own, "8:0,1".

    Returns:
        The tasks' names, and the seeds.

    Raises:
        StudyError: for tasks that there aren't.
    """
    own = re.fullmatch(r"(.+):(\d+(?:,\d+)*)", text)
    if own:
        text, seeds = own[1], [int(seed) for seed in own[2].split(",")]
    names = models.first(int(text)) if text.isdecimal() else tuple(text.split(","))
    return models.subset(names).task_names, tuple(seeds)
