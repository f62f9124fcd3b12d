"""Which model and which dataset belong together, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TypeVar

T = TypeVar("T")

# Shorter names are in too many others by chance.
_SHORTEST = 3


def pair(models: Iterable[str], data: Mapping[T, str]) -> dict[str, T]:
    """Find the dataset for each model.

    A dataset's name fits a model's that is the same, that holds it as whole words, or that holds it at all;
    the closest fit and the longest name come first, and a dataset that fits two equally well is left.

    Args:
        models: Names, all different.
        data: Datasets and their names.

    Returns:
        The datasets of the models for which there is one.
    """
    fits: dict[tuple[int, int], list[tuple[str, T]]] = {}
    for model in models:
        for key, name in data.items():
            if fit := _fit(model, name):
                fits.setdefault((fit, len(_plain(name))), []).append((model, key))
    paired: dict[str, T] = {}
    for score in sorted(fits, reverse=True):
        free = [(model, key) for model, key in fits[score] if model not in paired and key not in paired.values()]
        keys, names = [key for _, key in free], [model for model, _ in free]
        paired |= {m: key for m, key in free if keys.count(key) == 1 and names.count(m) == 1}
    return paired


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return what is different in names that begin or end with the same words: "sun397" of "vit_sun397"."""
    words = {name: re.split(r"([-_. ]+)", name) for name in names}
    if len(names) < 2:
        return {name: name for name in names}
    start, end = _same(words.values()), _same(word[::-1] for word in words.values())
    short = {name: "".join(word[start : len(word) - end]).strip("-_. ") for name, word in words.items()}
    return short if all(short.values()) else {name: name for name in names}


def _same(lists: Iterable[Sequence[str]]) -> int:
    return len(list(takewhile(lambda words: len(set(words)) == 1, zip(*lists, strict=False))))


def _fit(model: str, data: str) -> int:
    """Return 3 for the same name, 2 for one within the other as whole words, 1 for one within the other, else 0."""
    ours, theirs = _plain(model), _plain(data)
    if ours == theirs:
        return 3
    words = set(_words(model)), set(_words(data))
    if all(words) and (words[0] <= words[1] or words[1] <= words[0]):
        return 2
    if min(len(ours), len(theirs)) >= _SHORTEST and (theirs in ours or ours in theirs):
        return 1
    return 0


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]
