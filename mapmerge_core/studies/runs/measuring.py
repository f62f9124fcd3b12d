"""Measures what the store doesn't know, on one device or several, and stores each value at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled
from mapmerge_core.tasks.metric import unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.studies.store.rows import Split, StudyRow, SubsetEvaluationRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

Progress = Callable[[int, int], None]
"""Called with the evaluations that the store has and those wanted in all, at the start and after each."""

_PATIENCE = 0.1
"""Seconds between two looks at Ctrl-C while devices are waited for."""


def measure(
    store: Store,
    study: StudyRow,
    evaluator: Evaluator,
    C: np.ndarray,
    *,
    tasks: Sequence[str] | None = None,
    split: Split = "val",
    images: int | None = None,
    run_id: int | None = None,
    alone: bool = False,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Measures tasks, by default all, at the rows of ``C`` (``m x N``), unless the store knows the values.

    With ``images``, that many of each validation split are enough, and where more are known these are used;
    what is known of fewer isn't measured again. The pre-trained and the single-task models are measured on
    the whole split nevertheless: every comparison needs them. So is the test split.

    An evaluator's siblings measure other rows at the same time, unless it shall be ``alone``.

    Returns:
        The values (``m x K``), a column for each task in the order given.

    Raises:
        Cancelled: once ``cancel`` is set.
    """
    tasks = study.spec.task_names if tasks is None else tasks
    wanted = [None if split == "test" or _is_anchor(c) else images for c in C]
    values = _known(store, study, C, tasks, split, wanted)
    work = _Measuring(store, study, C, tasks, split, wanted, values, run_id, cancel or Event(), progress)
    work.report()
    missing = [i for i, row in enumerate(values) if not np.isfinite(row).all()]
    if evaluator.siblings and not alone:
        work.share_out(missing, [evaluator, *evaluator.siblings])
    else:
        for i in missing:
            work.measure(i, evaluator)
    return values


@dataclass
class _Measuring:
    """What `measure` was asked, and what came of it so far: `values`; several threads work on it."""

    store: Store
    study: StudyRow
    C: np.ndarray
    tasks: Sequence[str]
    split: Split
    wanted: Sequence[int | None]
    values: np.ndarray
    run_id: int | None
    cancel: Event
    progress: Progress | None

    def __post_init__(self) -> None:
        self._lock, self._broken, self._abandoned = Lock(), Event(), Event()

    def set(self, i: int, known: Mapping[str, float]) -> int:
        """Takes over values of a row, tells the progress, and returns how many are still missing in all."""
        with self._lock:
            self.values[i] = [known.get(task, np.nan) for task in self.tasks]
            return self._report()

    def report(self) -> None:
        """Tells the progress."""
        with self._lock:
            self._report()

    def _report(self) -> int:
        done = int(np.isfinite(self.values).sum())
        if self.progress:
            self.progress(done, self.values.size)
        return self.values.size - done

    def share_out(self, rows: Sequence[int], evaluators: Sequence[Evaluator]) -> None:
        """Measures some rows, each evaluator the next that none has begun; the first error ends them all."""
        if not rows:
            return
        # One after the other: what the first one prepares and keeps on disk the others only read, and Python
        # 3.11 can't parse the headers of NumPy's files in several threads at once.
        for evaluator in evaluators:
            evaluator.prepare(self.tasks, self.split)
        waiting = iter(rows)  # taking the next one of a list is a single step for all threads
        errors: list[BaseException] = []

        def serve(evaluator: Evaluator) -> None:
            try:
                while not self._broken.is_set() and (i := next(waiting, None)) is not None:
                    self.measure(i, evaluator)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                errors.append(error)
                self._broken.set()

        # Where Ctrl-C interrupts the waiting, nobody waits for evaluations in flight.
        threads = [
            Thread(target=serve, args=(evaluator,), name=f"mapmerge-{evaluator.device}", daemon=True)
            for evaluator in evaluators
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
        # The others have only been told to stop.
        for error in sorted(errors, key=lambda error: isinstance(error, Cancelled)):
            raise error

    def measure(self, i: int, evaluator: Evaluator) -> None:
        """Measures what a row lacks and stores it."""
        if self.cancel.is_set():
            raise Cancelled
        # Another process may have measured some of it in the meantime.
        known, parts = self._known_at(i)
        missing = [task for task in self.tasks if task not in known]
        if not missing:
            self.set(i, known)
            return
        c, images = self.C[i], self.wanted[i]
        before = {task: unpack(part.per_example, part.n_examples) for task, part in parts.items()}
        # A thread that nobody waited for may still be at it.
        with evaluator.in_use:
            for task, outcome in evaluator.outcomes(c, missing, self.split, images=images, known=before):
                if self._abandoned.is_set():
                    raise Cancelled
                spent = outcome.seconds + (parts[task].seconds if task in parts else 0.0)
                measured = replace(outcome, seconds=spent)
                added = self.store.add_evaluation(
                    self.study.id, c, task, self.split, measured, run_id=self.run_id
                )
                # Whoever stored it first, everybody goes on with the same value.
                known[task] = outcome.value if added else self._known_at(i)[0][task]
                n_missing = self.set(i, known)
                if n_missing and (self.cancel.is_set() or self._broken.is_set()):
                    raise Cancelled

    def _known_at(self, i: int) -> tuple[dict[str, float], dict[str, SubsetEvaluationRow]]:
        """What is known at one row, by task.

        Returns:
            The values of whole splits and of as many images as are wanted, and the measurements of parts.
        """
        store, study, c, images = self.store, self.study.id, self.C[i], self.wanted[i]
        # Before those of whole splits, which take the place of parts: one of the two is found always.
        rows = store.subset_evaluations(study, c) if self.split == "val" else []
        enough = {row.task: row.value for row in rows if images is not None and row.n_examples >= images}
        return enough | store.measured(study, c, self.split), {row.task: row for row in rows}


def _is_anchor(c: np.ndarray) -> bool:
    """Whether a c (N,) is that of the pre-trained model or of a single-task one."""
    return not c.any() or (np.count_nonzero(c) == 1 and c.max() == 1.0)


def _known(
    store: Store,
    study: StudyRow,
    C: np.ndarray,
    tasks: Sequence[str],
    split: Split,
    wanted: Sequence[int | None],
) -> np.ndarray:
    """Values (``m x K``) of ``tasks`` at the rows of ``C``, NaN where fewer images are known than wanted."""
    found = store.measurements(study.id, split)
    on = {images: found.on(images) for images in set(wanted)}
    columns = [study.spec.task_names.index(task) for task in tasks]
    values = np.full((len(C), len(tasks)), np.nan)
    for c, images, row in zip(C, wanted, values, strict=True):
        same = (found.C == c).all(axis=1)  # noqa: SIM300 - C is no constant
        for known in on[images][same]:
            row[:] = known[columns]
    return values
