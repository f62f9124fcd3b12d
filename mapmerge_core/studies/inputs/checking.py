"""Whether the models and datasets of a study fit together, and how they compare, before the study is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.inputs.evaluators import load_family, open_study_vectors, tasks_of
from mapmerge_core.studies.inputs.sources import check_files
from mapmerge_core.tasks.families import find_family
from mapmerge_core.weights.io.hub import fetch

if TYPE_CHECKING:
    import numpy as np

    from mapmerge_core.studies.config.study import StudyConfig, TaskConfig
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
    """One fine-tuned model, which fits the pre-trained one.

    Attributes:
        name: Its name.
        n_bytes: Size of the checkpoint.
        n_tensors: Tensors in it.
        n_changed: Tensors that differ from the pre-trained model's.
        dtypes: Their dtypes, such as "float16".
        l1_ratio: |v|₁ / |θ_pre|₁ over the merged part.
        l2_ratio: |v|₂ / |θ_pre|₂ over the merged part.
        warning: A sentence if the model was clearly not fine-tuned from the pre-trained one, else "".
    """

    name: str
    n_bytes: int
    n_tensors: int
    n_changed: int
    dtypes: str
    l1_ratio: float
    l2_ratio: float
    warning: str


@dataclass(frozen=True, eq=False)
class StudyCheck:
    """Models that fit together, and datasets that can be read.

    Attributes:
        models: The N models.
        cosines: Cosines of their task vectors, `N x N`.
        n_parameters: Merged parameters.
        data: By task its dataset; None where a person's own family brings it.
    """

    models: tuple[ModelCheck, ...]
    cosines: np.ndarray
    n_parameters: int
    data: dict[str, DataCheck | None]


def check_study(config: StudyConfig) -> StudyCheck:
    """Read every checkpoint and dataset of a study, make the model, and compare them.

    Raises:
        StudyError: A file is missing.
        CheckpointError: The model can't be made, or a checkpoint can't be fetched or read, holds NaN or infinity,
            or doesn't fit.
        DatasetError: A dataset can't be read or holds nothing to measure.
        MapMergeError: The family can't measure a metric, or a person's own can't be imported.
    """
    from mapmerge_core.weights.io.checkpoints import inspect
    from mapmerge_core.weights.io.inspection import odd_one

    check_files(config)
    data = {task.name: _check_data(config, task) for task in config.tasks}
    weights = {role: fetch(place) for role, place in config.weights.items()}
    family = load_family(config, weights["pretrained"])  # raises where they don't fit
    family.use(tasks_of(config))
    vectors = open_study_vectors(config, weights)
    changed, l2_ratios = vectors.differing(), vectors.l2_ratios()
    distances = dict(zip(vectors.names, l2_ratios.tolist(), strict=True))
    models = []
    for name, l1_ratio, l2_ratio in zip(vectors.names, vectors.l1_ratios(), l2_ratios, strict=True):
        info = inspect(weights[f"{name} model"])
        models.append(
            ModelCheck(
                name=name,
                n_bytes=info.n_bytes,
                n_tensors=info.n_tensors,
                n_changed=changed[name],
                dtypes=", ".join(info.dtypes),
                l1_ratio=float(l1_ratio),
                l2_ratio=float(l2_ratio),
                warning=odd_one(name, distances),
            )
        )
    return StudyCheck(tuple(models), vectors.cosines(), vectors.n_parameters, data)


def unreadable_images(config: StudyConfig) -> dict[str, tuple[str, ...]]:
    """Return which images keep `check_study` from accepting a study that could do without them.

    Returns:
        By task the names of its unreadable images, where the dataset doesn't skip them yet and holds readable
        ones too. Datasets that can't be read at all are left out: `check_study` says why.
    """
    from mapmerge_core.tasks.datasets import open_images

    if find_family(config.family).examples != "images":
        return {}
    unreadable = {}
    for task in config.tasks:
        if task.data is None or task.data.skip_corrupt:
            continue
        try:
            names = open_images(replace(task.data, skip_corrupt=True)).corrupt
        except (MapMergeError, OSError):
            continue
        if names:
            unreadable[task.name] = names
    return unreadable


def _check_data(config: StudyConfig, task: TaskConfig) -> DataCheck | None:
    from mapmerge_core.tasks.datasets import open_images, open_texts

    examples = find_family(config.family).examples
    if task.data is None or examples is None:
        return None
    if examples == "texts":
        texts = open_texts(task.data)
        return DataCheck(task.data, dict(texts.sizes), 0, dict(texts.columns), texts.notes, ())
    images = open_images(task.data)
    n_classes, columns = len(images.class_names), dict(images.columns)
    return DataCheck(task.data, dict(images.sizes), n_classes, columns, images.notes, images.corrupt)
