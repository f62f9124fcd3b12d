"""Labels of any type as integers, and what the classes are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.datasets.base import RawImages, shown

# Columns of other things than classes, such as identifiers, have more different values.
_MOST_CLASSES = 100_000


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of every split, and the names of the classes.

    Attributes:
        of: int64, n, for each of the dataset's own splits that has labels; -1 for examples of classes that
            are left out.
        class_names: In the order of the labels.
        notes: Sentences for the person to see.
    """

    of: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def number(where: object, raw: RawImages, class_names: tuple[str, ...] | None) -> Labels:
    """Number the classes of a dataset.

    Texts are numbered in alphabetical order, as torchvision's and Hugging Face's image folders are. A
    person's names that are the dataset's own decide the order, and examples of classes not among them are
    left out; other names rename the classes.

    Args:
        where: What a message calls the dataset.
        raw: The dataset.
        class_names: As a person gave them.

    Raises:
        DatasetError: No split has labels, a label is no class, or names don't fit the labels.
    """
    kept, notes = _labelled(where, raw)
    if class_names is not None and len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if class_names.count(name) > 1)
        raise DatasetError(f"{where}: two classes are named '{twice}': name each differently.")
    of, own_names = _integers(where, kept, raw.class_names)
    if own_names is None:
        highest = max(int(labels.max()) for labels in of.values())
        if class_names is None and highest >= _MOST_CLASSES:
            raise DatasetError(f"{where} has labels up to {highest:,}: choose another label column.")
        names = class_names or tuple(str(label) for label in range(highest + 1))
        _check_range(where, of, len(names))
        if class_names is None:
            notes.append(
                f"The dataset doesn't name its classes, so they are called {names[0]} to {names[-1]}: give "
                "their names if a model is to read them."
            )
        return Labels(of, names, tuple(notes))
    _check_range(where, of, len(own_names))
    if class_names is None:
        return Labels(of, readable(own_names), tuple(notes))
    return _reordered(where, of, own_names, class_names, notes)


def ignored(where: object, raw: RawImages, class_names: tuple[str, ...] | None) -> Labels:
    """Put every image in one class, and name the classes that a model may see in them.

    Args:
        where: What a message calls the dataset.
        raw: The dataset, whose labels aren't looked at.
        class_names: As a person gave them; None for the dataset's own.

    Raises:
        DatasetError: There are no images, or no names of two or more different classes.
    """
    of = {split: np.zeros(len(part.images), np.int64) for split, part in raw.parts.items()}
    of = {split: zeros for split, zeros in of.items() if len(zeros)}
    if not of:
        raise DatasetError(f"{where} holds no images: choose another dataset.")
    names = class_names or raw.class_names
    if names is None:
        raise DatasetError(f"{where} doesn't name its classes: give class names for models to choose from.")
    if len(names) < 2 or len(set(names)) < len(names):
        raise DatasetError(f"{where}: give the names of two or more different classes, not {shown(names)}.")
    return Labels(of, readable(names), raw.notes)


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a sentence would hold them, without underscores, if they stay different."""
    spaced = tuple(name.replace("_", " ").strip() for name in names)
    return spaced if len(set(spaced)) == len(names) and all(spaced) else tuple(names)


def _labelled(where: object, raw: RawImages) -> tuple[dict[str, np.ndarray], list[str]]:
    kept: dict[str, np.ndarray] = {}
    notes = list(raw.notes)
    unlabelled = False
    for split, part in raw.parts.items():
        if len(part.images) == 0:
            continue
        # Hidden labels, as of a competition's test split, are often given as -1.
        if part.labels is None or (part.labels.dtype.kind == "i" and bool((part.labels == -1).all())):
            notes.append(f"The split '{split}' has no labels, so it is not used.")
            unlabelled = True
        else:
            kept[split] = part.labels
    if not kept:
        raise DatasetError(f"{where} holds no {'labels' if unlabelled else 'images'}, so there is nothing to measure.")
    return kept, notes


def _integers(
    where: object, kept: Mapping[str, np.ndarray], names: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Labels as integers, and the names that the dataset has for them."""
    if all(labels.dtype.kind != "U" for labels in kept.values()):
        return {split: labels.astype(np.int64) for split, labels in kept.items()}, names
    # A table may hold a split's labels as texts and another's as numbers.
    texts = {split: labels.astype(str) for split, labels in kept.items()}
    present = np.unique(np.concatenate(list(texts.values())))
    if len(present) > _MOST_CLASSES:
        raise DatasetError(f"{where} has {len(present):,} different labels: choose another label column.")
    numbers = {split: np.searchsorted(present, labels) for split, labels in texts.items()}
    return numbers, tuple(present.tolist())


def _check_range(where: object, of: Mapping[str, np.ndarray], count: int) -> None:
    for split, labels in of.items():
        if labels.min() < 0 or labels.max() >= count:
            raise DatasetError(
                f"{where}: the labels of '{split}' go from {labels.min()} to {labels.max()}, "
                f"but {count} class names allow 0 to {count - 1}."
            )


def _reordered(
    where: object, of: Mapping[str, np.ndarray], own_names: tuple[str, ...], wanted: tuple[str, ...], notes: list[str]
) -> Labels:
    """Labels in the order of the names that a person gave, or under these names."""
    # Names are given as the dataset has them, or as we show them.
    shown_as = dict(zip(readable(own_names), own_names, strict=True))
    meant = tuple(name if name in own_names else shown_as.get(name, name) for name in wanted)
    same = set(own_names) & set(meant)
    if len(same) < min(len(own_names), len(wanted)):
        # New names for some classes, in the dataset's order, if the others are in their places.
        if len(own_names) == len(wanted) and all(own_names.index(name) == meant.index(name) for name in same):
            return Labels(of, wanted, tuple(notes))
        others = [name for name in meant if name not in own_names]
        raise DatasetError(
            f"{where} has the {len(own_names)} classes {shown(readable(own_names))}, and {shown(others)} is none of "
            "them: give names of these classes, or a new name for each of them in this order."
        )
    places = np.array([meant.index(name) if name in same else -1 for name in own_names], np.int64)
    moved = {split: places[labels] for split, labels in of.items()}
    left_out = sum(int((labels < 0).sum()) for labels in moved.values())
    if left_out:
        notes.append(
            f"{len(same)} of the dataset's {len(own_names)} classes are used: {left_out:,} examples of others "
            "are left out."
        )
    return Labels(moved, readable(wanted), tuple(notes))
