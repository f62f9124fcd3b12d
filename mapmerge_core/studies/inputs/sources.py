"""A study's files: hashed when it is created, and checked before they are used."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.weights.io.folders import hash_of_files, is_settings, weights_files
from mapmerge_core.weights.io.hub import fetch

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudyConfig

_SETTINGS = "pretrained settings"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """A file or folder as it was when its study was created.

    Attributes:
        role: What it is for, such as "pretrained" or "MNIST data".
        path: Where it lies; of a hub reference, where its copy lies.
        sha256: Of a file's bytes, of a checkpoint of several as `hash_of_files` defines it; of a folder of
            examples that of its files' names and sizes.
        n_bytes: Size, of all these files together.
    """

    role: str
    path: Path
    sha256: str
    n_bytes: int


def check_files(config: StudyConfig) -> None:
    """Make sure that every local file is there, before hours of downloads.

    Raises:
        StudyError: One is missing; the sentence names it.
    """
    for role, place in config.files().items():
        try:
            is_there = place.exists()
        except OSError as error:
            raise StudyError(f"{place} ({role}) can't be read: {error.strerror or error}.") from error
        if not is_there:
            raise StudyError(f"{place} ({role}) isn't there: put it there, or change the study's path.")


def read_sources(config: StudyConfig) -> tuple[Source, ...]:
    """Hash every file of a study (once per process, as long as size and time of change stay the same).

    Models on a hub are downloaded first, if they aren't here yet.

    Raises:
        StudyError: A file is missing or can't be read.
        CheckpointError: A download fails.
    """
    places = {role: fetch(place) for role, place in config.places().items()}
    if places["pretrained"].is_dir():  # the configuration, and how inputs are read
        places[_SETTINGS] = places["pretrained"]
    return tuple(_read_source(role, path) for role, path in places.items())


def check_sources(sources: Sequence[Source]) -> None:
    """Make sure that a study's files are still those that its evaluations were made with.

    Raises:
        StudyError: One is missing or has changed; the sentence names it.
    """
    for source in sources:
        now = _read_source(source.role, source.path)
        if now.sha256 != source.sha256:
            raise StudyError(
                f"{source.path} has changed since this study was created, and evaluations of two different "
                "files can't be mixed: restore the file or start a new study."
            )


def weights_of_sources(config: StudyConfig, sources: Sequence[Source]) -> Mapping[str, Path]:
    """Return where the weights of a study lie on this machine, by role; a hub's are those that were hashed."""
    places = {source.role: source.path for source in sources}
    return {role: places[role] for role in config.weights}


def _read_source(role: str, path: Path) -> Source:
    try:
        if role.endswith(" data") and path.is_dir():
            listed = [(file.relative_to(path).as_posix(), file.stat().st_size) for file in _files(path)]
            lines = "".join(f"{size}  {name}\n" for name, size in listed)
            digest = hashlib.sha256(lines.encode()).hexdigest()
            return Source(role, path, digest, sum(size for _, size in listed))
        files: tuple[Path, ...] = (path,)
        if role == _SETTINGS:
            files = tuple(file for file in path.iterdir() if file.is_file() and is_settings(file.name))
        elif role == "pretrained" or role.endswith(" model"):
            files = weights_files(path) if path.exists() else files
        return Source(role, path, hash_of_files(files, _hash), sum(file.stat().st_size for file in files))
    except OSError as error:
        raise StudyError(f"{path} ({role}) can't be read: {error.strerror or error}.") from error


def _files(folder: Path) -> Iterator[Path]:
    """Every file of a folder but hidden ones, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _hash(path: Path) -> str:
    stat = path.stat()
    return _hash_file(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_file(path: Path, n_bytes: int, mtime_ns: int) -> str:  # noqa: ARG001 - size and time are the cache's key
    target = path.resolve()
    # The hub's cache names large files by their hash, so that 16 GB needn't be read for it.
    if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
