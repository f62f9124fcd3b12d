"""Where a task's examples come from: what a person says about a dataset, before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from mapmerge_core.errors import DatasetError, SettingError, StudyError
from mapmerge_core.files import absolute
from mapmerge_core.settings import check_seed

SPLITS = ("train", "val", "test")

HUB = "hf://datasets/"
TORCHVISION = "torchvision://"

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_LIST_FILES = (".txt", ".json")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A dataset and how to read it; everything but ``path`` is guessed where it is left out.

    Attributes:
        path: A file (``.npz``, ``.parquet``, ``.txt``, ``.jsonl``, ...), a folder,
            ``hf://datasets/org/name[@revision]`` or ``torchvision://NAME``. Files and folders are made absolute.
        config: Which configuration of a dataset that has several.
        image: The column that holds the images.
        label: The column that holds the labels.
        text: The column that holds the texts.
        splits: The dataset's name for each of ours: ``{"val": "validation"}``.
        class_names: In the order of the labels, or a file of them (``.txt``, one a line, or a JSON list).
        templates: Prompts with one ``{}`` for the class name, the name of a set that is shipped, or a file.
        limit: At most so many examples of each split.
        skip_corrupt: Whether images that can't be read are left out, rather than refused.
        seed: Decides how examples are divided into splits, and which ones ``limit`` keeps.
        labelled: Whether images have labels to read; without, loose images will do, and all of the validation
            split, or of the only one, are used.

    Raises:
        DatasetError: The address, a split's name or the limit is not one.
    """

    path: Path | str
    config: str | None = None
    image: str | None = None
    label: str | None = None
    text: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict, hash=False)
    class_names: tuple[str, ...] | Path | None = None
    templates: tuple[str, ...] | str | Path | None = None
    limit: int | None = None
    skip_corrupt: bool = False
    seed: int = 0
    labelled: bool = True

    def __post_init__(self) -> None:
        self._set("path", _address(self.path))
        self._set("class_names", _list_or_file(self.class_names, "class_names"))
        self._set("templates", _templates(self.templates))
        if not isinstance(self.splits, Mapping):
            raise DatasetError(f"{self.path}: 'splits' must give the dataset's name for each of our splits.")
        self._set("splits", dict(self.splits))
        for split in self.splits:
            if split not in SPLITS:
                raise DatasetError(f"There is no split '{split}': choose one of {', '.join(SPLITS)}.")
        theirs = list(self.splits.values())
        if twice := next((name for name in theirs if theirs.count(name) > 1), None):
            raise DatasetError(f"{self.path}: '{twice}' can't be two splits at once: name another for one.")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            raise DatasetError(f"{self.path}: the limit must be a whole number from 1 on, not {self.limit!r}.")
        try:
            check_seed(self.seed)
        except SettingError as error:
            raise DatasetError(f"{self.path}: {error}") from None

    @property
    def hub(self) -> tuple[str, str | None] | None:
        """Return a hub dataset's name and revision, or None."""
        match = isinstance(self.path, str) and _HUB_NAME.fullmatch(self.path.removeprefix(HUB))
        return (match["name"], match["revision"]) if match and self.path != match[0] else None

    @property
    def torchvision(self) -> str | None:
        """Return the name of a dataset that torchvision offers, or None."""
        is_one = isinstance(self.path, str) and self.path.startswith(TORCHVISION)
        return str(self.path).removeprefix(TORCHVISION) if is_one else None

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as JSON allows; `from_dict` reads it back."""
        default = {part.name: part.default for part in fields(self)} | {"splits": {}}
        values = {name: getattr(self, name) for name in default}
        return {name: _plain(value) for name, value in values.items() if value != default[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned, or a person wrote.

        Raises:
            DatasetError: ``path`` is missing, a name is unknown, or a value is not allowed.
        """
        known = [part.name for part in fields(cls)]
        for name in values:
            if name not in known:
                raise DatasetError(f"A dataset has no setting '{name}': choose from {', '.join(known)}.")
        if "path" not in values:
            raise DatasetError("A dataset needs a 'path': a file, a folder or an address.")
        for name in ("config", "image", "label", "text"):
            if not isinstance(values.get(name), str | None):
                raise DatasetError(f"{values['path']}: '{name}' must be a text, not {values[name]!r}.")
        for name in ("skip_corrupt", "labelled"):
            if not isinstance(values.get(name, False), bool):
                raise DatasetError(f"{values['path']}: '{name}' must be true or false.")
        return cls(**values)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _address(path: Path | str) -> Path | str:
    if not isinstance(path, Path | str) or not str(path).strip():
        raise DatasetError(f"A dataset's path must be a file, a folder or an address, not {path!r}.")
    if isinstance(path, Path) or "://" not in path:
        return _absolute(path)
    if path.startswith(HUB) and _HUB_NAME.fullmatch(path.removeprefix(HUB)):
        return path
    if path.startswith(TORCHVISION) and path.removeprefix(TORCHVISION).isidentifier():
        return path
    raise DatasetError(
        f"'{path}' is no dataset's address: write {HUB}organisation/name[@revision], {TORCHVISION}NAME, "
        "or a file or folder."
    )


def _absolute(path: Path | str) -> Path:
    try:
        return absolute(path)
    except StudyError as error:
        raise DatasetError(str(error)) from None


def _list_or_file(value: object, name: str) -> tuple[str, ...] | Path | None:
    if value is None:
        return None
    if isinstance(value, Path | str):
        return _absolute(value)
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise DatasetError(f"'{name}' must be a list of texts or a file, not {value!r}.")


def _templates(value: object) -> tuple[str, ...] | str | Path | None:
    if isinstance(value, str) and "{" in value:
        return (value,)
    # A shipped set's name is no path: those that were written by `to_dict` are absolute.
    if isinstance(value, str) and not value.endswith(_LIST_FILES) and not re.search(r"[/\\]", value):
        return value
    return _list_or_file(value, "templates")


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
