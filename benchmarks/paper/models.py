"""Which models a table is about: the demo zoo, another folder with a manifest, or a person's STUDY.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config.manifest import (
    DEMO_ZOO,
    demo_settings,
    demo_tasks,
    read_manifest,
    spec_from_manifest,
)
from mapmerge_core.studies.config.study_file import read_study_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mapmerge_core.studies.config.study import StudySpec


@dataclass(frozen=True)
class Models:
    """The models of a table.

    Attributes:
        name: What results call them.
        spec: All tasks; the table's set of n tasks is the first n, unless its tasks are named.
        high: Upper corner of the sampled box; None for the demo's, 1 up to four tasks and 0.6 from five.
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
    """The models that a STUDY.yaml names; its method's ``high`` is the box's upper corner.

    Raises:
        StudyError: where it can't be read, or isn't what it should be.
    """
    study = read_study_file(path)
    return Models(study.name or path.stem, study.spec, study.settings.high)


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
