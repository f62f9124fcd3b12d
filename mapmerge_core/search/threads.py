"""Linear algebra of small matrices on one thread: quicker than on several, and the same to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock

from threadpoolctl import ThreadpoolController

_lock = RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep NumPy's and SciPy's BLAS to one thread inside; also a decorator, ``@one_thread()``.

    The limit holds for the whole process, so threads of the program take turns inside: neither lifts the
    limit of another, nor takes it for what is to be restored.
    """
    with _lock, _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    """What knows the libraries; to find them takes a millisecond."""
    return ThreadpoolController()
