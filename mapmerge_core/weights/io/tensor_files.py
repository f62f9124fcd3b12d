"""Safetensors files, written tensor by tensor and compared with what the disk gives back."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mapmerge_core.errors import CheckpointError, ExportError
from mapmerge_core.files import write_atomically
from mapmerge_core.weights.io.checks import Described, describe, dtype_name, is_finite, too_large
from mapmerge_core.weights.io.headers import DTYPES, read_header

_CODES = {getattr(torch, name): code for code, name in DTYPES.items()}
# The header's length is padded to a multiple of this many bytes, so that tensors are aligned.
_ALIGNMENT = 8
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Written:
    """A file that was written and read back: its SHA-256 in hexadecimal and its size."""

    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class _Plan:
    """The header's bytes, its length's included, and where each tensor's bytes start and end after it."""

    header: bytes
    offsets: Mapping[str, tuple[int, int]]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file that is there whole or not at all; its folder is made if missing.

    Args:
        path: The file.
        tensors: What it will hold, from any device.
        metadata: Text for its header.

    Raises:
        ExportError: The file can't be written, doesn't read back equal, or would hold infinity.
    """
    try:
        with write_atomically(path) as part:
            metadata = {"format": "pt"} | dict(metadata or {})
            write_safetensors(part, describe(tensors), tensors.items(), metadata, name=path.name)
    except OSError as error:
        raise ExportError(
            f"{path} can't be written ({error.strerror or error}): free space, or choose another folder."
        ) from error


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file onto the CPU, and the text in its header.

    Args:
        path: The file.
        remedy: What a person can do if it can't be read, such as "prepare the merge again".

    Raises:
        CheckpointError: It is missing, damaged, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read ({error}): {remedy}.") from error


def write_safetensors(
    path: Path,
    described: Mapping[str, Described],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
    name: str = "",
) -> Written:
    """Write a new file, sync it, read it back from the disk and compare every tensor's checksum.

    Args:
        path: The file; its folder exists.
        described: Shape and dtype of every tensor.
        tensors: Every tensor by name, in any order; one at a time is held.
        metadata: Text for the header.
        name: What errors call the file; by default its name.

    Raises:
        ExportError: A dtype can't be stored, a tensor holds infinity or NaN, or the file doesn't read back as it was
            written.
        OSError: The file can't be written.
    """
    plan = _plan(described, metadata)
    checksums = {}
    with path.open("wb") as file:
        file.write(plan.header)
        for key, tensor in tensors:
            if (tensor.shape, tensor.dtype) != described[key]:
                raise ValueError(f"'{key}' is not as it was described.")
            if not is_finite(tensor):
                raise ExportError(too_large(key, tensor.dtype))
            file.seek(len(plan.header) + plan.offsets[key][0])
            checksums[key] = _write(file, tensor)
            del tensor  # before the next one is made
        file.flush()
        os.fsync(file.fileno())
    if checksums.keys() != described.keys():
        raise ValueError("Not every tensor that was described came.")
    written = _read_back(path, plan, checksums)
    if written is None:
        raise ExportError(f"{name or path.name} did not read back as it was written: check the disk.")
    return written


def _plan(described: Mapping[str, Described], metadata: Mapping[str, str]) -> _Plan:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets = {}
    start = 0
    # Wide numbers first, as in the format's own library: then each tensor is aligned to its numbers' size.
    for name, (shape, dtype) in sorted(described.items(), key=lambda item: -item[1].dtype.itemsize):
        if dtype not in _CODES:
            raise ExportError(
                f"The tensor '{name}' is {dtype_name(dtype)}, which safetensors files can't hold: convert it."
            )
        stop = start + shape.numel() * dtype.itemsize
        offsets[name] = (start, stop)
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return _Plan(len(text).to_bytes(8, "little") + text, offsets)


def _write(file: BinaryIO, tensor: Tensor) -> int:
    """Write a tensor's numbers in little-endian order and return their checksum."""
    numbers = tensor.detach().cpu().contiguous().reshape(-1)
    checksum = 0
    for piece in numbers.split(_CHUNK):
        data = piece.view(torch.uint8).numpy()
        if sys.byteorder == "big":
            width = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
            data = np.ascontiguousarray(data.reshape(-1, width)[:, ::-1])
        file.write(data.data)
        checksum = zlib.crc32(data.data, checksum)
    return checksum


def _read_back(path: Path, plan: _Plan, checksums: Mapping[str, int]) -> Written | None:
    """Return what the disk gives back, None where that is something else than what was written."""
    digest, size = hashlib.sha256(), len(plan.header)
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # what was synced is forgotten, so that the disk itself is read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        header = file.read(size)
        digest.update(header)
        equal = header == plan.header
        for name, (start, stop) in plan.offsets.items():
            checksum, left = 0, stop - start
            while left and (data := file.read(min(_CHUNK, left))):
                digest.update(data)
                checksum = zlib.crc32(data, checksum)
                left -= len(data)
            equal = equal and not left and checksum == checksums[name]
            size += stop - start
        equal = equal and not file.read(1)
    try:
        is_same = equal and read_header(path).tensors.keys() == plan.offsets.keys()
    except CheckpointError:
        is_same = False
    return Written(digest.hexdigest(), size) if is_same else None
