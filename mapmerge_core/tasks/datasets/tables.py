"""Datasets in tables: parquet and similar files, and whatever Hugging Face's datasets library opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mapmerge_core.errors import DatasetError, reason_of
from mapmerge_core.files import DAMAGED
from mapmerge_core.tasks.datasets import folders
from mapmerge_core.tasks.datasets.base import (
    Examples,
    Images,
    LabelledImages,
    LazyTexts,
    RawImages,
    RawTexts,
    Reader,
    key_of,
    key_of_file,
    key_of_files,
    register,
    shown,
)
from mapmerge_core.tasks.datasets.cache import cache_folder, full, is_full, writing
from mapmerge_core.tasks.datasets.decode import to_pixels
from mapmerge_core.tasks.datasets.labels import readable

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder
    from datasets.features import Features

    from mapmerge_core.tasks.data_source import DataSource

TABLE_FILES: Mapping[str, str] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".json": "json",
}

# Others exist that unpack archives or run what they find.
_BUILDERS = ("parquet", "arrow", "csv", "json", "text", "imagefolder")

# What the datasets library made of a hub dataset before, where the hub can't be reached now.
_KEPT = "cache"

_IMAGE_NAMES = ("image", "img", "picture", "photo", "pixels", "pixel_values", "jpg", "png")
_PATH_NAMES = ("image_path", "file_path", "filepath", "file_name", "filename", "path", "file")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "targets", "category", "cls", "y")
_TEXT_NAMES = ("text", "content", "document", "output", "sentence", "response", "completion", "body")


class TableImages(Images):
    """A column of images."""

    def __init__(self, table: Dataset, column: str, split: str, folder: Path | None) -> None:
        from datasets import Image

        table = table.select_columns([column]).with_format(None)
        if isinstance(table.features[column], Image):
            # Our own decoder turns what cameras marked as turned, and tells a damaged image from others.
            table = table.cast_column(column, Image(decode=False))
        self._table, self._column, self._split, self._folder = table, column, split, folder

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> np.ndarray:
        return to_pixels(self._table[row][self._column], self.name(row), self._folder)

    def name(self, row: int) -> str:
        """Return what a message calls an image."""
        return f"row {row} of {self._split}"


class ColumnTexts(LazyTexts):
    """A column of texts in a table."""

    def __init__(self, table: Dataset, column: str) -> None:
        self._table, self._column = table.select_columns([column]).with_format(None), column

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[str]:
        for batch in self._table.iter(1000):
            yield from (text or "" for text in batch[self._column])

    def read(self, row: int) -> str:
        """Return the text of a row."""
        return self._table[row][self._column] or ""


class TableReader(Reader):
    """Tables in files or folders, and whatever Hugging Face's datasets library opens, also from the hub."""

    name: ClassVar[str] = "tables"
    examples: ClassVar[tuple[Examples, ...]] = ("images", "texts")
    suffixes: ClassVar[tuple[str, ...]] = tuple(TABLE_FILES)
    rank: ClassVar[int] = 5

    def reads(self, source: DataSource, examples: Examples) -> bool:
        """Return whether a source is on the hub, a table's file, or a folder that isn't one of images."""
        path = source.path
        if source.hub is not None or super().reads(source, examples):
            return True
        if not isinstance(path, Path) or not path.is_dir():
            return False
        if examples == "texts" or _is_saved(path) or _has_metadata(path):
            return True
        return _holds_tables(path) and not folders.holds_images(path)

    def images(self, source: DataSource) -> RawImages:
        """Open a dataset's tables and choose the columns of images and, unless they have none, labels.

        Raises:
            DatasetError: It can't be opened, or it is not clear which column holds images or labels.
        """
        tables, key = _open_tables(source)
        features = next(iter(tables.values())).features
        image = source.image or _guess_image(source, features)
        label = _label_column(source, features, image)
        columns = {"image": image} | ({} if label is None else {"label": label})
        _check_columns(source, tables, tuple(columns.values()))
        names = None if label is None else getattr(features[label], "names", None)
        folder = None if isinstance(source.path, str) else source.path
        folder = folder.parent if folder is not None and folder.is_file() else folder
        parts, is_bool = {}, False
        for split, table in tables.items():
            labels = _labels(source, table, label, split) if label and source.labelled else None
            is_bool |= labels is not None and labels.dtype == np.bool_
            labels = labels.astype(np.int64) if labels is not None and labels.dtype == np.bool_ else labels
            parts[split] = LabelledImages(TableImages(table, image, split, folder), labels)
        if names is None and is_bool:
            names = ("False", "True")
        return RawImages(
            parts,
            lambda: key_of(key(), image, label, *_named_files(tables, image, folder)),
            readable(names) if names else None,
            columns=columns,
        )

    def texts(self, source: DataSource) -> RawTexts:
        """Open a dataset's tables and choose the column of texts."""
        tables, key = _open_tables(source)
        features = next(iter(tables.values())).features
        column = source.text or _guess_text(source, features)
        _check_columns(source, tables, (column,))
        if not _holds_texts(features[column]):
            raise DatasetError(f"{source.path}: the column '{column}' holds no texts: choose another.")
        parts = {split: ColumnTexts(table, column) for split, table in tables.items()}
        return RawTexts(parts, key, {"text": column})


register(TableReader())


def _named_files(tables: Mapping[str, Dataset], column: str, folder: Path | None) -> Iterator[str]:
    """Yield names, sizes and times of change of the image files that a column of texts names."""
    for table in tables.values():
        if _holds_texts(table.features[column]):
            for name in table.select_columns([column]).with_format(None)[:][column]:
                try:
                    stat = ((folder or Path()) / (name or "")).stat()
                    yield f"{name} {stat.st_size} {stat.st_mtime_ns}"
                except (OSError, ValueError):  # the check names those that can't be read
                    yield f"{name} is missing"


def _open_tables(source: DataSource) -> tuple[dict[str, Dataset], Callable[[], str]]:
    """Open all tables by the dataset's own names of splits, memory-mapped; no code of a dataset is run.

    Returns:
        The tables, and a function that tells their content from any other.

    Raises:
        DatasetError: It can't be opened.
    """
    import datasets

    with _opening(source):
        if source.hub is not None:
            name, revision = source.hub
            tables = _built(source, datasets.load_dataset_builder(name, source.config, revision=revision))
            return tables, lambda: _fingerprints(tables)
        path = Path(source.path)
        if _is_saved(path):
            saved = datasets.load_from_disk(path)
            tables = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            return tables, lambda: _fingerprints(tables)
        folder = cache_folder() / "tables"
        with writing(folder):
            pass
        with _quietly():
            if path.is_dir():
                builder = datasets.load_dataset_builder(str(path), source.config, cache_dir=str(folder))
                files = [file for file in path.rglob("*") if file.is_file()]
                return _built(source, builder), lambda: key_of_files(path, files)
            builder = datasets.load_dataset_builder(
                TABLE_FILES[path.suffix.lower()],
                data_files={"train": str(path)},
                cache_dir=str(folder),
                **({"sep": "\t"} if path.suffix.lower() == ".tsv" else {}),
            )
            return _built(source, builder), lambda: key_of_file(path)


def _is_saved(folder: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk``."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def _holds_tables(folder: Path) -> bool:
    """Return whether a folder holds tables, or a dataset's description as the hub has it."""
    return any(
        file.is_file() and (file.suffix.lower() in TABLE_FILES or file.name.lower() == "readme.md")
        for level in ("*", "*/*")
        for file in folder.glob(level)
    )


def _has_metadata(folder: Path) -> bool:
    """Return whether a file beside the images gives their labels, as the datasets library's image folders have."""
    names = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
    return any(next(folder.glob(level + name), None) is not None for level in ("", "*/") for name in names)


def _check_columns(source: DataSource, tables: Mapping[str, Dataset], columns: tuple[str, ...]) -> None:
    """Refuse columns that a split lacks."""
    for split, table in tables.items():
        for column in columns:
            if column not in table.column_names:
                raise DatasetError(
                    f"{source.path} has no column '{column}' in '{split}': choose from {shown(table.column_names)}."
                )


def _guess_text(source: DataSource, features: Features) -> str:
    """Return the column that holds the texts."""
    texts = [name for name, feature in features.items() if _holds_texts(feature)]
    return _guess(source, "texts", "text", _named(texts, _TEXT_NAMES) or texts, features)


def _holds_texts(feature: object) -> bool:
    """Return whether a column's type is that of texts."""
    return _dtype(feature) in {"string", "large_string"}


def _guess_image(source: DataSource, features: Features) -> str:
    from datasets import Image

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    held = [name for name, feature in features.items() if _may_be_image(feature)]
    paths = [name for name, feature in features.items() if _holds_texts(feature)]
    for among in (images, held):
        if among:
            return _guess(source, "images", "image", _named(among, _IMAGE_NAMES) or among, features)
    return _guess(source, "images", "image", _named(paths, (*_IMAGE_NAMES, *_PATH_NAMES)), features)


def _guess_label(source: DataSource, features: Features, image: str) -> str:
    from datasets import ClassLabel

    others = {name: feature for name, feature in features.items() if name != image}
    classes = [name for name, feature in others.items() if isinstance(feature, ClassLabel)]
    plain = [name for name, feature in others.items() if _may_be_label(feature)]
    named = _named(classes, _LABEL_NAMES) or _named(list(others), _LABEL_NAMES)
    return _guess(source, "labels", "label", named or classes or plain, features)


def _label_column(source: DataSource, features: Features, image: str) -> str | None:
    """Return the column of labels; where they aren't read it only names the classes, and may be missing."""
    try:
        return source.label or _guess_label(source, features, image)
    except DatasetError:
        if source.labelled:
            raise
        return None


def _named(columns: list[str], usual: tuple[str, ...]) -> list[str]:
    """Return the column whose name comes first among the usual ones, if any, in a list."""
    lower = {column.lower(): column for column in reversed(columns)}
    return [lower[name] for name in usual if name in lower][:1]


def _guess(source: DataSource, what: str, setting: str, candidates: list[str], features: Features) -> str:
    if len(candidates) == 1:
        return candidates[0]
    raise DatasetError(
        f"{source.path}: it is not clear which column holds the {what}: choose the {setting} column from "
        f"{shown(list(features))}."
    )


def _may_be_image(feature: object) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    kind = type(feature).__name__
    inner = getattr(feature, "feature", None)
    return (
        _dtype(feature) in {"binary", "large_binary"}
        or kind in {"Array2D", "Array3D"}
        or (kind in {"List", "LargeList", "Sequence"} and type(inner).__name__ in {"List", "LargeList", "Sequence"})
    )


def _may_be_label(feature: object) -> bool:
    dtype = _dtype(feature)
    return dtype in {"string", "large_string", "bool"} or dtype.startswith(("int", "uint"))


def _dtype(feature: object) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ in {"Value", "ClassLabel"} else ""


def _labels(source: DataSource, table: Dataset, column: str, split: str) -> np.ndarray | None:
    """Return the labels of one split: integers, bools or texts; None if none is given."""
    held = table.select_columns([column]).with_format("arrow")[:].column(column)
    if held.null_count == len(held):
        return None
    if held.null_count:
        raise DatasetError(
            f"{source.path}: {held.null_count:,} of the {len(held):,} labels of '{split}' are empty: fill "
            "them in or remove those rows."
        )
    labels = np.asarray(held.to_pylist())
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        raise DatasetError(
            f"{source.path}: the column '{column}' holds no labels, which are whole numbers, texts, or true "
            "and false: choose another."
        )
    return labels.astype(np.int64) if labels.dtype.kind in "iu" else labels


def _built(source: DataSource, builder: DatasetBuilder) -> dict[str, Dataset]:
    if builder.name not in (*_BUILDERS, _KEPT):
        raise DatasetError(
            f"{source.path} is a dataset of the kind '{builder.name}': save its images and labels, or texts, "
            f"as one of {', '.join(_BUILDERS)}."
        )
    builder.download_and_prepare()
    return dict(builder.as_dataset())


@contextmanager
def _quietly() -> Iterator[None]:
    """Local files are opened without the datasets library's progress bars."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown_before = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown_before:
            enable_progress_bars()


def _fingerprints(tables: Mapping[str, Dataset]) -> str:
    return key_of(*(f"{split} {table._fingerprint}" for split, table in tables.items()))  # noqa: SLF001


@contextmanager
def _opening(source: DataSource) -> Iterator[None]:
    """Turn whatever the datasets library raises into one sentence."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (*DAMAGED, DatasetsError) as error:
        bottom: BaseException = error
        while bottom.__cause__ is not None:
            bottom = bottom.__cause__
        if is_full(bottom):
            raise full(cache_folder()) from error
        advice = "; check the address, and that this machine reaches the hub" if source.hub else ""
        raise DatasetError(f"{source.path} can't be opened: {reason_of(bottom)}{advice}.") from error
