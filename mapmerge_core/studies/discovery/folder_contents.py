"""The models and datasets in a folder, by the names of files and their JSON; no weights are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapmerge_core.files import read_json
from mapmerge_core.weights.io.folders import ADAPTER_CONFIG, is_index, is_weights, main_file

_DEEPEST = 3
_TABLES = (".npz", ".parquet", ".arrow", ".jsonl", ".csv", ".tsv")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_SPLIT_FILE = re.compile(rf"({'|'.join(_SPLITS)})\b", re.IGNORECASE)
# Text files that lie beside models and datasets and are neither.
_NO_TEXTS = re.compile(
    r"(readme|licen[cs]e|notice|requirements|merges|vocab|classes|class_?names|labels|templates|prompts|log)"
    r".*\.txt",
    re.IGNORECASE,
)
# Names that many files have: the folder's name is used instead.
_COMMON_NAME = re.compile(
    r"(fine-?_?tuned|model|checkpoint|weights|pytorch_model|open_clip_\w+|best|last|final|data|dataset|train|val|"
    r"test|adapter_model|visual)([-_]?\d+)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint.

    Attributes:
        name: What its file or folder is called.
        path: The file or folder.
        config: Its folder's config.json, or an adapter's configuration; {} where there is none.
        base: The model that it says it was made from; "" where it doesn't.
        is_adapter: Whether it is a PEFT adapter.
    """

    name: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    is_adapter: bool = False


@dataclass
class FolderContents:
    """What a folder holds.

    Attributes:
        models: Checkpoints, in the order of their paths.
        data: The names of datasets' files and folders.
        kinds: Whether each of these holds "images" or "texts"; "" where it may be either.
        architectures: JSON files that open_clip makes a model of.
    """

    models: list[Model] = field(default_factory=list)
    data: dict[Path, str] = field(default_factory=dict)
    kinds: dict[Path, str] = field(default_factory=dict)
    architectures: list[Path] = field(default_factory=list)


def look_into(folder: Path) -> FolderContents:
    """Find models and datasets in a folder and, where they aren't one themselves, the folders in it.

    Raises:
        OSError: It can't be read.
    """
    contents = FolderContents()
    _look(folder, contents, 0)
    # Files of different folders may have one name.
    names = [model.name for model in contents.models]
    contents.models = [
        Model(f"{model.path.parent.name} {model.name}", model.path, model.config, model.base, model.is_adapter)
        if names.count(model.name) > 1
        else model
        for model in contents.models
    ]
    return contents


def _look(folder: Path, contents: FolderContents, depth: int) -> None:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.is_file()]
    folders = [path for path in inside if path.is_dir()]
    if depth and _add_folder(folder, files, folders, contents):
        return
    for file in files:
        _add_file(file, contents, depth)
    if depth < _DEEPEST:
        for inner in folders:
            _look(inner, contents, depth + 1)


def _add_folder(folder: Path, files: list[Path], folders: list[Path], contents: FolderContents) -> bool:
    """Add a folder that is one model or one dataset as a whole; return whether it is."""
    names = {file.name for file in files}
    if ADAPTER_CONFIG in names:
        config = read_json(folder / ADAPTER_CONFIG)
        contents.models.append(
            Model(folder.name, folder, config, _base(config, "base_model_name_or_path"), is_adapter=True)
        )
        return True
    config_name = next((name for name in ("config.json", "open_clip_config.json") if name in names), None)
    if main_file(names) and (config_name or any(is_index(name) for name in names)):
        config = read_json(folder / config_name) if config_name else {}
        contents.models.append(Model(folder.name, folder, config, _base(config, "_name_or_path")))
        return True
    kind = _kind_of_data(files, folders)
    if kind is not None:
        contents.data[folder], contents.kinds[folder] = folder.name, kind
    return kind is not None


def _kind_of_data(files: list[Path], folders: list[Path]) -> str | None:
    """Return what a folder that is one dataset holds ("images", "texts" or ""), None for one that isn't."""
    if any(file.name in {"dataset_dict.json", "dataset_info.json"} for file in files):
        return ""
    splits = [inner for inner in folders if inner.name.lower() in _SPLITS]
    classes = [inner for split in splits for inner in split.iterdir()] or folders
    if any(map(_holds_images, classes)):
        return "images"
    # As repositories of datasets are laid out.
    tables = [*files, *(file for inner in folders if inner.name == "data" for file in inner.iterdir())]
    tables = [file for file in tables if _is_data(file) and _SPLIT_FILE.match(file.name)]
    if not tables:
        return None
    return "texts" if {file.suffix.lower() for file in tables} == {".txt"} else ""


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in _IMAGES for path in folder.iterdir())


def _is_data(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in _TABLES or (suffix == ".txt" and not _NO_TEXTS.fullmatch(path.name))


def _add_file(file: Path, contents: FolderContents, depth: int) -> None:
    name = file.stem
    if depth and _COMMON_NAME.fullmatch(name):
        name = file.parent.name
    if is_index(file.name):
        contents.models.append(Model(file.name.split(".")[0], file))
    elif is_weights(file.name):
        contents.models.append(Model(name, file))
    elif _is_data(file):
        suffix = file.suffix.lower()
        contents.data[file] = name
        contents.kinds[file] = {".npz": "images", ".txt": "texts"}.get(suffix, "")
    elif file.suffix.lower() == ".json":
        config = read_json(file)
        if "vision_cfg" in config or "vision_cfg" in config.get("model_cfg", {}):
            contents.architectures.append(file)


def _base(config: Mapping[str, Any], key: str) -> str:
    base = config.get(key)
    return base.strip() if isinstance(base, str) else ""
