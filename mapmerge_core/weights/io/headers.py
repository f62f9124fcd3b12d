"""Which tensors a safetensors file holds, from its header alone; imports no torch, so that pages can use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mapmerge_core.errors import CheckpointError

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""torch's names of dtypes by the format's (the README of safetensors, Format)."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself.

    Attributes:
        tensors: The dtype, under the format's name, and the shape of each tensor.
        metadata: Text by key; {} where there is none.
    """

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, checked by the format's own library.

    Raises:
        CheckpointError: The file is missing, can't be read, is damaged, or is no safetensors file.
    """
    with reading(path), safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        tensors = {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}
        return Header(tensors, file.metadata() or {})


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the format's library raises about a file into one sentence.

    Raises:
        CheckpointError: The sentence.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or 'there is no such file'}.") from error
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file.") from error
