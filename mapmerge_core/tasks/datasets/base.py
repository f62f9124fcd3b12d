"""What every kind of dataset is read into, before it is divided and its classes are named."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

# Files that together take more are told apart by name, size and time of change, not by what they hold.
_READ_WHOLE = 2**30


class Images(ABC):
    """Images of which each is read as it is asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, row: int) -> np.ndarray:
        """Return an image, uint8, H x W x 3, or H x W for a gray one.

        Raises:
            DatasetError: It can't be read as an image.
        """

    @abstractmethod
    def name(self, row: int) -> str:
        """What a message calls an image."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def array(self) -> np.ndarray | None:
        """All images where they lie in memory and have one size, uint8, n x H x W x 3 or n x H x W."""
        return None


class Chosen(Images):
    """Some of the images, in the order of ``rows``."""

    def __init__(self, images: Images, rows: np.ndarray) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._images[int(self._rows[row])]

    def name(self, row: int) -> str:
        """What a message calls an image."""
        return self._images.name(int(self._rows[row]))

    def array(self) -> np.ndarray | None:
        """See `Images.array`."""
        array = self._images.array()
        return array if array is None or len(array) == len(self._rows) else array[self._rows]


@dataclass(frozen=True)
class Part:
    """One of a dataset's own splits.

    Attributes:
        images: n images.
        labels: n integers, or n texts; None where there are none.
    """

    images: Images
    labels: np.ndarray | None


@dataclass(frozen=True)
class Found:
    """What a dataset's reader found.

    Attributes:
        parts: By the dataset's own names of splits.
        key: Tells this content from any other.
        class_names: For integer labels, where the dataset names its classes.
        templates: Where the dataset has some.
        columns: Which columns the images and labels are taken from, for the person to see.
        notes: Sentences for the person to see.
    """

    parts: Mapping[str, Part]
    key: Callable[[], str]
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def key_of(*parts: object) -> str:
    """A hash of texts, numbers and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        piece = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()[:32]


def key_of_file(path: Path) -> str:
    """A hash of what a file holds, wherever it lies."""
    if path.stat().st_size > _READ_WHOLE:
        return key_of_files(path.parent, [path])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def key_of_files(folder: Path, paths: list[Path]) -> str:
    """A hash of files' names within ``folder``, sizes and times of change."""
    stats = ((path.relative_to(folder).as_posix(), path.stat()) for path in sorted(paths))
    return key_of(*(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))


def shown(names: Sequence[str], most: int = 10) -> str:
    """A list of names that stays readable however long it is."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
