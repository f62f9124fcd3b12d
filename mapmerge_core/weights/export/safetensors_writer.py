"""Write a safetensors file tensor by tensor, and read it back, without ever holding a model."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from mapmerge_core.errors import ExportError
from mapmerge_core.weights.io.checks import dtype_name, is_finite, too_large

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from mapmerge_core.weights.io.checks import Described

# The format's names of dtypes (the README of safetensors, Format)
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
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


def write_safetensors(
    path: Path,
    described: Mapping[str, Described],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> Written:
    """Write a new file, syncs it, reads it back from the disk and compares every tensor's checksum.

    Args:
        path: The file; its folder exists.
        described: What ``tensors`` will bring.
        tensors: Every tensor by name, in any order, of which one at a time is held.
        metadata: Text for the header.

    Raises:
        ExportError: A dtype can't be stored, a tensor holds infinity or NaN, or the file doesn't read back as
            it was written.
        OSError: The file can't be written.
    """
    plan = _plan(described, metadata)
    checksums = {}
    with path.open("wb") as file:
        file.write(plan.header)
        for name, tensor in tensors:
            if (tensor.shape, tensor.dtype) != described[name]:
                raise ValueError(f"'{name}' is not as it was described.")
            if not is_finite(tensor):
                raise ExportError(too_large(name, tensor.dtype))
            file.seek(len(plan.header) + plan.offsets[name][0])
            checksums[name] = _write(file, tensor)
            del tensor  # before the next one is made
        file.flush()
        os.fsync(file.fileno())
    if checksums.keys() != described.keys():
        raise ValueError("Not every tensor that was described came.")
    return _read_back(path, plan, checksums)


def _plan(described: Mapping[str, Described], metadata: Mapping[str, str]) -> _Plan:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets = {}
    start = 0
    # Wide numbers first, as in the format's own library: then each tensor is aligned to its numbers' size.
    for name, (shape, dtype) in sorted(described.items(), key=lambda item: -item[1].dtype.itemsize):
        if dtype not in _DTYPES:
            raise ExportError(
                f"The tensor '{name}' is {dtype_name(dtype)}, which safetensors files can't hold: convert it."
            )
        stop = start + shape.numel() * dtype.itemsize
        offsets[name] = (start, stop)
        entries[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return _Plan(len(text).to_bytes(8, "little") + text, offsets)


def _write(file: BinaryIO, tensor: Tensor) -> int:
    """Write a tensor's numbers in little-endian order and returns their checksum."""
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


def _read_back(path: Path, plan: _Plan, checksums: Mapping[str, int]) -> Written:
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
    if not equal or not _opens(path, plan.offsets):
        raise ExportError(f"{path.name} did not read back as it was written: check the disk.")
    return Written(digest.hexdigest(), size)


def _opens(path: Path, names: Mapping[str, object]) -> bool:
    """Whether the format's own library finds every tensor in the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys()) == set(names)
    except SafetensorError:
        return False
