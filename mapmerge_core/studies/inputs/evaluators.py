"""From a study's files to an evaluator: models read, images on the device, ready to measure any c."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.inputs.sources import check_sources, weights_of_sources
from mapmerge_core.weights.io.hub import HubRef

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from mapmerge_core.studies.store.rows import StudyRow
    from mapmerge_core.studies.config.run import VectorsDtype
    from mapmerge_core.studies.config.study import StudySpec, Transform
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.tasks.families.base import Family
    from mapmerge_core.tasks.task import Task
    from mapmerge_core.weights.vectors.streamed import Vectors


def read_vectors(
    study: StudyRow,
    *,
    on_disk: bool | None = None,
    device: torch.device | str = "cpu",
    rounded: bool = False,
) -> Vectors:
    """Reads a study's task vectors and transforms them where the study says so; always on the CPU.

    Args:
        study: The study.
        on_disk: As for `open_vectors`; merges on a CPU have the same bits either way.
        device: Where they will be merged.
        rounded: Whether to hold them in bfloat16, if they are kept in memory.

    Raises:
        CheckpointError: where a checkpoint can't be read or doesn't fit.
        MapMergeError: where task vectors that stay on disk would have to be transformed.
    """
    weights = weights_of_sources(study.spec, study.sources)
    vectors = open_study_vectors(study.spec, weights, on_disk=on_disk, device=device, rounded=rounded)
    return _transformed(vectors, study.spec.transform)


def open_study_vectors(
    spec: StudySpec,
    weights: Mapping[str, Path],
    *,
    on_disk: bool | None = None,
    device: torch.device | str = "cpu",
    rounded: bool = False,
) -> Vectors:
    """A study's task vectors as they are.

    Args:
        spec: The study.
        weights: Where each model's weights lie, by role (see ``StudySpec.weights``).
        on_disk: As for `open_vectors`.
        device: Where they will be merged.
        rounded: As for `open_vectors`.

    Raises:
        CheckpointError: where a checkpoint can't be read or doesn't fit.
    """
    from mapmerge_core.tasks.families import family_class
    from mapmerge_core.weights.vectors.streamed import open_vectors

    family, pretrained = family_class(spec.family), weights["pretrained"]
    return open_vectors(
        pretrained,
        {task.name: weights[f"{task.name} checkpoint"] for task in spec.tasks},
        part=family.part,
        without=family.left_out(spec.architecture, pretrained),
        on_disk=on_disk,
        device=device,
        rounded=rounded,
    )


def _transformed(vectors: Vectors, how: Transform | None) -> Vectors:
    from mapmerge_core.weights.vectors.streamed import in_memory
    from mapmerge_core.merges._sparse import apply_transform

    if how is None:
        return vectors
    return apply_transform(in_memory(vectors), how.kind, keep=how.keep, drop=how.drop, seed=how.seed)


def load_evaluator(
    study: StudyRow, device: str = "auto", precision: str = "auto", vectors: VectorsDtype = "float32"
) -> Evaluator:
    """Reads a study's checkpoints and datasets.

    Args:
        study: The study.
        device: One of ``choose_device``, or several as for ``choose_devices``: the evaluator of the first
            has the others' as its siblings.
        precision: As for ``Evaluator``.
        vectors: What task vectors are held in, as long as they are in memory. Where that is bfloat16, the
            test split's merges read the checkpoints instead.

    Raises:
        StudyError: where a file has changed since the study was created, and where memory is too small.
        CheckpointError: where a checkpoint can't be read or doesn't fit.
        DatasetError: where a dataset can't be read.
    """
    import torch

    from mapmerge_core.tasks.evaluator import Evaluator, choose_devices
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

    check_sources(study.sources)
    chosen = choose_devices(device)
    pretrained = weights_of_sources(study.spec, study.sources)["pretrained"]
    rounded = vectors == "bfloat16"
    try:
        held = exported = read_vectors(study, device=chosen[0], rounded=rounded)
        if isinstance(held, TaskVectors) and held.is_rounded:
            exported = read_vectors(study, on_disk=True)
        evaluators: list[Evaluator] = []
        for each in chosen:
            family, tasks = load_family(study.spec, pretrained), tasks_of(study.spec)
            made = Evaluator(family, held, tasks, exported=exported, device=each, precision=precision)
            evaluators.append(made)
            precision = made.precision  # the same on all devices
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StudyError(
            f"The models of '{study.name}' don't fit into the memory of {', '.join(map(str, chosen))}: merge "
            "fewer tasks, choose another device, or close other programs."
        ) from error
    first, *first.siblings = evaluators
    return first


def tasks_of(spec: StudySpec) -> list[Task]:
    """A study's tasks as evaluators know them."""
    from mapmerge_core.tasks.task import Task

    return [Task(task.name, task.data, metric) for task, metric in zip(spec.tasks, spec.metrics, strict=True)]


def load_family(spec: StudySpec, pretrained: Path) -> Family:
    """A study's family, holding the pre-trained model that lies at ``pretrained``.

    Raises:
        CheckpointError: where the model can't be made or read.
        MapMergeError: where a person's own family can't be imported.
    """
    from mapmerge_core.tasks.families import make_family

    options = dict(spec.options) | ({"tag": tag} if (tag := open_clip_tag(spec)) else {})
    return make_family(spec.family, spec.architecture, pretrained, options, tasks_of(spec))


def open_clip_tag(spec: StudySpec) -> str:
    """Which of open_clip's own weights a CLIP study starts from, as ``ARCHITECTURE/TAG``; "" for others."""
    if spec.family != "clip" or not isinstance(spec.pretrained, HubRef) or not spec.pretrained.is_open_clip:
        return ""
    architecture, _, tag = spec.pretrained.parts
    return f"{architecture}/{tag}"


class EvaluatorCache:
    """Keeps the evaluator that was used last, since reading large models takes long and two may not fit."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._key: tuple[int, str, str, str] | None = None
        self._evaluator: Evaluator | None = None

    def get(
        self,
        study: StudyRow,
        device: str = "auto",
        precision: str = "auto",
        vectors: VectorsDtype = "float32",
    ) -> Evaluator:
        """The study's evaluator, read anew where another was used last (errors as ``load_evaluator``)."""
        key = (study.id, device, precision, vectors)
        with self._lock:
            if key != self._key or self._evaluator is None:
                self._clear()
                self._evaluator = load_evaluator(study, device, precision, vectors)
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
