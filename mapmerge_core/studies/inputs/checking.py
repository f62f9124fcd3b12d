"""Whether the models and datasets of a study fit together, and how they compare, before the study is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.inputs.sources import check_files
from mapmerge_core.tasks.families import family_info

if TYPE_CHECKING:
    import numpy as np

    from mapmerge_core.studies.config.study import StudySpec, TaskSpec
    from mapmerge_core.tasks.data_source import DataSource


@dataclass(frozen=True)
class DataCheck:
    """One task's dataset.

    Attributes:
        source: Where it comes from.
        sizes: Examples in each split: images or texts.
        n_classes: Classes of an image dataset, 0 of texts.
        columns: Which columns were taken for what, where it has columns.
        notes: Sentences to show, such as how it was divided.
        corrupt: Names of the images that are left out because they can't be read.
    """

    source: DataSource
    sizes: dict[str, int]
    n_classes: int
    columns: dict[str, str]
    notes: tuple[str, ...]
    corrupt: tuple[str, ...]


@dataclass(frozen=True)
class ModelCheck:
    """One task's model and dataset, which fit the pre-trained model.

    Attributes:
        task: The task's name.
        n_bytes: Size of the checkpoint.
        n_tensors: Tensors in it.
        n_changed: Tensors that differ from the pre-trained model's.
        dtypes: Their dtypes, such as "float16".
        l1_ratio: |v|₁ / |θ_pre|₁ over the merged part.
        l2_ratio: |v|₂ / |θ_pre|₂ over the merged part.
        data: The dataset; None where a person's own callable brings it.
        warning: A sentence if the model was clearly not fine-tuned from the pre-trained one, else "".
    """

    task: str
    n_bytes: int
    n_tensors: int
    n_changed: int
    dtypes: str
    l1_ratio: float
    l2_ratio: float
    data: DataCheck | None
    warning: str


@dataclass(frozen=True, eq=False)
class SpecCheck:
    """Models that fit together: one row a task, cosines of the task vectors (N x N), merged parameters."""

    models: tuple[ModelCheck, ...]
    cosines: np.ndarray
    n_parameters: int


def check_spec(spec: StudySpec) -> SpecCheck:
    """Reads every checkpoint and dataset of ``spec``, makes the model, and compares them.

    Raises:
        StudyError: where a file is missing.
        CheckpointError: where the model can't be made, or a checkpoint can't be fetched or read, holds NaN or
            infinity, or doesn't fit.
        DatasetError: where a dataset can't be read or holds nothing to measure.
        MapMergeError: where the family can't measure a metric, or a person's own can't be imported.
    """
    from mapmerge_core.studies.inputs.evaluators import load_family, open_study_vectors, tasks_of
    from mapmerge_core.weights.io.checkpoints import inspect
    from mapmerge_core.weights.io.hub import fetch
    from mapmerge_core.weights.io.inspection import odd_one

    check_files(spec)
    datasets = [_check_data(spec, task) for task in spec.tasks]
    weights = {role: fetch(place) for role, place in spec.weights.items()}
    family = load_family(spec, weights["pretrained"])  # raises where they don't fit
    family.use(tasks_of(spec))
    vectors = open_study_vectors(spec, weights)
    changed = vectors.differing()
    l2_ratios = vectors.l2_ratios()
    distances = dict(zip(vectors.names, l2_ratios.tolist(), strict=True))
    ratios = zip(vectors.l1_ratios(), l2_ratios, strict=True)
    models = []
    for task, data, (l1_ratio, l2_ratio) in zip(spec.tasks, datasets, ratios, strict=True):
        info = inspect(weights[f"{task.name} checkpoint"])
        models.append(
            ModelCheck(
                task=task.name,
                n_bytes=info.n_bytes,
                n_tensors=info.n_tensors,
                n_changed=changed[task.name],
                dtypes=", ".join(info.dtypes),
                l1_ratio=float(l1_ratio),
                l2_ratio=float(l2_ratio),
                data=data,
                warning=odd_one(task.name, distances),
            )
        )
    return SpecCheck(tuple(models), vectors.cosines(), vectors.n_parameters)


def unreadable_images(spec: StudySpec) -> dict[str, tuple[str, ...]]:
    """Which images keep ``check_spec`` from accepting a study that could do without them.

    Returns:
        Names of the images by task, of tasks whose dataset has some that can't be read, doesn't leave them
        out yet, and would still hold something to measure. Datasets that can't be read at all are left to
        the check's own error.
    """
    from mapmerge_core.tasks.datasets import open_images

    if family_info(spec.family).examples != "images":
        return {}
    found = {}
    for task in spec.tasks:
        if task.data is None or task.data.skip_corrupt:
            continue
        try:
            names = open_images(replace(task.data, skip_corrupt=True)).corrupt
        except (MapMergeError, OSError):
            continue
        if names:
            found[task.name] = names
    return found


def _check_data(spec: StudySpec, task: TaskSpec) -> DataCheck | None:
    from mapmerge_core.tasks.datasets import open_images, open_texts

    if task.data is None:
        return None
    if family_info(spec.family).examples == "texts":
        texts = open_texts(task.data)
        return DataCheck(task.data, dict(texts.sizes), 0, dict(texts.columns), texts.notes, ())
    if family_info(spec.family).examples is None:
        return None
    images = open_images(task.data)
    return DataCheck(
        task.data,
        dict(images.sizes),
        len(images.class_names),
        dict(images.columns),
        images.notes,
        images.corrupt,
    )
