"""State dicts, of one file or many, from this machine or a hub: read safely, whole or tensor by tensor."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.checks import dtype_name
from mapmerge_core.weights.io.folders import (
    file_of,
    hash_of_files,
    is_adapter_folder,
    is_index,
    read_index,
    weights_files,
)
from mapmerge_core.weights.io.headers import DTYPES, read_header, reading
from mapmerge_core.weights.io.hub import HubRef, fetch
from mapmerge_core.weights.io.pickles import map_pickle, open_pickle


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds, by its header.

    Attributes:
        n_tensors: How many tensors it holds.
        dtypes: Number of tensors of each dtype, such as ``{"float16": 152}``.
        n_bytes: Size of its files of weights.
    """

    n_tensors: int
    dtypes: dict[str, int]
    n_bytes: int


class _Stored(Protocol):
    """A tensor in a file, not read yet."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> Tensor: ...


class OpenStateDict(Mapping[str, Tensor]):
    """A state dict that stays on disk: each access reads that one tensor afresh, and nothing is kept.

    Build one with `open_state_dict`.
    """

    def __init__(self, stored: Mapping[str, _Stored]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def describe(self, name: str) -> tuple[torch.Size, torch.dtype]:
        """Return a tensor's shape and dtype without reading it."""
        stored = self._stored[name]
        return stored.shape, stored.dtype


def read_state_dict(source: Path | str | HubRef) -> dict[str, Tensor]:
    """Read a state dict, memory-mapped where the format allows, onto the CPU.

    Args:
        source: A ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file, the index of a checkpoint in several files, a
            folder of transformers or open_clip, or a reference to a hub (see `parse_source`), which is fetched. Pickled
            code is never executed: of a module that was pickled as a whole the tensors alone are read. Weights under
            the key ``state_dict`` or ``model`` are unwrapped.

    Raises:
        CheckpointError: The file is missing, damaged, empty, holds anything but named tensors or asks for anything to
            be executed; it is an adapter; or a shard or one of its tensors is missing.
    """
    path = fetch(source)
    _refuse_adapter(path)
    file = file_of(path)
    if not is_index(file.name):
        return _read(file)
    shards = read_index(file)
    read = {shard: _read(shard) for shard in dict.fromkeys(shards.values())}
    return {name: read[shard][name] for name, shard in _in_shards(shards, read, file).items()}


def open_state_dict(source: Path | str | HubRef) -> OpenStateDict:
    """Open a state dict whose tensors are read when they are asked for.

    Args:
        source: As for `read_state_dict`; the file with an adapter's weights is fine, too.

    Raises:
        CheckpointError: As for `read_state_dict`.
    """
    path = fetch(source)
    if path.is_dir():
        _refuse_adapter(path)
    file = file_of(path)
    if not is_index(file.name):
        return OpenStateDict(_open(file))
    shards = read_index(file)
    opened = {shard: _open(shard) for shard in dict.fromkeys(shards.values())}
    return OpenStateDict({name: opened[shard][name] for name, shard in _in_shards(shards, opened, file).items()})


def sha256(source: Path | HubRef) -> str:
    """Return the SHA-256 of a checkpoint in hexadecimal (of several files see `hash_of_files`).

    Raises:
        CheckpointError: There is no checkpoint, or a file of it can't be read.
    """
    path = fetch(source)
    several = path.is_dir() or is_index(path.name) or is_adapter_folder(path)
    return hash_of_files(weights_files(path) if several else (path,), _hash)


def inspect(source: Path | HubRef) -> CheckpointInfo:
    """Return what a checkpoint or an adapter holds, without reading its tensors.

    Raises:
        CheckpointError: As for `open_state_dict`.
    """
    path = fetch(source)
    files = weights_files(path)
    opened = open_state_dict(files[-1] if is_adapter_folder(path) else path)
    described = [opened.describe(name) for name in opened]
    return CheckpointInfo(
        n_tensors=len(described),
        dtypes=dict(Counter(dtype_name(dtype) for _, dtype in described)),
        n_bytes=sum(file.stat().st_size for file in files),
    )


_open_files = local()
"""For each thread ``by_path``: the files that it keeps open, if it does."""


@contextmanager
def files_kept_open() -> Iterator[None]:
    """Keep safetensors files open between the tensors that this thread reads: quicker for many small ones."""
    _open_files.by_path = {}
    try:
        yield
    finally:
        _open_files.by_path = None


@dataclass(frozen=True)
class _SafeTensor:
    path: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype

    def read(self) -> Tensor:
        files: dict[Path, safe_open] | None = getattr(_open_files, "by_path", None)
        try:
            if files is not None:
                if self.path not in files:
                    files[self.path] = safe_open(self.path, framework="pt")
                kept: Tensor = files[self.path].get_tensor(self.name)
                return kept
            # Opened for this tensor alone, so that no part of the file stays mapped.
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(self.name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} can't be read any more: it was changed or removed.") from error


def _refuse_adapter(path: Path) -> None:
    if is_adapter_folder(path):
        raise CheckpointError(
            f"{path} is an adapter, not a whole model: choose it as a fine-tuned model beside the model that "
            "it was trained on."
        )


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return map_pickle(path)
    with reading(path):
        tensors: dict[str, Tensor] = load_file(path)
    _check_any(tensors, path)
    return tensors


def _open(path: Path) -> Mapping[str, _Stored]:
    if path.suffix != ".safetensors":
        return open_pickle(path)
    stored = {}
    for name, (code, shape) in read_header(path).tensors.items():
        if code not in DTYPES:
            raise CheckpointError(
                f"'{name}' in {path} is stored as {code}, which can't be read: convert the checkpoint to float32, "
                "float16 or bfloat16."
            )
        stored[name] = _SafeTensor(path, name, torch.Size(shape), getattr(torch, DTYPES[code]))
    _check_any(stored, path)
    return stored


def _check_any(tensors: Mapping, path: Path) -> None:
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.")


def _in_shards(listed: Mapping[str, Path], shards: Mapping[Path, Mapping], index: Path) -> dict[str, Path]:
    """Return each tensor's shard: those that an index lists, then those that shards hold besides."""
    for name, shard in listed.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{shard} lacks the tensor '{name}' that {index.name} says is in it: get the checkpoint anew."
            )
    besides = {name: shard for shard, tensors in shards.items() for name in tensors if name not in listed}
    return dict(listed) | besides


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
