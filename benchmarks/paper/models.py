"""Which models a table is about: the demo zoo, another folder with a manifest, or a person's STUDY.yaml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config.demo import DEMO_ZOO, config_from_manifest, demo_tasks, read_manifest
from mapmerge_core.studies.config.study_file import read_study_file

if TYPE_CHECKING:
    from mapmerge_core.studies.config import StudyConfig


@dataclass(frozen=True)
class Models:
    """The models of a table.

    Attributes:
        name: What results call them.
        config: All tasks; the table's set of n tasks is the first n with a model of their own, unless its tasks
            are named.
        high: Upper corner of the sampled box; None for the demo's, 1 up to four tasks and 0.6 from five.
    """

    name: str
    config: StudyConfig
    high: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks that have a model of their own."""
        return tuple(task.name for task in self.config.tasks if task.model)

    def first(self, n_tasks: int) -> tuple[str, ...]:
        """Return the names of the first n tasks.

        Raises:
            StudyError: There are fewer than two tasks, or more than there are.
        """
        if not 2 <= n_tasks <= len(self.names):
            raise StudyError(f"{self.name} has 2 to {len(self.names)} tasks to merge, not {n_tasks}.")
        return self.names[:n_tasks]

    def subset(self, names: Sequence[str], held: Sequence[str] = ()) -> StudyConfig:
        """Return the study of these tasks, in this order.

        Args:
            names: Tasks whose models are merged.
            held: Further tasks, measured without their models.

        Raises:
            StudyError: A task isn't one that has a model, or these are no set of two or more.
        """
        for name in (*names, *held):
            if name not in self.names:
                raise StudyError(f"{self.name} has no task '{name}': choose among {', '.join(self.names)}.")
        if len(names) < 2:
            raise StudyError(f"A table merges two tasks or more, not {len(names)}.")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise StudyError(f"Two tasks are called '{twice}': name each once.")
        merged = self.config.with_tasks(names)
        if any(len(task.metrics) > 1 for task in merged.tasks):
            raise StudyError("A table measures each task by one metric: leave the others out of the study.")
        others = tuple(replace(task, model=None) for task in self.config.tasks if task.name in held)
        return replace(merged, tasks=(*merged.tasks, *others))

    def upper(self, n_tasks: int) -> float:
        """Return the upper corner of the box that is sampled for n tasks."""
        if self.high is None:
            return 1.0 if n_tasks <= 4 else 0.6
        return self.high


def from_zoo(zoo: str) -> Models:
    """Return the models of the demo zoo ("demo") or of a folder with a manifest.json, in the demo's order.

    Raises:
        StudyError: There is no good manifest.
    """
    folder = DEMO_ZOO if zoo == "demo" else Path(zoo)
    manifest = read_manifest(folder)
    n_models = sum(task.model is not None for task in manifest.config.tasks)
    return Models(manifest.title, config_from_manifest(folder, demo_tasks(n_models, folder)))


def from_study(path: Path) -> Models:
    """Return the models that a STUDY.yaml names; its run's ``high`` is the box's upper corner.

    Raises:
        StudyError: It can't be read, or isn't what it should be.
    """
    study = read_study_file(path)
    return Models(study.name or path.stem, study.config, 1.0 if study.run.high is None else study.run.high)


def parse_set(text: str, models: Models, seeds: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return what one word after ``--tasks`` means: "4", "MNIST,Flags", or either with seeds, as in "8:0,1".

    Returns:
        The tasks' names, and the seeds.

    Raises:
        StudyError: There are no such tasks.
    """
    own = re.fullmatch(r"(.+):(\d+(?:,\d+)*)", text)
    if own:
        text, seeds = own[1], [int(seed) for seed in own[2].split(",")]
    names = models.first(int(text)) if text.isdecimal() else tuple(text.split(","))
    models.subset(names)
    return names, tuple(seeds)
