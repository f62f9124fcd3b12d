"""PyTorch's pickled files, read without executing anything that they ask for.

A pickle is a program for a small stack machine. `Machine` runs it without importing or calling anything that it names,
and `answer` rebuilds where its tensors lie. So state dicts can be read, and modules that were pickled as a whole, as in
the files of "Editing Models with Task Arithmetic" (ICLR 2023), whose classes needn't be installed.
"""

from __future__ import annotations

import io
import itertools
import mmap
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mapmerge_core.errors import CheckpointError
from mapmerge_core.files import DAMAGED
from mapmerge_core.weights.io.pickle_machine import Machine, Named, RefusedError, StandIn, key_of
from mapmerge_core.weights.io.pickled_tensors import PickledTensor, Storage, answer, count_of, storage_dtype

if TYPE_CHECKING:
    from torch import Tensor

_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how PyTorch's format before version 1.6 begins
# Modules and tensors, far more than any model has; shared submodules could otherwise multiply without end.
_MOST_PARTS = 200_000
_WRAPPERS = ("state_dict", "model")
_BIG_ENDIAN = "{path} was written on a big-endian machine: save it anew on another."


def open_pickle(path: Path) -> dict[str, PickledTensor]:
    """Find the named tensors of a PyTorch file.

    They are a state dict, by itself or under "state_dict" or "model", or a module pickled as a whole. A module's
    tensors are those of its ``state_dict()``: parameters and persistent buffers with dotted names.

    Raises:
        CheckpointError: The file is damaged, holds no named tensors, is a TorchScript program, or asks for anything to
            be executed, which never happens.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_ZIP))
            content = _read_zip(path) if begin == _ZIP else _read_old_format(path, file)
            tensors = _named_tensors(content, path)
            for tensor in tensors.values():
                _ = tensor.place  # raises where an old file lacks the numbers
            return tensors
    except RefusedError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects besides tensors, which are never executed here "
            f"({error}): save its state dict alone, best as safetensors."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or 'it is damaged'}.") from error
    except DAMAGED as error:
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint.") from error


def map_pickle(path: Path) -> dict[str, Tensor]:
    """Read what `open_pickle` finds, memory-mapped where the format allows; see its errors."""
    tensors = open_pickle(path)
    copies: dict[object, Tensor] = {}
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # lives as long as the tensors
    return {name: tensor.view(content, copies) for name, tensor in tensors.items()}


def _read_zip(path: Path) -> object:
    """Read the format of PyTorch 1.6 and later: a zip archive with a pickle and a record for each storage."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no pickle, or several")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in names:
            raise CheckpointError(
                f"{path} is a TorchScript program, which is never executed here: load it with torch.jit.load "
                "and save its state_dict()."
            )
        records = {info.filename: info for info in archive.infolist()}

        def content_of(name: str) -> bytes:
            _record_start(file, records[name], size)
            return archive.read(name)

        if f"{prefix}byteorder" in records and content_of(f"{prefix}byteorder") != b"little":
            raise CheckpointError(_BIG_ENDIAN.format(path=path))

        def load(identity: object) -> Storage:
            kind, storage, key, _, n = _exactly(identity, 5)
            if kind != "storage":
                raise ValueError("unknown kind of external data")
            dtype = storage_dtype(storage)
            info = records[f"{prefix}data/{key}"]
            if count_of(n) * dtype.itemsize > info.file_size:
                raise ValueError("a storage is larger than its record")
            return Storage(path, dtype, n * dtype.itemsize, _record_start(file, info, size))

        return Machine(io.BytesIO(content_of(pickles[0])), load, answer).load()


def _record_start(file: IO[bytes], info: zipfile.ZipInfo, size: int) -> int:
    """Return where a record's bytes lie; PyTorch stores them as they are, so nothing can unfold into more."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise ValueError("a record is compressed or encrypted")
    file.seek(info.header_offset)
    header = file.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start: int = info.header_offset + 30 + name_length + extra_length
    if header[:4] != _ZIP or start + info.file_size > size:
        raise ValueError("a record reaches beyond the file")
    return start


def _read_old_format(path: Path, file: IO[bytes]) -> object:
    """Read the format before PyTorch 1.6: pickles one after the other, then the storages' bytes."""
    storages: dict[object, Storage] = {}

    def load(identity: object) -> object:
        kind, *data = identity if isinstance(identity, tuple) else ()
        if kind == "module":  # a class with its source code
            return data[0]
        storage, key, _, n, view = _exactly(tuple(data), 5)
        if kind != "storage":
            raise ValueError("unknown kind of external data")
        dtype = storage_dtype(storage)
        root = storages.setdefault(key_of(key), Storage(path, dtype, count_of(n) * dtype.itemsize))
        if view is None:
            return root
        _, start, length = _exactly(view, 3)
        start, length = count_of(start) * dtype.itemsize, count_of(length) * dtype.itemsize
        if start + length > root.n_bytes:
            raise ValueError("a view is larger than its storage")
        return Storage(path, dtype, length, root=root, offset=start)

    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # A map never reads beyond its end, however much an instruction asks for.
        stream: Any = content
        if Machine(stream, load, answer).load() != _MAGIC or Machine(stream, load, answer).load() != _PROTOCOL:
            raise ValueError("not PyTorch's format")
        system = Machine(stream, load, answer).load()
        if not isinstance(system, dict) or not system.get("little_endian"):
            raise CheckpointError(_BIG_ENDIAN.format(path=path))
        result = Machine(stream, load, answer).load()
        keys = Machine(stream, load, answer).load()
        if not isinstance(keys, list):
            raise TypeError("no list of storages")
        for key in keys:
            (n,) = struct.unpack("<q", content.read(8))
            storage = storages[key_of(key)]
            storage.start = content.tell()
            if n * storage.dtype.itemsize != storage.n_bytes or storage.start + storage.n_bytes > len(content):
                raise ValueError("a storage has another size than its tensors")
            content.seek(storage.n_bytes, 1)
    return result


def _named_tensors(content: object, path: Path) -> dict[str, PickledTensor]:
    """Return the tensors of a state dict or a module, which may be wrapped once."""
    entries = _entries(content)
    for key in _WRAPPERS:
        if entries is not None and (_is_module(entries.get(key)) or _entries(entries.get(key)) is not None):
            content = entries[key]
            entries = _entries(content)
            break
    if _is_module(content):
        tensors = dict(_tensors_of(content, "", itertools.count()))
        if not tensors:
            raise CheckpointError(f"{path} holds a module without tensors.")
        return tensors
    if entries is None:
        raise CheckpointError(f"{path} holds a {_kind(content)}, not a state dict of named tensors.")
    if not entries:
        raise CheckpointError(f"{path} holds no tensors.")
    for name, value in entries.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            shown = repr(name) if isinstance(name, str | int) else f"a key of type {_kind(name)}"
            raise CheckpointError(f"{path} is not a state dict: {shown} is a {_kind(value)}, not a named tensor.")
    return dict(entries)


def _entries(value: object) -> dict[Any, Any] | None:
    """Return a dictionary's entries, also those of a class that is one; None for anything else."""
    if isinstance(value, StandIn):
        return value.entries or None
    return value if isinstance(value, dict) else None


def _is_module(value: object) -> bool:
    return isinstance(value, StandIn) and {"_parameters", "_buffers", "_modules"} <= value.state.keys()


def _tensors_of(module: object, prefix: str, counter: Iterator[int]) -> Iterator[tuple[str, PickledTensor]]:
    """Yield a module's tensors in the order of ``torch.nn.Module.state_dict``."""
    if not isinstance(module, StandIn) or not _is_module(module) or next(counter) > _MOST_PARTS:
        raise TypeError("a submodule is none, or there is no end of them")
    state = module.state
    transient = state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, tensor in state[kind].items():
            if tensor is None or (kind == "_buffers" and name in transient):
                continue
            if not isinstance(tensor, PickledTensor) or not isinstance(name, str):
                raise TypeError("a parameter is none")
            if next(counter) > _MOST_PARTS:
                raise ValueError("there is no end of parameters")
            yield prefix + name, tensor
    for name, child in state["_modules"].items():
        if child is not None:
            yield from _tensors_of(child, f"{prefix}{name}.", counter)


def _kind(value: object) -> str:
    if isinstance(value, PickledTensor):
        return "Tensor"
    if isinstance(value, StandIn | Named):
        return (value.kind if isinstance(value, StandIn) else value.name).rpartition(" ")[2]
    return type(value).__name__


def _exactly(value: object, n: int) -> tuple:
    if not isinstance(value, tuple | list) or len(value) != n:
        raise ValueError("external data is described in another way than PyTorch's")
    return tuple(value)
