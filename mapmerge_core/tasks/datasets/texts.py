"""Texts that language models are measured on, from any source, divided into splits."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.datasets import splitting
from mapmerge_core.tasks.datasets.base import key_of, key_of_file, key_of_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datasets import Dataset

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

    def __init__(
        self,
        source: DataSource,
        texts: Mapping[str, Sequence[str]],
        key: Callable[[], str],
        columns: dict[str, str],
    ) -> None:
        self.source = source
        self.columns = columns
        self._key = key
        notes = []
        filled = {}
        for split, documents in texts.items():
            rows = np.array([row for row, text in enumerate(documents) if text.strip()], np.int64)
            if len(rows) < len(documents):
                empty = len(documents) - len(rows)
                notes.append(
                    f"{empty:,} of the {len(documents):,} texts of '{split}' are empty and left out."
                )
            if len(rows):
                filled[split] = rows
        if not filled:
            raise DatasetError(f"{source.path} holds no text, so there is nothing to measure.")
        self._texts: dict[str, Sequence[str]] = {}
        if sum(map(len, filled.values())) == 1 and not source.splits:
            split, rows = next(iter(filled.items()))
            self._texts, said = _cut(source, texts[split][int(rows[0])])
        else:
            alike = {split: np.zeros(len(rows), np.int64) for split, rows in filled.items()}
            assigned, said = splitting.assign(source.path, alike, source.splits, source.seed)
            for split, (name, chosen) in assigned.items():
                kept = splitting.subset(alike[name][chosen], source.limit, source.seed)
                self._texts[split] = _Chosen(texts[name], filled[name][chosen[kept]])
        self.notes = (*notes, *said)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of texts in each split; ``"val"`` and ``"test"`` are always there."""
        return {split: len(texts) for split, texts in self._texts.items()}

    @cached_property
    def content_key(self) -> str:
        """Tells this dataset's content, and which of it is used, from any other."""
        source = self.source
        return key_of(self._key(), sorted(source.splits.items()), source.limit, source.seed, self.columns)

    def texts(self, split: str) -> Sequence[str]:
        """Return a split's texts, each read as it is asked for.

        Raises:
            DatasetError: There is no such split.
        """
        if split not in self._texts:
            raise DatasetError(
                f"{self.source.path} has no split '{split}': choose one of {', '.join(self._texts)}."
            )
        return self._texts[split]


def open_texts(source: DataSource) -> TextDataset:
    """Opens a dataset of texts.

    A ``.txt`` file's documents are separated by blank lines; a single one is cut into a training, a
    validation and a test part in this order, 80, 10 and 10 % of it. A folder of ``.txt`` files holds one
    file for each split, or one for each document. Everything else has a column of texts.

    Raises:
        DatasetError: It can't be read, holds no text, no column can be told to hold texts, or no validation
            or test split can be found or made.
    """
    path = source.path
    if isinstance(path, Path):
        try:
            if path.suffix.lower() in {".txt", ".text", ".md"} and path.is_file():
                return TextDataset(source, {"train": _documents(path)}, lambda: key_of_file(path), {})
            if path.is_dir() and (files := _text_files(path, tuple(source.splits.values()))):
                return _open_folder(source, files)
        except OSError as error:
            raise DatasetError(f"{path} can't be read: {error.strerror}.") from error
    return _open_table(source)


def text_preview(source: DataSource, count: int) -> list[str]:
    """Return the beginnings of some validation texts.

    Raises:
        DatasetError: As for `open_texts`.
    """
    texts = open_texts(source).texts("val")
    rows = np.linspace(0, len(texts) - 1, min(count, len(texts))).round().astype(int)
    return [_shortened(texts[int(row)]) for row in rows]


class _Lazy(Sequence[str]):
    """Texts of which each is read as it is asked for."""

    @abstractmethod
    def read(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self.read(each) for each in range(*row.indices(len(self)))]
        return self.read(row)


class _Chosen(_Lazy):
    """Some of the texts, in the order of ``rows``."""

    def __init__(self, texts: Sequence[str], rows: np.ndarray) -> None:
        self._texts, self._rows = texts, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int) -> str:
        return self._texts[int(self._rows[row])]


class _Column(_Lazy):
    """A column of texts in a table."""

    def __init__(self, table: Dataset, column: str) -> None:
        self._table, self._column = table.select_columns([column]).with_format(None), column

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[str]:
        for batch in self._table.iter(1000):
            yield from (text or "" for text in batch[self._column])

    def read(self, row: int) -> str:
        return self._table[row][self._column] or ""


def _open_table(source: DataSource) -> TextDataset:
    from mapmerge_core.tasks.datasets import tables

    path = source.path
    if isinstance(path, Path) and path.is_file() and path.suffix.lower() not in tables.TABLE_FILES:
        raise DatasetError(
            f"{path} is no dataset of texts: choose a folder, or a file of the kind .txt or "
            f"{', '.join(tables.TABLE_FILES)}."
        )
    if source.torchvision is not None:
        raise DatasetError(f"{path} holds images: choose a dataset of texts.")
    found, key = tables.open_tables(source)
    features = next(iter(found.values())).features
    column = source.text or tables.guess_text(source, features)
    tables.check_columns(source, found, (column,))
    if not tables.holds_texts(features[column]):
        raise DatasetError(f"{path}: the column '{column}' holds no texts: choose another.")
    columns = {split: _Column(table, column) for split, table in found.items()}
    return TextDataset(source, columns, key, {"text": column})


def _open_folder(source: DataSource, files: Mapping[str, list[Path]]) -> TextDataset:
    folder = Path(source.path)
    texts = {
        split: _documents(paths[0]) if len(paths) == 1 else [_text(path) for path in paths]
        for split, paths in files.items()
    }
    every = [path for paths in files.values() for path in paths]
    return TextDataset(source, texts, lambda: key_of_files(folder, every), {})


def _text_files(folder: Path, splits: tuple[str, ...]) -> dict[str, list[Path]]:
    """Text files of each split, named after it or in a folder named after it; all of them without splits."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.is_file() and path.suffix.lower() == ".txt"]
    found = {path.stem: [path] for path in files if path.stem in splits or splitting.ours(path.stem)}
    for path in inside:
        is_split = path.is_dir() and (path.name in splits or splitting.ours(path.name) is not None)
        if is_split and (within := sorted(path.rglob("*.txt"))):
            found[path.name] = within
    return found or ({"train": files} if files else {})


def _documents(path: Path) -> list[str]:
    """A file's texts, which are separated by blank lines."""
    return [text for text in re.split(r"\n[^\S\n]*\n\s*", _text(path).strip()) if text.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8: save it as such.") from error


def _cut(source: DataSource, text: str) -> tuple[dict[str, Sequence[str]], list[str]]:
    """Cuts a single text into parts, each beginning with a word."""
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
