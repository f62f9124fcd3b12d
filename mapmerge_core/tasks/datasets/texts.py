"""Texts that language models are measured on, from any source, divided into splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.datasets import splitting
from mapmerge_core.tasks.datasets.base import LazyTexts, RawTexts, find_reader, key_of

if TYPE_CHECKING:
    from mapmerge_core.tasks.data_source import DataSource

_PREVIEW_CHARACTERS = 300

# A text is cut at the next space, unless it is in a script without spaces.
_LONGEST_WORD = 50


class TextDataset:
    """A dataset as `open_texts` opens it.

    Attributes:
        source: What was opened.
        columns: Which column the texts are taken from, where there are columns.
        notes: Sentences that a person should see: what was guessed, divided or left out.
    """

    def __init__(self, source: DataSource, raw: RawTexts) -> None:
        self.source = source
        self.columns = raw.columns
        self._key = raw.key
        texts = raw.parts
        notes = []
        filled = {}
        for split, documents in texts.items():
            rows = np.array([row for row, text in enumerate(documents) if text.strip()], np.int64)
            if len(rows) < len(documents):
                empty = len(documents) - len(rows)
                notes.append(f"{empty:,} of the {len(documents):,} texts of '{split}' are empty and left out.")
            if len(rows):
                filled[split] = rows
        if not filled:
            raise DatasetError(f"{source.path} holds no text, so there is nothing to measure.")
        self._texts: dict[str, Sequence[str]] = {}
        if sum(map(len, filled.values())) == 1 and not source.splits:
            split, rows = next(iter(filled.items()))
            self._texts, divided = _cut(source, texts[split][int(rows[0])])
        else:
            strata = {split: np.zeros(len(rows), np.int64) for split, rows in filled.items()}
            assigned, divided = splitting.assign(source.path, strata, source.splits, source.seed)
            for split, (name, chosen) in assigned.items():
                kept = splitting.subset(strata[name][chosen], source.limit, source.seed)
                self._texts[split] = _ChosenTexts(texts[name], filled[name][chosen[kept]])
        self.notes = (*notes, *divided)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of texts in each split; ``"val"`` and ``"test"`` are always there."""
        return {split: len(texts) for split, texts in self._texts.items()}

    @cached_property
    def content_key(self) -> str:
        """Return a key of this dataset's content and of which of it is used."""
        source = self.source
        return key_of(self._key(), sorted(source.splits.items()), source.limit, source.seed, self.columns)

    def texts(self, split: str) -> Sequence[str]:
        """Return a split's texts, each read as it is asked for.

        Raises:
            DatasetError: There is no such split.
        """
        if split not in self._texts:
            raise DatasetError(f"{self.source.path} has no split '{split}': choose one of {', '.join(self._texts)}.")
        return self._texts[split]


def open_texts(source: DataSource) -> TextDataset:
    """Open a dataset of texts.

    A ``.txt`` file's documents are separated by blank lines; a single one is cut into a training, a
    validation and a test part in this order, 80, 10 and 10 % of it. A folder of ``.txt`` files holds one
    file for each split, or one for each document. Everything else has a column of texts.

    Raises:
        DatasetError: It can't be read, holds no text, no column can be told to hold texts, or no validation
            or test split can be found or made.
    """
    reader = find_reader(source, "texts")
    try:
        return TextDataset(source, reader.texts(source))
    except OSError as error:
        raise DatasetError(f"{source.path} can't be read: {error.strerror or error}.") from error


def text_preview(source: DataSource, count: int) -> list[str]:
    """Return the beginnings of some validation texts.

    Raises:
        DatasetError: As for `open_texts`.
    """
    texts = open_texts(source).texts("val")
    rows = np.linspace(0, len(texts) - 1, min(count, len(texts))).round().astype(int)
    return [_shortened(texts[int(row)]) for row in rows]


class _ChosenTexts(LazyTexts):
    """Those texts whose rows are given, in that order."""

    def __init__(self, texts: Sequence[str], rows: np.ndarray) -> None:
        self._texts, self._rows = texts, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int) -> str:
        """Return one text."""
        return self._texts[int(self._rows[row])]


def _cut(source: DataSource, text: str) -> tuple[dict[str, Sequence[str]], list[str]]:
    """Cut a single text into parts, each beginning with a word."""
    cuts = [0]
    for share in (1 - 2 * splitting.SHARE, 1 - splitting.SHARE):
        cut = round(share * len(text))
        space = re.compile(r"\s").search(text, cut, cut + _LONGEST_WORD)
        cuts.append(space.end() if space else cut)
    parts = {
        split: [text[start:end]]
        for split, start, end in zip(("train", "val", "test"), cuts, [*cuts[1:], len(text)], strict=True)
    }
    if not all(part.strip() for (part,) in parts.values()):
        raise DatasetError(
            f"{source.path} holds a single text of {len(text):,} characters, too short to be divided: add "
            "texts, separated by blank lines."
        )
    note = (
        "It is a single text: its first 80% are the training part, the next 10% the validation part and the "
        "last 10% the test part."
    )
    return dict(parts), [note]


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _PREVIEW_CHARACTERS else text[:_PREVIEW_CHARACTERS].rstrip() + " …"
