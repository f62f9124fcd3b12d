"""The same work on many images at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from mapmerge_core.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from threading import Event

T = TypeVar("T")


def in_threads(
    work: Callable[[int], T],
    count: int,
    progress: Callable[[int, int], None] | None = None,
    cancel: Event | None = None,
) -> Iterator[T]:
    """Yields ``work(0)``, ``work(1)``, ... in order; Pillow and NumPy let threads run side by side.

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
