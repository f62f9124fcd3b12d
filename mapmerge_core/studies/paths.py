"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path

from mapmerge_core.errors import StudyError

# What common file systems allow for one name, and Linux for a whole path, in bytes.
_LONGEST_NAME, _LONGEST_PATH = 255, 4095


def absolute(path: Path | str) -> Path:
    """The path without "~" and independent of the working folder; nothing needs to exist there.

    Raises:
        StudyError: where no file could have this path.
    """
    try:
        found = Path(path).expanduser().absolute()
        names = [len(os.fsencode(name)) for name in found.parts]
        length = len(os.fsencode(found))
    except (RuntimeError, ValueError, OSError) as error:
        raise StudyError(f"The path {str(path)!r} can't be used ({error}): choose another.") from error
    if "\0" in str(found):
        raise StudyError(f"The path {str(path)!r} holds a NUL character: choose another.")
    if max(names) > _LONGEST_NAME or length > _LONGEST_PATH:
        raise StudyError(f"The path {str(path)[:40]}... is too long: choose a shorter one.")
    return found
