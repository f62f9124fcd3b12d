"""Datasets that torchvision downloads, by name."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mapmerge_core.errors import DatasetError, reason_of
from mapmerge_core.files import DAMAGED
from mapmerge_core.tasks.datasets.base import (
    ChosenImages,
    Examples,
    Images,
    LabelledImages,
    RawImages,
    Reader,
    key_of,
    register,
)
from mapmerge_core.tasks.datasets.cache import cache_folder, locked, writing
from mapmerge_core.tasks.datasets.decode import to_pixels
from mapmerge_core.tasks.datasets.templates import shipped_class_names

if TYPE_CHECKING:
    from mapmerge_core.tasks.data_source import DataSource

_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {**_TWO, "val": {"split": "val"}}
_WHOLE: Mapping[str, Mapping[str, Any]] = {"all": {}}


@dataclass(frozen=True)
class _Known:
    """How torchvision's class is called: arguments for each split, and the one that chooses a variant."""

    splits: Mapping[str, Mapping[str, Any]]
    variant: str | None = None
    default: Mapping[str, Any] = field(default_factory=dict)


_KNOWN: Mapping[str, _Known] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST", "USPS", "CIFAR10", "CIFAR100"), _Known(_FLAG)),
    "EMNIST": _Known(_FLAG, "split", {"split": "balanced"}),
    **dict.fromkeys(("SVHN", "GTSRB", "StanfordCars", "STL10", "Food101"), _Known(_TWO)),
    **dict.fromkeys(("DTD", "Flowers102", "FGVCAircraft", "RenderedSST2"), _Known(_THREE)),
    "Country211": _Known({**_TWO, "val": {"split": "valid"}}),
    "Imagenette": _Known({"train": {"split": "train"}, "val": {"split": "val"}}),
    "OxfordIIITPet": _Known({"train": {"split": "trainval"}, "test": {"split": "test"}}),
    **dict.fromkeys(("EuroSAT", "SUN397"), _Known(_WHOLE)),
}

_OURS = {"EuroSAT": "eurosat", "MNIST": "mnist", "SVHN": "svhn", "GTSRB": "gtsrb", "USPS": "mnist"}


class PairImages(Images):
    """Images of a torchvision dataset."""

    def __init__(self, pairs: Any, split: str) -> None:  # noqa: ANN401 - torchvision's classes share no type
        self._pairs, self._split = pairs, split

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: int) -> np.ndarray:
        try:
            held = self._pairs[row][0]
        except DAMAGED as error:
            raise DatasetError(f"{self.name(row)} can't be read as an image: {error}.") from error
        return to_pixels(held, self.name(row))

    def name(self, row: int) -> str:
        """Return what a message calls an image."""
        return f"example {row} of {self._split}"


class TorchvisionReader(Reader):
    """Datasets that torchvision downloads, named as torchvision://NAME."""

    name: ClassVar[str] = "torchvision"
    examples: ClassVar[tuple[Examples, ...]] = ("images",)

    def reads(self, source: DataSource, examples: Examples) -> bool:  # noqa: ARG002
        """Return whether a source is named so."""
        return source.torchvision is not None

    def images(self, source: DataSource) -> RawImages:
        """Open a dataset, which is downloaded into our cache if it isn't there.

        Raises:
            DatasetError: There is no such dataset or variant, or it can't be downloaded.
        """
        wanted, variant = str(source.torchvision), source.config
        name = next((name for name in _KNOWN if name.lower() == wanted.lower()), None)
        if name is None:
            raise DatasetError(
                f"There is no dataset '{wanted}' of torchvision that can be opened: choose from "
                f"{', '.join(sorted(_KNOWN))}."
            )
        known = _KNOWN[name]
        if variant is not None and known.variant is None:
            raise DatasetError(f"The dataset {name} has no configurations: leave out '{variant}'.")
        options = {known.variant: variant} if known.variant and variant else known.default
        opened = _open(name, {split: {**options, **of_split} for split, of_split in known.splits.items()})
        parts, keys = {}, [name, str(options)]
        for split, pairs in opened.items():
            numbers, order = _labels_of(pairs)
            parts[split] = LabelledImages(ChosenImages(PairImages(pairs, split), order), numbers[order])
            keys.append(key_of(split, numbers[order].tobytes()))
        return RawImages(parts, lambda: key_of(*keys), _class_names(name, next(iter(opened.values()))))


register(TorchvisionReader())


def _open(name: str, splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Open each split from a folder that is moved to its place only when all of it is there."""
    from torchvision import datasets

    make = getattr(datasets, name)
    folder = cache_folder() / "torchvision"
    home, part = folder / name, folder / f"{name}.part"
    with writing(folder):
        pass
    with locked(folder / f"{name}.lock"):
        try:
            if not home.is_dir():
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                for options in splits.values():
                    make(root=part, download=True, **options)
                part.replace(home)
            return {split: make(root=home, download=False, **options) for split, options in splits.items()}
        except DAMAGED as error:
            raise DatasetError(
                f"torchvision's {name} can't be {'opened' if home.is_dir() else 'downloaded'}: {reason_of(error)}; try "
                "again, or choose a folder or file that holds it."
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _labels_of(pairs: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    """Return labels, without reading images, and the rows in an order that no file system decides."""
    for name in ("targets", "labels", "_labels"):
        if hasattr(pairs, name):
            numbers = np.asarray(getattr(pairs, name), np.int64)
            break
    else:
        numbers = np.array([label for _, label in pairs._samples], np.int64)  # noqa: SLF001
    paths = [str(path) for path in getattr(pairs, "_image_files", ())]
    rows = range(len(numbers))
    return numbers, np.array(sorted(rows, key=paths.__getitem__) if paths else rows)


def _class_names(name: str, pairs: Any) -> tuple[str, ...] | None:  # noqa: ANN401
    if name in _OURS:
        return shipped_class_names()[_OURS[name]]
    names = getattr(pairs, "classes", None)
    if not names:
        return None
    # Imagenette gives several names for a class, and SUN397 a path.
    first = (name if isinstance(name, str) else name[0] for name in names)
    return tuple(name.replace("/", " ") for name in first)
