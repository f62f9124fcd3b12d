"""Prepare a study's merges: once for everybody in the store, and once for an evaluator in this process."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from filelock import FileLock, Timeout

from mapmerge_core.errors import Cancelled, StudyError

if TYPE_CHECKING:
    from mapmerge_core.merges.base import Merge, PreparedMerge
    from mapmerge_core.studies.store import Store, StoredMerge
    from mapmerge_core.tasks.evaluator import Evaluator

# Prepared merges that an evaluator keeps: transformed task vectors are as large as the models.
_KEPT = 2
_PATIENCE = 0.2

_Cache = OrderedDict[tuple[object, ...], "PreparedMerge"]
_prepared: WeakKeyDictionary[Evaluator, _Cache] = WeakKeyDictionary()
_lock = Lock()


def prepare_merge(
    store: Store,
    merge_id: int,
    evaluator: Evaluator,
    *,
    cancel: Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreparedMerge:
    """Return a merge, ready to write models; whatever takes long is done once and kept in the store.

    A training that was stopped or killed goes on from its checkpoint. While another process prepares the same
    merge, this one waits and then reads what the other has kept.

    Args:
        store: Where the merge, its state and its cost are kept.
        merge_id: The merge.
        evaluator: Its study's.
        cancel: Set it to stop after the step in flight.
        progress: Called with the steps done and their total; never where the merge is prepared already.

    Raises:
        StudyError: There is no such merge, the study can't have it, or its state's file is gone.
        CheckpointError: Its state's file can't be read.
        MapMergeError: It can't be prepared; the device runs out of memory.
        Cancelled: ``cancel`` was set.
    """
    stored = store.merges.get(merge_id)
    merge = stored.make()
    state = store.merges.state_file(merge_id) if merge.has_state else None
    if prepared := _cached(evaluator, _key(stored, state)):
        return prepared
    rounded = getattr(evaluator.vectors, "is_rounded", False)
    merge.check(store.merges.config(stored.study_id).facts("bfloat16" if rounded else "float32"))
    if state is None:
        start = time.perf_counter()
        prepared = merge.prepare(evaluator, cancel=cancel, progress=progress)
        if not stored.is_prepared:
            store.merges.set_prepared(merge_id, time.perf_counter() - start, 0)
    else:
        lock = store.path.parent / "locks" / f"{store.path.name}-merge-{merge_id}.lock"
        with _alone(lock, cancel or Event()):
            if not state.exists():
                _make_state(store, stored, merge, state, evaluator, cancel, progress)
        # What an export will read, to the last bit.
        prepared = merge.load(state, evaluator.vectors, evaluator.exported_vectors)
    _keep(evaluator, _key(stored, state), prepared)
    return prepared


def _make_state(
    store: Store,
    stored: StoredMerge,
    merge: Merge,
    state: Path,
    evaluator: Evaluator,
    cancel: Event | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    is_measured = any(store.evaluations.rows(stored.id, split) for split in ("val", "test"))
    if store.merges.get(stored.id).is_prepared and is_measured:  # another model would score otherwise
        raise StudyError(
            f"What {merge.label} prepared is gone from {state}: put the file back, or prepare the merge anew "
            "with another setting, such as its seed."
        )
    checkpoint = store.merges.checkpoint_file(stored.id)
    start = time.perf_counter()
    with evaluator.in_use:
        prepared = merge.prepare(
            evaluator,
            progress=progress,
            cancel=cancel,
            checkpoint=checkpoint,
            report=lambda point: store.training.add(stored.id, [point]),
        )
    prepared.save(state)
    # A training that was resumed took longer than what this process saw of it.
    trained = sum(point.seconds for point in store.training.all(stored.id))
    store.merges.set_prepared(stored.id, max(trained, time.perf_counter() - start), 0)
    checkpoint.unlink(missing_ok=True)


@contextmanager
def _alone(file: Path, cancel: Event) -> Iterator[None]:
    """Hold a lock's file, once the process that holds it has ended or is done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    while True:
        try:
            lock.acquire(timeout=_PATIENCE)
            break
        except Timeout:
            if cancel.is_set():
                raise Cancelled from None
    try:
        yield
    finally:
        lock.release()


def _key(stored: StoredMerge, state: Path | None) -> tuple[object, ...]:
    """Return what tells prepared merges of one evaluator apart, whichever store they are in."""
    written = state.stat().st_mtime_ns if state and state.exists() else 0
    return stored.name, json.dumps(stored.settings, sort_keys=True), str(state), written


def _cached(evaluator: Evaluator, key: tuple[object, ...]) -> PreparedMerge | None:
    with _lock:
        kept = _prepared.get(evaluator)
        if kept is None or key not in kept:
            return None
        kept.move_to_end(key)
        return kept[key]


def _keep(evaluator: Evaluator, key: tuple[object, ...], prepared: PreparedMerge) -> None:
    with _lock:
        kept = _prepared.setdefault(evaluator, OrderedDict())
        kept[key] = prepared
        while len(kept) > _KEPT:
            kept.popitem(last=False)
