"""From a study's files to an evaluator: models read, images on the device, ready to measure any c."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.spec import check_sources

if TYPE_CHECKING:
    from mapmerge_core.studies.rows import StudyRow
    from mapmerge_core.studies.spec import StudySpec
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.task_vectors import TaskVectors


def read_vectors(spec: StudySpec) -> TaskVectors:
    """Reads a study's task vectors and transforms them where the study says so; always on the CPU.

    Raises:
        CheckpointError: where a checkpoint can't be read or doesn't fit.
    """
    from mapmerge_core.tasks.families.clip import ClipZeroShot
    from mapmerge_core.weights.task_vectors import TaskVectors
    from mapmerge_core.weights.transforms import apply_transform

    vectors = TaskVectors.from_files(
        spec.pretrained, {task.name: task.checkpoint for task in spec.tasks}, part=ClipZeroShot.part
    )
    how = spec.transform
    if how is None:
        return vectors
    return apply_transform(vectors, how.kind, keep=how.keep, drop=how.drop, seed=how.seed)


def load_evaluator(study: StudyRow, device: str = "auto", precision: str = "auto") -> Evaluator:
    """Reads a study's checkpoints and datasets.

    Raises:
        StudyError: where a file has changed since the study was created, and where memory is too small.
        CheckpointError: where a checkpoint can't be read or doesn't fit.
        DatasetError: where a dataset can't be read.
    """
    import torch

    from mapmerge_core.tasks.datasets import Task
    from mapmerge_core.tasks.evaluator import Evaluator, choose_device
    from mapmerge_core.tasks.families.clip import ClipZeroShot

    check_sources(study.sources)
    spec = study.spec
    chosen = choose_device(device)
    tasks = [Task.from_file(task.name, task.data) for task in spec.tasks]
    try:
        family = ClipZeroShot(spec.architecture, spec.pretrained, chosen)
        return Evaluator(family, read_vectors(spec), tasks, device=chosen, precision=precision)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StudyError(
            f"The models of '{study.name}' don't fit into the memory of {chosen}: merge fewer tasks, choose "
            "another device, or close other programs."
        ) from error


class EvaluatorCache:
    """Keeps the evaluator that was used last, since reading large models takes long and two may not fit."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._key: tuple[int, str, str] | None = None
        self._evaluator: Evaluator | None = None

    def get(self, study: StudyRow, device: str = "auto", precision: str = "auto") -> Evaluator:
        """The study's evaluator, read anew where another was used last (errors as ``load_evaluator``)."""
        key = (study.id, device, precision)
        with self._lock:
            if key != self._key or self._evaluator is None:
                self._clear()
                self._evaluator = load_evaluator(study, device, precision)
                self._key = key
            else:
                check_sources(study.sources)
            return self._evaluator

    def clear(self) -> None:
        """Lets go of the models and the device's memory."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._key = self._evaluator = None
