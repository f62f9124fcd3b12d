"""What a finished run found, and what that took: kept in memory, since a finished run hardly ever changes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.analysis.replay import RunFront, front_of, replay

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.replay import Replay
    from mapmerge_core.studies.store.rows import RunRow
    from mapmerge_core.studies.store.store import Store

_KEPT = 64


@dataclass(frozen=True, eq=False)
class Finding:
    """A run's front and its price.

    Attributes:
        replay: The run, replayed; None where that can't be done.
        front: The models that it offers, from its own points alone; None where there is a problem.
        evaluations: (c, task) pairs on the validation split that it rests on, whoever measured them.
        seconds: What measuring those took, whenever that was.
        problem: One sentence on why there is no front; "" where there is one.
    """

    replay: Replay | None
    front: RunFront | None
    evaluations: int
    seconds: float
    problem: str


class _Cache:
    """The findings used last, for any thread; two threads may compute the same one, to the same result."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[Any, ...], Finding] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> Finding | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: tuple[Any, ...], finding: Finding) -> None:
        with self._lock:
            self._kept[key] = finding
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)


_cache = _Cache()


def finding_of(store: Store, run: RunRow, *, seed: int = 0) -> Finding:
    """What a run found; searching its front takes up to seconds the first time and nothing after that.

    Args:
        store: Where the run's evaluations are.
        run: The run.
        seed: Seed of the search for its front.
    """
    if run.status != "done":
        return Finding(None, None, run.n_evaluations, run.seconds, unfinished(run))
    # What was measured on some images may be refined.
    state = None if run.settings.images is None else store.fingerprint(run.study_id)
    key = (store.path, run.id, run.created, seed, state)
    found = _cache.get(key)
    if found is None:
        found = _find(store, run, seed)
        _cache.keep(key, found)
    return found


def _find(store: Store, run: RunRow, seed: int) -> Finding:
    try:
        replayed = replay(store, run.id)
    except MapMergeError as error:
        return Finding(None, None, run.n_evaluations, run.seconds, str(error))
    spent = replayed.n_evaluations, _seconds(store, replayed)
    try:
        front = front_of(replayed, store.study(run.study_id).spec.metrics, seed=seed)
    except MapMergeError as error:
        return Finding(replayed, None, *spent, str(error))
    return Finding(replayed, front, *spent, "")


def _seconds(store: Store, replayed: Replay) -> float:
    """What the run's own points took, whoever measured them."""
    tasks = store.study(replayed.run.study_id).spec.task_names
    used = {
        (c.tobytes(), tasks[k])
        for c, row in zip(replayed.C, replayed.Y, strict=True)
        for k in np.flatnonzero(np.isfinite(row))
    }
    study_id = replayed.run.study_id
    rows = [(row.c, row.task, row.seconds) for row in store.evaluations(study_id)]
    rows += [(row.c, row.task, row.seconds) for row in store.subset_evaluations(study_id)]
    return sum(seconds for c, task, seconds in rows if (c.tobytes(), task) in used)


def unfinished(run: RunRow) -> str:
    """Why a run that isn't done has no front, as a sentence."""
    if run.status == "failed":
        return f"Run {run.id} failed: {run.error}"
    if run.status in ("queued", "running"):
        return f"Run {run.id} is still going on: it can be compared once it is done."
    return f"Run {run.id} was stopped before its end: resume it to compare it."
