"""What a dataset reader is, and what every kind of dataset is read into before it is divided."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, overload

from mapmerge_core.errors import DatasetError
from mapmerge_core.registries import READERS
from mapmerge_core.registry import Helpful

if TYPE_CHECKING:
    import numpy as np

    from mapmerge_core.tasks.data_source import DataSource

Examples = Literal["images", "texts"]

# Files that together take more are told apart by name, size and time of change, not by what they hold.
_READ_WHOLE = 2**30

register = READERS.register


class Images(ABC):
    """A sequence of images, each read when it is asked for.

    Attributes:
        is_array: Whether all of them lie in one array, so that they can be read if one can.
    """

    is_array: ClassVar[bool] = False

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
        """Return what a message calls an image."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def array(self) -> np.ndarray | None:
        """Return all images if they lie in one array, uint8, n x H x W x 3 or n x H x W; else None."""
        return None


class ArrayImages(Images):
    """Images in one array, which is loaded when the first of them is asked for.

    Args:
        title: What messages call the array.
        load: Returns it: uint8, n x H x W x 3 or n x H x W.
        count: n.
    """

    is_array: ClassVar[bool] = True

    def __init__(self, title: str, load: Callable[[], np.ndarray], count: int) -> None:
        self._title, self._load, self._count = title, cache(load), count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> np.ndarray:
        image: np.ndarray = self._load()[row]
        return image

    def name(self, row: int) -> str:
        """Return what a message calls an image."""
        return f"{self._title}[{row}]"

    def array(self) -> np.ndarray:
        """Return all images (see `Images.array`)."""
        return self._load()


class LazyTexts(Sequence[str]):
    """A sequence of texts, each read when it is asked for."""

    @abstractmethod
    def read(self, row: int) -> str:
        """Return one text."""

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self.read(one) for one in range(*row.indices(len(self)))]
        return self.read(row)


class ChosenImages(Images):
    """Those images whose rows are given, in that order."""

    def __init__(self, images: Images, rows: np.ndarray) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._images[int(self._rows[row])]

    def name(self, row: int) -> str:
        """Return what a message calls an image."""
        return self._images.name(int(self._rows[row]))

    def array(self) -> np.ndarray | None:
        """Return the images as an array (see `Images.array`)."""
        array = self._images.array()
        return array if array is None or len(array) == len(self._rows) else array[self._rows]


@dataclass(frozen=True)
class LabelledImages:
    """One of a dataset's own splits.

    Attributes:
        images: n images.
        labels: n integers, or n texts; None where there are none.
    """

    images: Images
    labels: np.ndarray | None


@dataclass(frozen=True)
class RawImages:
    """What a reader makes of a dataset of images.

    Attributes:
        parts: By the dataset's own names of splits.
        key: Tells this content from any other.
        class_names: For integer labels, where the dataset names its classes.
        templates: Where the dataset has some.
        columns: Which columns the images and labels are taken from, for the person to see.
        notes: Sentences for the person to see.
    """

    parts: Mapping[str, LabelledImages]
    key: Callable[[], str]
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawTexts:
    """What a reader makes of a dataset of texts.

    Attributes:
        parts: By the dataset's own names of splits.
        key: Tells this content from any other.
        columns: Which column the texts are taken from, for the person to see.
    """

    parts: Mapping[str, Sequence[str]]
    key: Callable[[], str]
    columns: dict[str, str] = field(default_factory=dict)


class Reader(Helpful, ABC):
    """Reads datasets of one kind of file, folder or address; one instance is registered.

    Attributes:
        name: What messages and tables call it.
        examples: What it can read.
        suffixes: Of the files that it reads.
        rank: Readers of the lowest rank are asked first whether a source is theirs: 0 as a rule, more for
            those that take what nobody else wants.
    """

    name: ClassVar[str]
    examples: ClassVar[tuple[Examples, ...]]
    suffixes: ClassVar[tuple[str, ...]] = ()
    rank: ClassVar[int] = 0

    def reads(self, source: DataSource, examples: Examples) -> bool:  # noqa: ARG002
        """Return whether a source is of its kind; by default that is a file with one of its suffixes."""
        return isinstance(source.path, Path) and _is_file(source.path, self.suffixes)

    def images(self, source: DataSource) -> RawImages:
        """Open a dataset of images, reading as few of them as possible.

        Raises:
            DatasetError: It can't be read.
        """
        raise NotImplementedError(f"{self.name} holds no images")

    def texts(self, source: DataSource) -> RawTexts:
        """Open a dataset of texts.

        Raises:
            DatasetError: It can't be read, or it is not clear where its texts are.
        """
        raise NotImplementedError(f"{self.name} holds no texts")


def find_reader(source: DataSource, examples: Examples) -> Reader:
    """Return the reader of a source.

    Raises:
        DatasetError: There is no such file or folder, or none reads it.
    """
    path = source.path
    readers = sorted(READERS, key=lambda reader: reader.rank)
    if isinstance(path, Path) and not path.exists():
        raise DatasetError(f"There is no dataset {path}.")
    try:
        for reader in readers:
            if examples in reader.examples and reader.reads(source, examples):
                return reader
        others = [other for reader in readers for other in reader.examples if reader.reads(source, other)]
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror or error}.") from error
    if others:
        raise DatasetError(f"{path} holds {others[0]}: choose a dataset of {examples}.")
    suffixes = [suffix for reader in readers if examples in reader.examples for suffix in reader.suffixes]
    raise DatasetError(
        f"{path} is no dataset of {examples}: choose a folder, or a file of the kind "
        f"{', '.join(suffixes[:-1])} or {suffixes[-1]}."
    )


def _is_file(path: Path, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and path.is_file()


def key_of(*parts: object) -> str:
    """Return a hash of texts, numbers and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        piece = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()[:32]


def key_of_file(path: Path) -> str:
    """Return a hash of what a file holds, wherever it lies."""
    if path.stat().st_size > _READ_WHOLE:
        return key_of_files(path.parent, [path])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def key_of_files(folder: Path, paths: list[Path]) -> str:
    """Return a hash of files' names within ``folder``, sizes and times of change."""
    stats = ((path.relative_to(folder).as_posix(), path.stat()) for path in sorted(paths))
    return key_of(*(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))


def shown(names: Sequence[str], most: int = 10) -> str:
    """Return a list of names that stays readable however long it is."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
