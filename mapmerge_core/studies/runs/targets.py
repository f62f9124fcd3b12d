"""Where an export goes, and what it may replace: nothing but an earlier export."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.errors import CheckpointError, ExportError
from mapmerge_core.files import absolute
from mapmerge_core.weights.io.folders import SUFFIXES

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store, Study

_COMPANIONS = (".README.md", ".mergekit.yaml")


def slug(text: str) -> str:
    """Return a name as files and folders can have it: plain letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "study"


def slugs(names: Iterable[str]) -> list[str]:
    """Return each name's `slug`, numbered where an earlier one is the same, as for other scripts' letters."""
    taken: list[str] = []
    for name in names:
        plain, n = slug(name), 1
        while (numbered := plain if n == 1 else f"{plain}-{n}") in taken:
            n += 1
        taken.append(numbered)
    return taken


def export_target(store: Store, study: Study, name: str, path: Path | str | None, like: Path | None) -> Path:
    """Return the file to write.

    Args:
        store: In whose folder it goes by default.
        study: The study.
        name: The file's name where ``path`` is None or a folder.
        path: A file that ends in ``.safetensors``, a folder, or None.
        like: The pre-trained model's folder or configuration, where the export is a folder like it.

    Raises:
        StudyError: No file could have this path.
        ExportError: It can't be written there, or would replace what mapmerge didn't export.
    """
    if like:
        name = f"{name.removesuffix('.safetensors')}/model.safetensors"
    if path is None:  # the data folder holds nothing but exports, perhaps without a model moved elsewhere
        return store.folder / "exports" / slug(study.name) / name
    path = absolute(path)
    _check_name(path, like)
    target = path if path.suffix == ".safetensors" else path / name
    _check_replaced(target, study, like)
    return target


def _check_name(path: Path, like: Path | None) -> None:
    """Refuse what was typed as a file's name and isn't one of a merged model."""
    is_model = path.suffix == ".safetensors"
    if like:
        if path.is_file() or (is_model and path.name != "model.safetensors"):
            raise ExportError(f"{path} is no folder, and this model is exported to one: name a folder.")
    elif not is_model and (path.is_file() or (path.name.endswith(SUFFIXES) and not path.is_dir())):
        raise ExportError(f"{path} can't be exported to: name a file that ends in .safetensors, or a folder.")


def _check_replaced(model: Path, study: Study, like: Path | None) -> None:
    from mapmerge_core.weights.export.writing import read_recipe

    try:
        if like:
            there = sorted(model.parent.iterdir()) if model.parent.is_dir() else []
        else:
            companions = [model.with_suffix(suffix) for suffix in _COMPANIONS]
            if study.config.architecture.endswith(".json"):
                companions.append(model.with_suffix(".json"))
            there = [path for path in (model, *companions) if path.exists()]
        sources = [path for path in study.config.files().values() if path.exists()]
    except OSError as error:
        raise ExportError(f"{model.parent} can't be read: {error.strerror}.") from error
    for path in there:
        if any(path.samefile(source) for source in sources):
            raise ExportError(f"{path} is one of the study's own files: export to another name or folder.")
    if model.is_file():
        try:
            read_recipe(model)
        except CheckpointError as error:
            raise ExportError(
                f"{model} was not exported by mapmerge and is not replaced: export to another name or folder."
            ) from error
    elif there:
        raise ExportError(f"{there[0]} is there already and is not replaced: export to another name or folder.")
