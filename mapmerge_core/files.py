"""Paths as people type them, and files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mapmerge_core.errors import StudyError

DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # also RecursionError and NotImplementedError
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What libraries raise about a file that is damaged, or isn't what its name says."""
_LARGEST_JSON = 2_000_000

_PACKAGE = Path(__file__).resolve().parent


def bundled(*names: str) -> Path:
    """Return the path of what comes with mapmerge (``assets``, ``app.py``): in a checkout, or installed."""
    installed = _PACKAGE / "dashboard"
    return (installed if installed.is_dir() else _PACKAGE.parent).joinpath(*names)


# What common file systems allow for one name, and Linux for a whole path, in bytes.
_LONGEST_NAME, _LONGEST_PATH = 255, 4095


def absolute(path: Path | str) -> Path:
    """Return a path without ``~`` and independent of the working folder; nothing needs to exist there.

    Raises:
        StudyError: No file could have this path.
    """
    try:
        whole = Path(path).expanduser().absolute()
        lengths = [len(os.fsencode(name)) for name in whole.parts]
        length = len(os.fsencode(whole))
    except (RuntimeError, ValueError, OSError) as error:
        raise StudyError(f"The path {str(path)!r} can't be used ({error}): choose another.") from error
    if "\0" in str(whole):
        raise StudyError(f"The path {str(path)!r} holds a NUL character: choose another.")
    if max(lengths) > _LONGEST_NAME or length > _LONGEST_PATH:
        raise StudyError(f"The path {str(path)[:40]}... is too long: choose a shorter one.")
    return whole


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small JSON file; {} where it holds none, or can't be read."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
    except DAMAGED:
        return {}
    return values if isinstance(values, dict) else {}


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Hand out a file beside ``path`` to write, which takes its place if all goes well and vanishes if not.

    Folders are made as needed; errors of the file system are the caller's to word.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
