"""Datasets in one ``.npz`` file: images, labels, class names and prompt templates."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from mapmerge_core.errors import DatasetError
from mapmerge_core.files import DAMAGED
from mapmerge_core.tasks.data_source import SPLITS, DataSource
from mapmerge_core.tasks.datasets.base import (
    ArrayImages,
    Examples,
    LabelledImages,
    RawImages,
    Reader,
    key_of_file,
    register,
)


class NpzReader(Reader):
    """Arrays of images and labels in one .npz file of NumPy."""

    name: ClassVar[str] = "npz"
    examples: ClassVar[tuple[Examples, ...]] = ("images",)
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def images(self, source: DataSource) -> RawImages:
        """Read which of train, val and test a file holds, and their labels; images are loaded when asked for.

        Raises:
            DatasetError: The file can't be read, holds no split, or an array of a wrong type or shape.
        """
        path = Path(source.path)
        names = _names(path)
        parts = {}
        for split in SPLITS:
            if f"{split}_images" in names:
                labels = _labels(path, split, _count(path, f"{split}_images"))
                load = partial(_images, path, split)
                images = ArrayImages(f"{split}_images", load, len(labels))
                parts[split] = LabelledImages(images, labels.astype(np.int64))
        if not parts:
            _array(path, "val_images")  # says what the file lacks and holds
        return RawImages(
            parts,
            lambda: key_of_file(path),
            _texts(path, "class_names") if "class_names" in names else None,
            _texts(path, "templates") if "templates" in names else None,
        )


register(NpzReader())


def _images(path: Path, split: str) -> np.ndarray:
    """Return a split's images."""
    images = _array(path, f"{split}_images")
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DatasetError(
            f"{path}: '{split}_images' must be uint8 of shape (n, height, width, 3) or (n, height, width), "
            f"not {images.dtype} of shape {images.shape}."
        )
    if images.size == 0:
        raise _empty(path, split)
    return images


def _labels(path: Path, split: str, count: int) -> np.ndarray:
    labels = _array(path, f"{split}_labels")
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or len(labels) != count:
        raise DatasetError(
            f"{path}: '{split}_labels' must be {count} integers, one for each image, "
            f"not {labels.dtype} of shape {labels.shape}."
        )
    if count == 0:
        raise _empty(path, split)
    return labels


def _empty(path: Path, split: str) -> DatasetError:
    return DatasetError(f"{path}: the split '{split}' is empty, so there is nothing to measure.")


def _texts(path: Path, name: str) -> tuple[str, ...]:
    array = _array(path, name)
    if array.dtype.kind != "U" or array.ndim != 1 or len(array) == 0:
        raise DatasetError(f"{path}: '{name}' must be a list of texts, not {array.dtype} of shape {array.shape}.")
    return tuple(array.tolist())


def _names(path: Path) -> list[str]:
    """Return what the file's arrays are called."""
    with _opened(path, "its list of arrays") as arrays:
        return list(arrays.files)


def _count(path: Path, name: str) -> int:
    """Return an array's length, without reading more than its header."""
    with _opened(path, name), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, _ = read(file)
        return shape[0] if shape else 0


def _array(path: Path, name: str) -> np.ndarray:
    """Read one array; pickled objects are refused, never executed."""
    with _opened(path, name) as arrays:
        if name not in arrays.files:
            raise DatasetError(f"{path} lacks the array '{name}': it holds {', '.join(arrays.files) or 'none'}.")
        array: np.ndarray = arrays[name]
    return array


@contextmanager
def _opened(path: Path, name: str) -> Iterator[np.lib.npyio.NpzFile]:
    """Open the file to read an array of it; whatever goes wrong ends in one sentence."""
    if not zipfile.is_zipfile(path):
        raise DatasetError(f"{path} is damaged or not a .npz file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except DAMAGED as error:
        if "allow_pickle" in str(error):
            raise DatasetError(
                f"{path}: '{name}' holds Python objects, which are never loaded: save plain arrays."
            ) from error
        raise DatasetError(f"{path} is damaged: '{name}' can't be read.") from error
