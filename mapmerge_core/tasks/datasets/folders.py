"""Datasets in folders: a folder of images for each class, in folders for each split or in one set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.datasets.base import (
    Examples,
    Images,
    LabelledImages,
    RawImages,
    Reader,
    key_of,
    key_of_files,
    register,
    shown,
)
from mapmerge_core.tasks.datasets.decode import to_pixels
from mapmerge_core.tasks.datasets.splitting import ours

if TYPE_CHECKING:
    from mapmerge_core.tasks.data_source import DataSource

IMAGE_FILES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".jp2", ".avif"),
)


class FileImages(Images):
    """Image files."""

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self._folder, self._paths = folder, paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> np.ndarray:
        return to_pixels(self._paths[row], str(self._paths[row]))

    def name(self, row: int) -> str:
        """Return what a message calls an image."""
        return self._paths[row].relative_to(self._folder).as_posix()


def holds_images(folder: Path) -> bool:
    """Return whether there is an image file anywhere in a folder."""
    return next(_walk(folder), None) is not None


class FolderReader(Reader):
    """A folder of images for each class, in folders for each split or in one set; or loose images."""

    name: ClassVar[str] = "folders"
    examples: ClassVar[tuple[Examples, ...]] = ("images",)
    rank: ClassVar[int] = 10

    def reads(self, source: DataSource, examples: Examples) -> bool:  # noqa: ARG002
        """Return whether a source is a folder."""
        return isinstance(source.path, Path) and source.path.is_dir()

    def images(self, source: DataSource) -> RawImages:
        """Find the images of each class, or where labels aren't read all images, without opening one."""
        read = read_folder if source.labelled else read_loose
        return read(Path(source.path), tuple(source.splits.values()))


register(FolderReader())


def read_folder(folder: Path, splits: tuple[str, ...]) -> RawImages:
    """Find the images of each class, without opening one.

    Args:
        folder: Holds a folder for each class, or folders of such folders, one for each split. A folder that
            holds nothing but another one is passed through.
        splits: Names of folders that are splits whatever they are called.

    Raises:
        DatasetError: There are no folders of images, or no more than one class.
    """
    root = folder
    while len(inner := _folders(root)) == 1 and not _images(root) and _inner_images(inner[0]):
        root = inner[0]
    parts = {half.name: half for half in _halves(root, splits)} or {root.name: root}
    classed = {name: _classes(part) for name, part in parts.items()}
    classes = {name for part in classed.values() for name in part}
    if len(classes) < 2:
        raise DatasetError(
            f"{folder} must hold a folder of images for each of two or more classes, or such folders in "
            f"'train', 'val' and 'test', but it holds {_held(root)}."
        )
    every = [path for part in classed.values() for paths in part.values() for path in paths]
    return RawImages(
        {name: _part(root, parts[name], of_part) for name, of_part in classed.items()},
        lambda: key_of_files(root, every),
    )


def read_loose(folder: Path, splits: tuple[str, ...]) -> RawImages:
    """Find all images, however they lie in folders, without opening one.

    Args:
        folder: Holds images, or folders of them; those named like splits are splits, as in `read_folder`.
        splits: Names of folders that are splits whatever they are called.

    Returns:
        Images without labels; the classes are those that `read_folder` would find, if any.
    """
    root = folder
    while len(inner := _folders(root)) == 1 and not _images(root):
        root = inner[0]
    halves = _halves(root, splits) or _loose_halves(root, splits)
    files = {half.name: list(_walk(half)) for half in halves or [root]}
    classes = {name for half in halves or [root] for name in _classes(half)}
    every = [path for paths in files.values() for path in paths]
    return RawImages(
        {name: LabelledImages(FileImages(root, paths), None) for name, paths in files.items()},
        # Not the key of the same images with labels, which may have another order.
        lambda: key_of("loose", key_of_files(root, every)),
        tuple(sorted(classes)) if len(classes) > 1 else None,
    )


def _loose_halves(root: Path, splits: tuple[str, ...]) -> list[Path]:
    """Return the folders that are splits, if they have all images."""
    folders = [path for path in _folders(root) if holds_images(path)]
    named = all(path.name in splits or ours(path.name) for path in folders)
    return folders if named and not _images(root) else []


def _halves(folder: Path, splits: tuple[str, ...]) -> list[Path]:
    """Return the folders that are splits, unless those of such names are classes (train, the vehicle)."""
    named = [path for path in _folders(folder) if path.name in splits or ours(path.name)]
    return named if any(_inner_images(path) for path in named) else []


def _part(root: Path, folder: Path, classed: dict[str, list[Path]]) -> LabelledImages:
    if not classed:
        loose = _images(folder)
        return LabelledImages(FileImages(root, loose), None)
    paths = [path for name in sorted(classed) for path in classed[name]]
    labels = [name for name in sorted(classed) for _ in classed[name]]
    return LabelledImages(FileImages(root, paths), np.array(labels, str))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of each class, in the order in which torchvision's ImageFolder has them."""
    classed = {path.name: list(_walk(path)) for path in _folders(folder)}
    return {name: paths for name, paths in classed.items() if paths}


def _inner_images(folder: Path) -> bool:
    return any(holds_images(path) for path in _folders(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_image(path.name) and path.is_file())


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_FILES) and not name.startswith(".")


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(files) if _is_image(name))


def _held(folder: Path) -> str:
    names = [path.name + "/" for path in _folders(folder)]
    images = len(_images(folder))
    loose = f"{images:,} images outside any folder" if images else ""
    return " and ".join(part for part in (f"the folders {shown(names)}" if names else "", loose) if part) or "none"
