"""Prepared inputs on disk: computed once, then memory-mapped by every evaluation and process."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from mapmerge_core.errors import Cancelled, DatasetError
from mapmerge_core.files import DAMAGED
from mapmerge_core.tasks.datasets.base import key_of

if TYPE_CHECKING:
    from mapmerge_core.tasks.datasets.images import ImageDataset

_SECONDS_BETWEEN_LOOKS = 0.2

T = TypeVar("T")


def cache_folder() -> Path:
    """Return the folder of what can be made again: $MAPMERGE_HOME/cache, or the platform's cache."""
    home = os.environ.get("MAPMERGE_HOME")
    return Path(home).absolute() / "cache" if home else user_cache_path("mapmerge", appauthor=False)


def cached_inputs(
    dataset: ImageDataset,
    split: str,
    transform: Callable[[np.ndarray], np.ndarray],
    transform_key: str,
    shape: tuple[int, ...],
    *,
    progress: Callable[[int, int], None] | None = None,
    cancel: Event | None = None,
) -> np.ndarray:
    """Prepare a split's images, unless they were prepared before.

    Args:
        dataset: The dataset.
        split: One of its splits.
        transform: From an image (uint8, H x W x 3 or H x W) to an input (uint8, ``shape``); called from
            several threads.
        transform_key: Tells this transform from any other.
        shape: Of an input.
        progress: Called with how many images are done, and how many there are.
        cancel: Set by whoever wants it to stop.

    Returns:
        uint8, n x ``shape``, in the order of ``dataset.labels(split)``; memory-mapped, and what a caller
        writes to it stays with that caller.

    Raises:
        DatasetError: An image can't be read, or the cache can't be written.
        Cancelled: ``cancel`` is set.
    """
    images = dataset.images(split)
    wanted = (len(images), *shape)
    key = key_of(dataset.split_key(split), transform_key, shape)
    path = cache_folder() / "inputs" / f"{key}.npy"
    if (inputs := _complete(path, wanted)) is not None:
        return inputs

    def prepared(row: int) -> bytes:
        made = np.ascontiguousarray(transform(images[row]))
        if made.dtype != np.uint8 or made.shape != shape:
            raise DatasetError(
                f"{images.name(row)} was prepared as {made.dtype} of shape {made.shape} where a model wants "
                f"uint8 of shape {shape}."
            )
        return made.tobytes()

    with writing(path.parent), locked(path.with_suffix(".lock"), cancel):
        if (inputs := _complete(path, wanted)) is not None:
            return inputs
        _check_room(path.parent, int(np.prod(wanted, dtype=np.int64)))
        # One name for all processes, as only one is in here: what a killed one left is written over.
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": wanted}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in in_threads(prepared, len(images), progress, cancel):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    inputs = _complete(path, wanted)
    if inputs is None:
        raise DatasetError(f"The prepared images {path} can't be read back: check the disk.")
    return inputs


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, and turn a disk that is full or read-only into one sentence.

    Raises:
        DatasetError: It can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if is_full(error):
            raise full(folder) from error
        raise DatasetError(
            f"The cache {folder} can't be written ({error.strerror or error}): set MAPMERGE_HOME to another folder."
        ) from error


@contextmanager
def locked(path: Path, cancel: Event | None = None) -> Iterator[None]:
    """Let one process or thread in at a time, by a lock file.

    Raises:
        Cancelled: ``cancel`` is set while another is in.
    """
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS)
            break
        except Timeout:
            if cancel is not None and cancel.is_set():
                raise Cancelled from None
    try:
        yield
    finally:
        lock.release()


def _complete(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the file's array if it is there and whole."""
    try:
        inputs = np.load(path, mmap_mode="c", allow_pickle=False)
    except DAMAGED:
        return None
    array: np.ndarray = inputs
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _check_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise full(folder, f": {n_bytes / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")


def is_full(error: BaseException) -> bool:
    """Return whether an error means that a disk is full."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def full(folder: Path, details: str = "") -> DatasetError:
    """The error that says that the cache's disk is full."""
    return DatasetError(
        f"The disk of the cache {folder} is full{details}; free some space, or set MAPMERGE_HOME to a folder "
        "on another disk."
    )


def in_threads(
    work: Callable[[int], T],
    count: int,
    progress: Callable[[int, int], None] | None = None,
    cancel: Event | None = None,
) -> Iterator[T]:
    """Yield ``work(0)``, ``work(1)``, ... in order; Pillow and NumPy let threads run side by side.

    Args:
        work: Safe to call from several threads.
        count: How often.
        progress: Called with how many are done, and ``count``.
        cancel: Set by whoever wants it to stop.

    Raises:
        Cancelled: ``cancel`` is set.
    """
    workers = min(32, os.cpu_count() or 1)
    # Enough to keep the threads busy, and few enough to stop soon and to fit into memory.
    ahead = 4 * workers
    with ThreadPoolExecutor(workers) as threads:
        rows = iter(range(count))
        waiting = [threads.submit(work, row) for row in islice(rows, ahead)]
        done = 0
        try:
            while waiting:
                if cancel is not None and cancel.is_set():
                    raise Cancelled
                yield waiting.pop(0).result()
                waiting += [threads.submit(work, row) for row in islice(rows, 1)]
                done += 1
                if progress is not None:
                    progress(done, count)
        finally:
            for future in waiting:
                future.cancel()
