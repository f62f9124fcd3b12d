"""What libraries raise about a file that is damaged, or isn't what its name says."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib

DAMAGED: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),  # RecursionError is a RuntimeError
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""Whoever catches them says in one sentence which file it is."""
