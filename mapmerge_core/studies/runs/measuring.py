"""Measure what the store doesn't know, on one device or several, and store each value at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled
from mapmerge_core.studies.runs.preparing import prepare_merge

if TYPE_CHECKING:
    from mapmerge_core.merges.base import PreparedMerge
    from mapmerge_core.studies.store import Evaluation, Split, Store, Study
    from mapmerge_core.tasks.evaluator import Evaluator

Progress = Callable[[int, int], None]
"""Called with what is done and the total, both in evaluations or steps, at the start and after each."""

_PATIENCE = 0.1
"""Seconds between two looks at Ctrl-C while devices are waited for."""


def measure(
    store: Store,
    study: Study,
    evaluator: Evaluator,
    merge_id: int,
    X: np.ndarray,
    *,
    objectives: Sequence[str] | None = None,
    split: Split = "val",
    images: int | None = None,
    run_id: int | None = None,
    alone: bool = False,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return an ``m x K`` array of values at the rows of ``X``; what the store lacks is measured first.

    Each value is committed as soon as it is measured. An evaluator's siblings measure other rows at the same
    time.

    Args:
        store: Where values are looked up and kept.
        study: The study.
        evaluator: The study's evaluator.
        merge_id: The merge, which is prepared first where it isn't.
        X: Points of the merge's space, ``m x D``.
        objectives: Keys of the objectives, in the order of the columns; all by default.
        split: ``"val"`` or ``"test"``.
        images: How many examples of each validation split are enough; all by default. Where more are known
            these are used, and where fewer are known only the others are measured. The models that every
            comparison needs (`references`) are measured on whole splits always.
        run_id: The run that counts the evaluations as its own.
        alone: Whether siblings stay idle.
        cancel: Set it to stop after the evaluation in flight.
        progress: Called with the values that are known and those wanted in all.

    Raises:
        PointError: A row is no point of the merge's space.
        Cancelled: ``cancel`` was set before all values were known.
    """
    X = store.merges.get(merge_id).space.points(X)
    reference_id, references = reference_points(store, study)
    whole = [merge_id == reference_id and bool((x == references).all(axis=1).any()) for x in X]
    wanted = [None if split == "test" or is_whole else images for is_whole in whole]
    keys = [objective.key for objective in study.config.objectives] if objectives is None else [*objectives]
    work = _Measuring(store, study, merge_id, X, keys, split, wanted, run_id, cancel or Event(), progress)
    missing = [i for i, row in enumerate(work.values) if not np.isfinite(row).all()]
    work.report()
    if missing and work.cancel.is_set():
        raise Cancelled
    if missing:
        work.share_out(missing, [evaluator] if alone else [evaluator, *evaluator.siblings])
    return work.values


def reference_points(store: Store, study: Study) -> tuple[int, np.ndarray]:
    """Return where every comparison's references are: the id of task arithmetic, and ``N + 1 x N`` points.

    The first is the pre-trained model, the others are the fine-tuned ones in the study's order. Task
    arithmetic is a study's first merge from its creation.
    """
    n = len(study.config.model_names)
    return store.merges.all(study.id)[0].id, np.eye(n + 1, n, k=-1)


@dataclass
class _Measuring:
    """What `measure` was asked, and what is known so far: `values`; several threads work on it."""

    store: Store
    study: Study
    merge_id: int
    X: np.ndarray
    keys: Sequence[str]
    split: Split
    wanted: Sequence[int | None]
    run_id: int | None
    cancel: Event
    progress: Progress | None

    def __post_init__(self) -> None:
        self._lock, self._broken, self._abandoned = RLock(), Event(), Event()
        self._tasks = {objective.key: objective.task for objective in self.study.config.objectives}
        measured = self.store.evaluations.table(self.merge_id, self.split)
        columns = [list(self._tasks).index(key) for key in self.keys]
        self.values = np.full((len(self.X), len(self.keys)), np.nan)
        enough = {images: measured.on(images) for images in set(self.wanted)}
        for i, (x, images) in enumerate(zip(self.X, self.wanted, strict=True)):
            for row in np.flatnonzero((x == measured.X).all(axis=1)):
                self.values[i] = enough[images][row, columns]

    def report(self) -> int:
        """Tell the progress, and return how many values are missing."""
        with self._lock:
            done = int(np.isfinite(self.values).sum())
            if self.progress:
                self.progress(done, self.values.size)
            return self.values.size - done

    def share_out(self, rows: Sequence[int], evaluators: Sequence[Evaluator]) -> None:
        """Measure some rows, each evaluator the next that none has begun; the first error ends them all."""
        # One after the other: what the first one prepares and keeps on disk the others only read, and Python
        # 3.11 can't parse the headers of NumPy's files in several threads at once.
        prepared = [prepare_merge(self.store, self.merge_id, evaluator, cancel=self.cancel) for evaluator in evaluators]
        if len(evaluators) == 1:
            for i in rows:
                self._measure(i, evaluators[0], prepared[0])
            return
        for evaluator in evaluators:
            evaluator.prepare(list(dict.fromkeys(self._tasks[key] for key in self.keys)), self.split)
        waiting = iter(rows)  # taking the next one of a list is a single step for all threads
        errors: list[BaseException] = []

        def serve(evaluator: Evaluator, prepared: PreparedMerge) -> None:
            try:
                while not self._broken.is_set() and (i := next(waiting, None)) is not None:
                    self._measure(i, evaluator, prepared)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                errors.append(error)
                self._broken.set()

        # Where Ctrl-C interrupts the waiting, nobody waits for evaluations in flight.
        threads = [
            Thread(target=serve, args=pair, name=f"mapmerge-{pair[0].device}", daemon=True)
            for pair in zip(evaluators, prepared, strict=True)
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(_PATIENCE)
        except BaseException:
            self._abandoned.set()
            raise
        finally:
            self._broken.set()
        # The others were only asked to stop.
        for error in sorted(errors, key=lambda error: isinstance(error, Cancelled)):
            raise error

    def _measure(self, i: int, evaluator: Evaluator, prepared: PreparedMerge) -> None:
        """Measure what a row lacks, and store it."""
        if self.cancel.is_set():
            raise Cancelled
        # Another process may have measured some of it in the meantime.
        values, parts = self._lookup(i)
        missing = [key for key in self.keys if key not in values]
        if not missing:
            self._set(i, values)
            return
        x, images, tasks = self.X[i], self.wanted[i], self._tasks
        measured = {key: part.values for key, part in parts.items()}
        # A thread that nobody waited for may still be at it.
        with evaluator.in_use:
            for key, outcome in evaluator.outcomes(
                (prepared, x), [*missing], self.split, images=images, measured=measured
            ):
                if self._abandoned.is_set():
                    raise Cancelled
                spent = outcome.seconds + (parts[key].seconds if key in parts else 0.0)
                added = self.store.evaluations.add(
                    self.merge_id, x, key, self.split, replace(outcome, seconds=spent), run_id=self.run_id
                )
                # Whoever stored it first, everybody goes on with the same value.
                values[key] = outcome.value if added else self._lookup(i)[0][key]
                n_missing = self._set(i, values)
                missing.remove(key)
                # What the same pass measured is stored as well.
                is_complete = tasks[key] not in {tasks[other] for other in missing}
                if n_missing and is_complete and (self.cancel.is_set() or self._broken.is_set()):
                    raise Cancelled

    def _lookup(self, i: int) -> tuple[dict[str, float], dict[str, Evaluation]]:
        """Return what is known at one row by objective: values of enough examples, and parts of splits."""
        x, images = self.X[i], self.wanted[i]
        # Before those of whole splits, which take the place of parts: one of the two is there always.
        parts = self.store.evaluations.partial(self.merge_id, x) if self.split == "val" else {}
        enough = {key: part.value for key, part in parts.items() if images is not None and part.n_examples >= images}
        return enough | self.store.evaluations.measured(self.merge_id, x, self.split), parts

    def _set(self, i: int, values: Mapping[str, float]) -> int:
        with self._lock:
            self.values[i] = [values.get(key, np.nan) for key in self.keys]
            return self.report()
