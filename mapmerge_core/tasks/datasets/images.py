"""Labelled images from any source, divided into splits, checked and ready to be prepared."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.datasets import checks, labels, splitting, templates
from mapmerge_core.tasks.datasets.base import ChosenImages, Images, RawImages, find_reader, key_of

if TYPE_CHECKING:
    from mapmerge_core.tasks.data_source import DataSource


class ImageDataset:
    """A dataset as `open_images` opens it.

    Attributes:
        source: What was opened.
        class_names: In the order of the labels.
        templates: Prompts with one ``{}`` for the class name.
        columns: Which columns the images and labels are taken from, where there are columns.
        notes: Sentences that a person should see: what was guessed, divided or left out.
        corrupt: Names of images that can't be read and are left out, of the splits that were checked.
    """

    def __init__(self, source: DataSource, raw: RawImages) -> None:
        where = source.path
        self.source = source
        self._raw = raw
        typed = source.class_names
        class_names = templates.read_list(typed) if isinstance(typed, Path) else typed
        numbered = (labels.number if source.labelled else labels.ignored)(where, raw, class_names)
        self.class_names = numbered.class_names
        self.columns = raw.columns
        used = {split: np.flatnonzero(of >= 0) for split, of in numbered.of.items()}
        used_labels = {split: numbered.of[split][rows] for split, rows in used.items()}
        divided: list[str] = []
        if source.labelled:
            assigned, divided = splitting.assign(where, used_labels, source.splits, source.seed)
        else:
            assigned = splitting.undivided(where, used_labels, source.splits)
        self._theirs = {split: name for split, (name, _) in assigned.items()}
        self._rows: dict[str, np.ndarray] = {}
        self._numbers = numbered.of
        for split, (name, chosen) in assigned.items():
            rows = used[name][chosen]
            kept = splitting.subset(numbered.of[name][rows], source.limit, source.seed)
            if len(kept) == 0:
                raise DatasetError(f"{where}: the split '{name}' is empty, so there is nothing to measure.")
            self._rows[split] = rows[kept]
        self.templates, prompted = self._choose_templates()
        self.notes = (*numbered.notes, *divided, *prompted)
        self.corrupt: tuple[str, ...] = ()
        self._checked: set[str] = set()

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each split; ``"val"`` is always there, ``"test"`` where there are labels."""
        return {split: len(rows) for split, rows in self._rows.items()}

    @cached_property
    def content_key(self) -> str:
        """Return a key of this dataset's content and of which of it is used."""
        # Made of what was chosen before unreadable images are left out, which follow from it.
        return self._content_key(*(self._key_of_rows(split) for split in sorted(self._rows)))

    def split_key(self, split: str) -> str:
        """Return a key of a split's images and their order."""
        self.check(split)
        return self._key_of_rows(split)

    def labels(self, split: str) -> np.ndarray:
        """Return a split's labels, int64, n.

        Raises:
            DatasetError: There is no such split, some of its images can't be read (see `check`), or labels
                aren't to be read.
        """
        if not self.source.labelled:
            raise DatasetError(f"{self.source.path} has no labels to measure models by: add some.")
        self.check(split)
        numbers: np.ndarray = self._numbers[self._theirs[split]][self._rows[split]]
        return numbers

    def images(self, split: str) -> Images:
        """Return a split's images (n), each read as it is asked for: uint8, H x W x 3 or H x W.

        Raises:
            DatasetError: There is no such split, or some of its images can't be read (see `check`).
        """
        self.check(split)
        return self._chosen(split)

    def array(self, split: str) -> np.ndarray | None:
        """Return a split's images where they lie in memory, uint8, n x H x W x 3 or n x H x W, else None.

        Raises:
            DatasetError: There is no such split.
        """
        return self.images(split).array()

    def check(
        self, split: str, progress: Callable[[int, int], None] | None = None, cancel: Event | None = None
    ) -> None:
        """Read all of a split's images, once for their content, and leave out those that can't be read.

        Args:
            split: One of `sizes`.
            progress: Called with how many are done, and how many there are.
            cancel: Set by whoever wants it to stop.

        Raises:
            DatasetError: There is no such split, some can't be read and the person did not agree to leave
                them out, or none can.
            Cancelled: ``cancel`` is set.
        """
        if split not in self._rows:
            raise DatasetError(f"{self.source.path} has no split '{split}': choose one of {', '.join(self._rows)}.")
        if split in self._checked:
            return
        images = self._chosen(split)
        if self._raw.parts[self._theirs[split]].images.is_array:
            images.array()
        elif bad := checks.unreadable(images, self._key_of_rows(split), progress, cancel):
            names = [images.name(row) for row in bad]
            if not self.source.skip_corrupt or len(bad) == len(images):
                raise checks.refuse(self.source.path, split, names, len(images))
            _ = self.content_key
            self._rows[split] = np.delete(self._rows[split], bad)
            self.corrupt += tuple(names)
        self._checked.add(split)

    def preview(self, count: int) -> list[tuple[np.ndarray, str]]:
        """Return some validation images and their class names (see `preview`)."""
        images, rows = self._chosen("val"), self._rows["val"]
        numbers = self._numbers[self._theirs["val"]][rows]
        shown: list[tuple[np.ndarray, str]] = []
        for row in _apart(numbers, len(self.class_names)):
            if len(shown) == count:
                break
            try:
                name = self.class_names[numbers[row]] if self.source.labelled else ""
                shown.append((images[row], name))
            except DatasetError:
                continue  # the check names it
        return shown

    def _chosen(self, split: str) -> Images:
        return ChosenImages(self._raw.parts[self._theirs[split]].images, self._rows[split])

    def _key_of_rows(self, split: str) -> str:
        return self._content_key(self._theirs[split], self._rows[split].astype("<i8").tobytes())

    def _content_key(self, *parts: object) -> str:
        return key_of(self._raw_key, *parts)

    @cached_property
    def _raw_key(self) -> str:
        return self._raw.key()

    def _choose_templates(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Prompts: a person's, else the dataset's, else shipped ones for a dataset of this name."""
        path = self.source.path
        if self.source.templates is not None:
            return templates.read_templates(self.source.templates), ()
        if self._raw.templates is not None:
            return templates.check_templates(self._raw.templates, path), ()
        name = path.stem if isinstance(path, Path) else path.partition("@")[0].rpartition("/")[2]
        shipped = templates.find_shipped(name)
        if shipped is None:
            return templates.DEFAULT_TEMPLATES, ()
        prompts = templates.shipped_templates()[shipped]
        return prompts, (f"The prompts are those that are shipped for {shipped}.",)


def open_images(
    source: DataSource,
    *,
    check: bool = True,
    progress: Callable[[int, int], None] | None = None,
    cancel: Event | None = None,
) -> ImageDataset:
    """Open a dataset of images, labelled unless ``source`` says otherwise.

    Args:
        source: Where it is, and what a person said about it.
        check: Whether all images of the validation and test splits are read, to find those that can't be, as
            is remembered for the next time. Any split is checked before its images are handed out.
        progress: Called with how many images are checked, and how many there are.
        cancel: Set by whoever wants it to stop.

    Raises:
        DatasetError: It can't be read, no validation or test split can be found or made, labels don't fit
            the class names, or images can't be read and the person did not agree to leave them out.
        Cancelled: ``cancel`` is set.
    """
    reader = find_reader(source, "images")
    try:
        dataset = ImageDataset(source, reader.images(source))
    except OSError as error:
        raise DatasetError(f"{source.path} can't be read: {error.strerror or error}.") from error
    if check:
        sizes = {split: count for split, count in dataset.sizes.items() if split != "train"}
        total = sum(sizes.values())
        before = 0
        for split, count in sizes.items():
            shifted = None if progress is None else _shifted(progress, before, total)
            dataset.check(split, shifted, cancel)
            before += count
    return dataset


def preview(source: DataSource, count: int) -> list[tuple[np.ndarray, str]]:
    """Return some validation images and their class names, of classes as different as possible.

    Only these images are read, not the whole dataset, and images that can't be read are passed over.

    Raises:
        DatasetError: As for `open_images`, but for unreadable images.
    """
    return open_images(source, check=False).preview(count)


def _apart(numbers: np.ndarray, n_classes: int) -> list[int]:
    """Rows in an order that meets classes far apart first, and no class again before all others."""
    by_class: dict[int, list[int]] = {}
    for row, number in enumerate(numbers.tolist()):
        by_class.setdefault(number, []).append(row)
    # Bit reversal: the first 2, 4, 8, ... are spread evenly.
    bits = max(1, (n_classes - 1).bit_length())
    order = sorted(by_class, key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))
    return [
        by_class[number][turn]
        for turn in range(max(map(len, by_class.values())))
        for number in order
        if turn < len(by_class[number])
    ]


def _shifted(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(before + done, total)
