"""Merges made without a study, and a tiny evaluator whose tasks name their models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.registries import MERGES
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families._models.clip import ClipZeroShot
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.tiny import CLASS_NAMES

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

TASKS = tuple(CLASS_NAMES)


def merged(name: str, vectors: TaskVectors, x: ArrayLike | None = None, **settings: object) -> dict[str, Tensor]:
    """The model of a merge without state at ``x``, by default the baseline's."""
    prepared = MERGES[name](settings).load(None, vectors, vectors)
    return dict(prepared.tensors(prepared.space.default if x is None else x))


def transformed(name: str, vectors: TaskVectors, **settings: object) -> TaskVectors:
    """What a linear merge makes of task vectors."""
    return MERGES[name](settings).transform_vectors(vectors)


def make_evaluator(zoo: Path, tasks: tuple[str, ...] = TASKS, **options: object) -> Evaluator:
    """An evaluator of the tiny zoo's models, or of some, each with a task of its own."""
    family = ClipZeroShot(str(zoo / "tiny-clip.json"), zoo / "pretrained.safetensors")
    checkpoints = {task: zoo / f"{task}.safetensors" for task in tasks}
    vectors = TaskVectors.from_files(zoo / "pretrained.safetensors", checkpoints, part=family.part)
    own = [Task.from_file(task, zoo / f"{task}.npz", model=task) for task in tasks]
    return Evaluator(family, vectors, own, **{"device": "cpu", "precision": "float32", **options})
