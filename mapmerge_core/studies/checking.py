"""Whether the models and datasets of a study fit together, and how they compare, before the study is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from mapmerge_core.studies.spec import StudySpec


@dataclass(frozen=True)
class ModelCheck:
    """One task's model and dataset, which fit the pre-trained model.

    Attributes:
        task: The task's name.
        n_bytes: Size of the checkpoint's file.
        n_tensors: Tensors in it.
        n_changed: Tensors that differ from the pre-trained model's.
        dtypes: Their dtypes, such as "float16".
        l1_ratio: |v|₁ / |θ_pre|₁ over the merged part.
        l2_ratio: |v|₂ / |θ_pre|₂ over the merged part.
        n_classes: Classes in the dataset.
        n_val: Examples of its validation split.
        n_test: Examples of its test split.
        data: The dataset's file.
        warning: A sentence if the model was clearly not fine-tuned from the pre-trained one, else "".
    """

    task: str
    n_bytes: int
    n_tensors: int
    n_changed: int
    dtypes: str
    l1_ratio: float
    l2_ratio: float
    n_classes: int
    n_val: int
    n_test: int
    data: Path
    warning: str


@dataclass(frozen=True, eq=False)
class SpecCheck:
    """Models that fit together: one row a task, cosines of the task vectors (N x N), merged parameters."""

    models: tuple[ModelCheck, ...]
    cosines: np.ndarray
    n_parameters: int


def check_spec(spec: StudySpec) -> SpecCheck:
    """Reads every checkpoint and dataset of ``spec``, builds the architecture, and compares them.

    Raises:
        CheckpointError: where the architecture can't be built, or a checkpoint can't be read, holds NaN or
            infinity, or doesn't fit.
        DatasetError: where a dataset can't be read or holds nothing to measure.
    """
    from mapmerge_core.tasks.datasets import inspect_dataset
    from mapmerge_core.tasks.families.clip import ClipZeroShot
    from mapmerge_core.weights.checkpoints import inspect
    from mapmerge_core.weights.inspection import odd_one
    from mapmerge_core.weights.task_vectors import TaskVectors

    datasets = [inspect_dataset(task.data) for task in spec.tasks]
    ClipZeroShot(spec.architecture, spec.pretrained)  # raises where they don't fit
    vectors = TaskVectors.from_files(
        spec.pretrained, {task.name: task.checkpoint for task in spec.tasks}, part=ClipZeroShot.part
    )
    changed = vectors.differing()
    l2_ratios = vectors.l2_ratios()
    distances = dict(zip(vectors.names, l2_ratios.tolist(), strict=True))
    ratios = zip(vectors.l1_ratios(), l2_ratios, strict=True)
    models = []
    for task, dataset, (l1_ratio, l2_ratio) in zip(spec.tasks, datasets, ratios, strict=True):
        info = inspect(task.checkpoint)
        models.append(
            ModelCheck(
                task=task.name,
                n_bytes=info.n_bytes,
                n_tensors=info.n_tensors,
                n_changed=changed[task.name],
                dtypes=", ".join(info.dtypes),
                l1_ratio=float(l1_ratio),
                l2_ratio=float(l2_ratio),
                n_classes=len(dataset.class_names),
                n_val=dataset.sizes["val"],
                n_test=dataset.sizes["test"],
                data=task.data,
                warning=odd_one(task.name, distances),
            )
        )
    return SpecCheck(tuple(models), vectors.cosines(), vectors.n_parameters)
