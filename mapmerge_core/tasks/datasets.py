"""Where examples come from: an ``.npz`` file with images, labels, class names and prompt templates."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.metric import ACCURACY, Metric

SPLITS = ("val", "test")


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset holds.

    Attributes:
        path: The file.
        class_names: In the order of the labels.
        templates: Prompts with one ``{}`` for the class name.
        sizes: Number of examples in each split.
    """

    path: Path
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Task:
    """A dataset with a metric: what a merged model is measured on."""

    name: str
    data: Path
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    metric: Metric = ACCURACY

    @classmethod
    def from_file(cls, name: str, path: Path | str) -> Task:
        """Checks the dataset in ``path`` and takes its class names and templates.

        Raises:
            DatasetError: See `inspect_dataset`.
        """
        info = inspect_dataset(path)
        return cls(name, info.path, info.class_names, info.templates)


def inspect_dataset(path: Path | str) -> DatasetInfo:
    """Checks a dataset thoroughly and says what it holds.

    Raises:
        DatasetError: The file can't be read, lacks an array, or holds one of a wrong type or shape; a split
            is empty; a label is not the index of a class name; a template has not exactly one ``{}``.
    """
    path = Path(path)
    sizes = {split: len(load_split(path, split)[1]) for split in SPLITS}
    templates = _texts(path, "templates")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise DatasetError(
                f"{path}: the template {template!r} needs exactly one {{}} for the class name."
            )
    return DatasetInfo(path, _texts(path, "class_names"), templates, sizes)


def load_split(path: Path | str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Loads one split.

    Args:
        path: The dataset.
        split: ``"val"`` or ``"test"``.

    Returns:
        Images, uint8, n x H x W x 3 or n x H x W (gray), and labels, int64, n.

    Raises:
        DatasetError: See `inspect_dataset`.
    """
    path = Path(path)
    if split not in SPLITS:
        raise DatasetError(f"There is no split '{split}': choose one of {', '.join(SPLITS)}.")
    images, labels = _array(path, f"{split}_images"), _array(path, f"{split}_labels")
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DatasetError(
            f"{path}: '{split}_images' must be uint8 of shape (n, height, width, 3) or (n, height, width), "
            f"not {images.dtype} of shape {images.shape}."
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or len(labels) != len(images):
        raise DatasetError(
            f"{path}: '{split}_labels' must be {len(images)} integers, one for each image, "
            f"not {labels.dtype} of shape {labels.shape}."
        )
    if images.size == 0:
        raise DatasetError(f"{path}: the split '{split}' is empty, so there is nothing to measure.")
    n_classes = len(_texts(path, "class_names"))
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DatasetError(
            f"{path}: '{split}_labels' go from {labels.min()} to {labels.max()}, "
            f"but {n_classes} class names allow 0 to {n_classes - 1}."
        )
    return images, labels.astype(np.int64)


def _texts(path: Path, name: str) -> tuple[str, ...]:
    array = _array(path, name)
    if array.dtype.kind != "U" or array.ndim != 1 or len(array) == 0:
        raise DatasetError(
            f"{path}: '{name}' must be a list of texts, not {array.dtype} of shape {array.shape}."
        )
    return tuple(array.tolist())


def _array(path: Path, name: str) -> np.ndarray:
    """Reads one array; pickled objects are refused, never executed."""
    if path.is_dir():
        raise DatasetError(f"{path} is a folder: choose a .npz file in it.")
    if not path.exists():
        raise DatasetError(f"There is no dataset {path}.")
    if not zipfile.is_zipfile(path):
        raise DatasetError(f"{path} is damaged or not a .npz file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if name not in arrays.files:
                raise DatasetError(
                    f"{path} lacks the array '{name}': it holds {', '.join(arrays.files) or 'none'}."
                )
            array: np.ndarray = arrays[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError) as error:
        if "allow_pickle" in str(error):
            raise DatasetError(
                f"{path}: '{name}' holds Python objects, which are never loaded: save plain arrays."
            ) from error
        raise DatasetError(f"{path} is damaged: '{name}' can't be read.") from error
    return array
