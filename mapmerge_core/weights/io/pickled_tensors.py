"""Tensors in PyTorch's pickled files: where their numbers lie, and the calls that say so."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.pickle_machine import Named, RefusedError, StandIn, key_of

_ALIGNMENT = 64

_STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexDouble": torch.complex128,
        "ComplexFloat": torch.complex64,
    }.items()
} | {"torch UntypedStorage": torch.uint8, "torch.storage UntypedStorage": torch.uint8}
# What is stored by its dtype's name. Tensors of others, such as quantized ones, can't be made from bytes.
_NAMED = frozenset(
    {
        *(torch.uint16, torch.uint32, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    }
) | set(_STORAGES.values())
# PyTorch itself allows no more.
_MOST_DIMENSIONS = 64
# Calls that are answered with an inert stand-in: these things lie about in modules and hold no weights.
_INERT = frozenset(
    {
        "torch device",
        "functools partial",
        "pathlib Path",
        "pathlib PosixPath",
        "pathlib WindowsPath",
        "pathlib PurePosixPath",
        "torchvision.transforms.functional InterpolationMode",
        "timm.layers.format Format",
        "_codecs encode",
        "numpy dtype",
        "numpy.core.multiarray scalar",
        "numpy._core.multiarray scalar",
    }
)


@dataclass(eq=False)
class Storage:
    """A stretch of a file; older files say where it starts only at their end."""

    path: Path
    dtype: torch.dtype
    n_bytes: int
    start: int | None = None
    root: Storage | None = None
    offset: int = 0

    @property
    def place(self) -> int:
        """Where it starts in the file, in bytes."""
        start = self.root.place + self.offset if self.root else self.start
        if start is None:
            raise ValueError("a tensor's numbers are missing")
        return start


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """A tensor in a file, not read yet.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        stride: Steps between neighbours of each dimension, in elements.
        offset: Where it begins in its storage, in elements.
        storage: The stretch of the file that holds its numbers.
    """

    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...]
    offset: int
    storage: Storage

    @property
    def place(self) -> int:
        """Where it starts in the file, in bytes."""
        return self.storage.place + self.offset * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read the tensor afresh.

        Raises:
            CheckpointError: The file can't be read any more.
        """
        n = _span(self.shape, self.stride)
        if not n:
            return torch.empty(self.shape, dtype=self.dtype)
        path, content = self.storage.path, bytearray(n * self.dtype.itemsize)
        try:
            with path.open("rb") as file:
                file.seek(self.place)
                n_read = file.readinto(content)
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
        if n_read < len(content):
            raise CheckpointError(f"{path} was shortened while it was read: open it again.")
        return torch.frombuffer(content, dtype=self.dtype).as_strided(self.shape, self.stride)

    def view(self, content: mmap.mmap, copies: dict[object, Tensor]) -> Tensor:
        """Return the tensor as a view of its file's content, or one copy for all that are tied to it.

        Older formats don't align tensors, so theirs can't be used where they lie.
        """
        n = _span(self.shape, self.stride)
        if n and self.storage.place % _ALIGNMENT == 0:
            flat = torch.frombuffer(content, dtype=self.dtype, count=n, offset=self.place)
            return flat.as_strided(self.shape, self.stride)
        key = (self.place, self.dtype, self.shape, self.stride)
        if key not in copies:
            copies[key] = self.read()
        return copies[key]


def answer(function: str, arguments: tuple) -> object:
    """Return what a call in a file makes: a tensor's place, a container, or a stand-in.

    Args:
        function: Its module and name, with a space between them.
        arguments: What the file would have it called with.

    Raises:
        RefusedError: The function is none that PyTorch writes.
        TypeError: The arguments are not what PyTorch writes; ValueError too.
    """
    if function in _INERT:
        return StandIn(function)
    builder = _CALLS.get(function)
    if builder is None:
        raise RefusedError(f"it calls {'.'.join(function.split())[:80]}")
    return builder(*arguments)


def _tensor(storage: object, offset: object, shape: object, stride: object, *others: object) -> PickledTensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    return _place(storage, storage.dtype, (offset, shape, stride), others[2:])


def _typed_tensor(storage: object, *others: object) -> PickledTensor:
    offset, shape, stride, _, _, dtype, *metadata = others
    name = dtype.name.removeprefix("torch ") if isinstance(dtype, Named) else ""
    stored = getattr(torch, name, None)
    if not isinstance(storage, Storage) or not isinstance(stored, torch.dtype):
        raise TypeError("a tensor without a storage or a dtype")
    if stored not in _NAMED:
        raise RefusedError(f"it stores {name} data")
    return _place(storage, stored, (offset, shape, stride), metadata)


def _place(
    storage: Storage, dtype: torch.dtype, layout: tuple[object, object, object], metadata: Sequence[object]
) -> PickledTensor:
    """Check that a tensor lies inside of its storage and holds no more numbers than that."""
    offset, shape, stride = layout
    if any(metadata):  # conjugated or negated when it is used
        raise RefusedError("it stores tensors that are to be computed")
    if (
        not isinstance(shape, tuple | list)
        or not isinstance(stride, tuple | list)
        or len(shape) != len(stride)
        or len(shape) > _MOST_DIMENSIONS
    ):
        raise ValueError("a tensor's shape and strides differ")
    sizes, steps = tuple(map(count_of, shape)), tuple(map(count_of, stride))
    first, n_stored, n = count_of(offset), storage.n_bytes // dtype.itemsize, math.prod(sizes)
    if n and (first + _span(sizes, steps) > n_stored or n > n_stored):
        raise ValueError("a tensor is larger than its storage")
    count_of(math.prod(size or 1 for size in sizes))
    return PickledTensor(torch.Size(sizes), dtype, steps, first, storage)


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return how many elements of a storage lie between a tensor's first and last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _parameter(data: object, *_: object) -> PickledTensor:
    if not isinstance(data, PickledTensor):
        raise TypeError("a parameter without a tensor")
    return data


def _subclass(function: object, _: object, arguments: object, __: object) -> PickledTensor:
    """Return the plain tensor of one with attributes, or of a subclass."""
    if not isinstance(arguments, tuple) or not isinstance(function, Named):
        raise TypeError("a tensor is rebuilt in an unknown way")
    return _parameter(answer(function.name, arguments))


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _typed_tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch._tensor _rebuild_from_type_v2": _subclass,
    "torch Size": lambda shape=(): tuple(map(count_of, shape)),
    "collections OrderedDict": lambda pairs=(): {key_of(key): value for key, value in pairs},
    "collections defaultdict": lambda *_: {},
    **dict.fromkeys(
        ("builtins set", "__builtin__ set", "builtins frozenset", "__builtin__ frozenset"),
        lambda items=(): set(map(key_of, items)),
    ),
}


def storage_dtype(kind: object) -> torch.dtype:
    """Return the dtype of a kind of storage.

    Raises:
        RefusedError: It is none that PyTorch writes for ordinary tensors.
    """
    name = kind.name if isinstance(kind, Named) else ""
    if name not in _STORAGES:
        raise RefusedError(f"it stores {name.rpartition(' ')[2][:80] or 'an unknown kind of'} data")
    return _STORAGES[name]


def count_of(value: object) -> int:
    """Return a size, a stride or an offset.

    Raises:
        ValueError: It is negative, not an integer, or larger than anything.
    """
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("a size is no count")
    return value
