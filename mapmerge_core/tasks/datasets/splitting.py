"""Who is trained on, validated and tested: finding splits, dividing one, and taking a part of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import SPLITS
from mapmerge_core.tasks.datasets.base import shown

ALIASES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

# Of the training split, for each of validation and test that a dataset lacks.
SHARE = 0.1

_CALLED = {"train": "training", "val": "validation", "test": "test"}


def ours(name: str) -> str | None:
    """Return which of our splits a dataset's own name stands for, if any."""
    return next((split for split, names in ALIASES.items() if name.lower() in names), None)


def assign(
    where: object, labels: Mapping[str, np.ndarray], wanted: Mapping[str, str], seed: int
) -> tuple[dict[str, tuple[str, np.ndarray]], list[str]]:
    """Find or make a validation and a test split.

    A missing one is a tenth (`SHARE`) of the training split, of every class alike; where there is no training
    split, half of the validation split becomes the test split. Nothing is ever taken from the test split.

    Args:
        where: What a message calls the dataset.
        labels: For each of the dataset's splits, n integers.
        wanted: The dataset's name for some of our splits.
        seed: Decides which examples are taken.

    Returns:
        For each of our splits, the dataset's split and rows of it in ascending order; and sentences that say
        what was made.

    Raises:
        DatasetError: A split that is wanted is missing, or validation and test splits can't be made.
    """
    names = _named(where, list(labels), wanted)
    chosen = {split: (name, np.arange(len(labels[name]))) for split, name in names.items()}
    missing = [split for split in ("val", "test") if split not in chosen]
    if not missing:
        return chosen, []
    if "train" in chosen:
        source, share = "train", SHARE
    elif missing == ["test"]:
        source, share = "val", 0.5
    else:
        raise _no_validation(where, list(labels))
    name, rows = chosen[source]
    taken = divide(labels[name], missing, share, seed)
    left = np.setdiff1d(rows, np.concatenate(list(taken.values())))
    chosen[source] = (name, left)
    of_each = " of each class" if len(np.unique(labels[name])) > 1 else ""
    notes = []
    for split in missing:
        if len(taken[split]) == 0 or (source == "val" and len(left) == 0):
            raise DatasetError(
                f"{where} has no {_CALLED[split]} split, and '{name}' is too small to be divided: add "
                "examples, or the split."
            )
        chosen[split] = (name, taken[split])
        notes.append(
            f"There is no {_CALLED[split]} split: {len(taken[split]):,} of the {len(rows):,} examples of "
            f"'{name}' ({share:.0%}{of_each}, seed {seed}) are kept apart for it."
        )
    if len(left) == 0:
        del chosen[source]
    return {split: chosen[split] for split in SPLITS if split in chosen}, notes


def undivided(
    where: object, labels: Mapping[str, np.ndarray], wanted: Mapping[str, str]
) -> dict[str, tuple[str, np.ndarray]]:
    """Find the images for ``"val"`` where nothing is trained on or tested.

    Args:
        where: What a message calls the dataset.
        labels: For each of the dataset's splits, n numbers of any kind.
        wanted: The dataset's name for some of our splits.

    Returns:
        All rows of its validation split, else of its training split, else of its only one.

    Raises:
        DatasetError: A split that is wanted is missing, or there are none of these.
    """
    names = _named(where, list(labels), wanted)
    name = next((names[split] for split in ("val", "train", "test") if split in names), None)
    if name is None:
        raise _no_validation(where, list(labels))
    return {"val": (name, np.arange(len(labels[name])))}


def divide(labels: np.ndarray, splits: Sequence[str], share: float, seed: int) -> dict[str, np.ndarray]:
    """Take ``share`` of each class for each of ``splits``, and at least one if the class has enough.

    Args:
        labels: n integers.
        splits: Their names.
        share: From 0 to 1.
        seed: Decides which.

    Returns:
        Rows in ascending order, for each split.
    """
    rng = np.random.default_rng(seed)
    taken: dict[str, list[np.ndarray]] = {split: [np.empty(0, np.int64)] for split in splits}
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, round(share * len(rows)))
        # With too few, a class stays whole where it is.
        for split in splits if len(rows) >= max(2, len(splits)) else ():
            taken[split].append(rows[:count])
            rows = rows[count:]
    return {split: np.sort(np.concatenate(rows)) for split, rows in taken.items()}


def subset(labels: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Choose at most ``limit`` rows, of every class the same share.

    Every class is there if there are no more classes than ``limit``; a smaller limit's rows are among a larger one's.

    Args:
        labels: n integers.
        limit: None for all.
        seed: Decides which.

    Returns:
        Rows in ascending order.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    share_before = np.empty(len(labels))
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        share_before[rows] = np.arange(len(rows)) / len(rows)
    return np.sort(order[np.argsort(share_before[order], kind="stable")[:limit]])


def _no_validation(where: object, names: list[str]) -> DatasetError:
    return DatasetError(
        f"{where} has the splits {shown(names)}, of which none can be validated on: say which is 'val', or "
        "give a training split to take it from."
    )


def _named(where: object, theirs: list[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the dataset's name for each of our splits that it has."""
    names: dict[str, str] = {}
    for split, name in wanted.items():
        if name not in theirs:
            raise DatasetError(f"{where} has no split '{name}': choose from {shown(theirs)}.")
        names[split] = name
    free = [name for name in theirs if name not in names.values()]
    for name in free:
        alias = ours(name)
        if alias is not None and alias not in names:
            names[alias] = name
    if not names and len(theirs) == 1:
        return {"train": theirs[0]}
    return {split: names[split] for split in SPLITS if split in names}
