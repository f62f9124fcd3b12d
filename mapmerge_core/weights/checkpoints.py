"""Find, inspect and safely read state dicts."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mapmerge_core.errors import CheckpointError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds, as far as a person wants to know before using it.

    Attributes:
        path: The file.
        n_tensors: How many tensors it holds.
        n_parameters: How many numbers they hold together.
        dtypes: Number of tensors of each dtype, such as ``{"float16": 152}``.
        n_bytes: Size of the file.
    """

    path: Path
    n_tensors: int
    n_parameters: int
    dtypes: dict[str, int]
    n_bytes: int


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Reads a state dict, memory-mapped where the format allows, onto the CPU.

    Reads ``.safetensors`` and weights-only ``.pt``, ``.pth`` and ``.bin`` files; pickled code is never
    executed. A training checkpoint that keeps its weights under the key ``state_dict`` is unwrapped.

    Raises:
        CheckpointError: The file is missing, damaged, empty, or holds anything but named tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: choose a checkpoint file in it.")
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint {path}.")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path} can't be read: a checkpoint's name ends in one of {', '.join(SUFFIXES)}."
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _named_tensors(content, path)


def find_checkpoints(folder: Path | str) -> list[Path]:
    """Lists the files directly inside ``folder`` that look like checkpoints, sorted by name.

    Raises:
        CheckpointError: ``folder`` is not a folder that can be read.
    """
    try:
        return sorted(p for p in Path(folder).iterdir() if p.suffix in SUFFIXES and p.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder} can't be listed: {error.strerror}.") from error


def sha256(path: Path | str) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal.

    Raises:
        CheckpointError: The file can't be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error


def inspect(path: Path | str) -> CheckpointInfo:
    """Reads a checkpoint (see `read_state_dict`, and its errors) and says what it holds."""
    state_dict = read_state_dict(path)
    return CheckpointInfo(
        path=Path(path),
        n_tensors=len(state_dict),
        n_parameters=sum(tensor.numel() for tensor in state_dict.values()),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state_dict.values())),
        n_bytes=Path(path).stat().st_size,
    )


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except PermissionError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file.") from error


def _read_pickle(path: Path) -> object:
    try:
        # Only torch's zip format can be memory-mapped, older files are read as a whole.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects besides tensors, which are never executed here: "
            "save its state dict alone, best as safetensors."
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint.") from error


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict of named tensors.")
    if not content:
        raise CheckpointError(f"{path} holds no tensors.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is not a state dict: {name!r} is a {type(value).__name__}, not a named tensor."
            )
    return {name: tensor.detach() for name, tensor in content.items()}
