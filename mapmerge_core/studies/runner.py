"""Ask, evaluate what is missing, store each value at once, tell."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.methods.catalogue import SEARCHES
from mapmerge_core.studies.learning import learn, seconds_per_step
from mapmerge_core.studies.settings import MIN_IMAGES, RunSettings, has_parts
from mapmerge_core.tasks.metric import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mapmerge_core.methods.pareto.training import Training
    from mapmerge_core.studies.rows import RunRow, Split, StudyRow, SubsetEvaluationRow
    from mapmerge_core.studies.settings import VectorsDtype
    from mapmerge_core.studies.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

Progress = Callable[[int, int], None]
"""Called with the evaluations that the store has and those wanted in all, at the start and after each."""


def execute_run(
    store: Store,
    run_id: int,
    get_evaluator: Callable[[StudyRow, str, str, VectorsDtype], Evaluator],
    *,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> RunRow:
    """Runs or resumes a run that the caller has claimed (``Store.claim_run``), and records how it ended.

    Args:
        store: Where evaluations go, and where those that are there already are not made again.
        run_id: The run.
        get_evaluator: Gives the evaluator of (study, device, precision, vectors), as ``EvaluatorCache.get``
            does.
        cancel: Set it to stop after the evaluation in flight.
        progress: Called after every evaluation.

    Returns:
        The run, "done" or "stopped".

    Raises:
        MapMergeError: where the run failed, for which it is "failed" with the same sentence.
    """
    run = store.run(run_id)
    study = store.study(run.study_id)
    cancel = cancel or Event()
    store.set_status(run_id, "running")
    try:
        run.settings.check(run.method, study.spec)
        how = run.settings
        evaluator = get_evaluator(study, how.device, how.precision, how.vectors)
        if run.method == "pareto_merging":
            learn(store, run, study, evaluator, cancel=cancel, progress=progress)
        else:
            _search(store, run, study, evaluator, cancel=cancel, progress=progress)
    except (Cancelled, KeyboardInterrupt) as stop:
        store.set_status(run_id, "stopped")
        if isinstance(stop, KeyboardInterrupt):
            raise
    except Exception as error:
        store.set_status(run_id, "failed", explain(error))
        raise
    else:
        store.set_status(run_id, "done")
    return store.run(run_id)


def _search(
    store: Store,
    run: RunRow,
    study: StudyRow,
    evaluator: Evaluator,
    *,
    cancel: Event,
    progress: Progress | None,
) -> None:
    """Measures what a run's method asks for until it is done."""
    method = run.settings.make_method(run.method, study.spec)
    done = 0
    names = study.spec.task_names
    while (batch := method.ask()) is not None:
        before, total = done, method.n_evaluations  # of nested MAP it settles from round to round

        def report(done_of_batch: int, _: int, before: int = before, total: int = total) -> None:
            if progress:
                progress(before + done_of_batch, total)

        values = measure(
            store,
            study,
            evaluator,
            batch.C,
            tasks=[names[task] for task in batch.tasks],
            images=run.settings.images,
            run_id=run.id,
            cancel=cancel,
            progress=report,
        )
        done += values.size
        method.tell(batch, values)


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
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Measures tasks, by default all, at the rows of ``C`` (``m x N``), unless the store knows the values.

    With ``images``, that many of each validation split are enough, and where more are known these are used;
    what is known of fewer isn't measured again. The pre-trained and the single-task models are measured on
    the whole split nevertheless: every comparison needs them. So is the test split.

    An evaluator's siblings measure other rows at the same time.

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
    if evaluator.siblings:
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
        self._lock, self._broken = Lock(), Event()

    def report(self) -> int:
        """Tells the progress, and returns how many values are still missing."""
        with self._lock:
            done = int(np.isfinite(self.values).sum())
            if self.progress:
                self.progress(done, self.values.size)
        return self.values.size - done

    def share_out(self, rows: Sequence[int], evaluators: Sequence[Evaluator]) -> None:
        """Measures some rows, each evaluator the next that none has begun; the first error ends them all."""
        waiting = iter(rows)  # taking the next one of a list is a single step for all threads

        def serve(evaluator: Evaluator) -> None:
            try:
                while not self._broken.is_set() and (i := next(waiting, None)) is not None:
                    self.measure(i, evaluator)
            except BaseException:
                self._broken.set()
                raise

        with ThreadPoolExecutor(len(evaluators), thread_name_prefix="device") as pool:
            serving = [pool.submit(serve, evaluator) for evaluator in evaluators]
            try:
                wait(serving)
            finally:  # Ctrl-C comes here, too
                self._broken.set()
        errors = [error for each in serving if (error := each.exception())]
        # The others have only been told to stop.
        for error in sorted(errors, key=lambda error: isinstance(error, Cancelled)):
            raise error

    def measure(self, i: int, evaluator: Evaluator) -> None:
        """Measures what a row lacks and stores it."""
        if self.cancel.is_set():
            raise Cancelled
        c, row, images = self.C[i], self.values[i], self.wanted[i]
        # Another process may have measured some of it in the meantime.
        known, parts = self._known_at(i)
        row[:] = [known.get(task, np.nan) for task in self.tasks]
        missing = [task for task in self.tasks if task not in known]
        if not missing:
            self.report()
            return
        before = {task: unpack(part.per_example, part.n_examples) for task, part in parts.items()}
        for task, outcome in evaluator.outcomes(c, missing, self.split, images=images, known=before):
            spent = outcome.seconds + (parts[task].seconds if task in parts else 0.0)
            measured = replace(outcome, seconds=spent)
            added = self.store.add_evaluation(
                self.study.id, c, task, self.split, measured, run_id=self.run_id
            )
            # Whoever stored it first, everybody goes on with the same value.
            row[self.tasks.index(task)] = outcome.value if added else self._known_at(i)[0][task]
            n_missing = self.report()
            if n_missing and (self.cancel.is_set() or self._broken.is_set()):
                raise Cancelled

    def _known_at(self, i: int) -> tuple[dict[str, float], dict[str, SubsetEvaluationRow]]:
        return _known_at(self.store, self.study, self.C[i], self.split, self.wanted[i])


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


def _known_at(
    store: Store, study: StudyRow, c: np.ndarray, split: Split, images: int | None
) -> tuple[dict[str, float], dict[str, SubsetEvaluationRow]]:
    """What is known at one c (N,), by task.

    Returns:
        The values of whole splits and of ``images`` of them or more, and the measurements of parts.
    """
    # Before those of whole splits, which take the place of parts: one of the two is found always.
    rows = store.subset_evaluations(study.id, c) if split == "val" else []
    enough = {row.task: row.value for row in rows if images is not None and row.n_examples >= images}
    return enough | store.measured(study.id, c, split), {row.task: row for row in rows}


@dataclass(frozen=True)
class Estimate:
    """What measuring one point costs.

    Attributes:
        seconds_per_point: To measure one c on the validation split of every task.
        seconds_per_step: Of Pareto Merging's training, where that was asked for.
        device: Where it was measured, such as "cpu" or "cuda"; several devices with commas between them.
        precision: What it was computed in, "float32" or "bfloat16".
        seconds_per_few: To measure one c on the fewest images of each task that a run may ask for.
        sizes: How many examples each task's validation split has; none where parts of it can't be measured.
        n_devices: How many devices measure points at the same time.
    """

    seconds_per_point: float
    device: str
    precision: str
    seconds_per_step: float = 0.0
    seconds_per_few: float = 0.0
    sizes: tuple[int, ...] = ()
    n_devices: int = 1

    def seconds_for(self, n_points: int, n_steps: int = 0, images: int | None = None) -> float:
        """What a run takes.

        Args:
            n_points: How many c it measures on every task.
            n_steps: Of training.
            images: Of each task's validation split; all by default. The pre-trained and the single-task
                models are taken for some of the points, and are measured on whole splits.
        """
        n_whole = n_points if images is None or not self.sizes else min(n_points, len(self.sizes) + 1)
        seconds = n_whole * self.seconds_per_point
        if images is not None and n_whole < n_points:
            seconds += (n_points - n_whole) * self._seconds_on(images)
        return seconds / self.n_devices + n_steps * self.seconds_per_step

    def _seconds_on(self, images: int) -> float:
        """To measure one c on so many images of each task, in between the two that were timed."""
        few, some, every = (
            sum(min(n, size) for size in self.sizes) for n in (MIN_IMAGES, images, max(self.sizes))
        )
        if every == few:
            return self.seconds_per_point
        share = (some - few) / (every - few)
        # A timing may be off, but fewer images don't take longer.
        return (1 - share) * min(
            self.seconds_per_few, self.seconds_per_point
        ) + share * self.seconds_per_point


def estimate(
    store: Store,
    study: StudyRow,
    evaluator: Evaluator,
    *,
    training: Training | None = None,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Times a real evaluation, of a model that every comparison needs, so that nothing is wasted.

    With a ``training`` it times a few of its steps, too.

    The pre-trained model warms up, the first single-task model is timed. Where the study has them already,
    perhaps from another device, they are evaluated for the time alone. So is the single-task model on few
    images, where the study can be measured in part.

    Raises:
        Cancelled: once ``cancel`` is set.
    """
    n = len(study.spec.tasks)
    C = np.eye(n + 1, n, k=-1)[:2]
    known = store.measured(study.id, C[1], "val")
    measure(store, study, evaluator, C, cancel=cancel, progress=progress)
    if known:
        evaluator.evaluate(C[0])
        if cancel and cancel.is_set():
            raise Cancelled
        timed = [outcome.seconds for outcome in evaluator.evaluate(C[1]).values()]
    else:
        timed = [row.seconds for row in store.evaluations(study.id) if np.array_equal(row.c, C[1])]
    each = seconds_per_step(evaluator, training) if training else 0.0
    few = list(evaluator.outcomes(C[1], images=MIN_IMAGES)) if has_parts(study.spec) else []
    return Estimate(
        sum(timed),
        ", ".join(str(one.device) for one in (evaluator, *evaluator.siblings)),
        str(evaluator.precision),
        each,
        sum(outcome.seconds for _, outcome in few),
        tuple(outcome.n_total or outcome.n_examples for _, outcome in few),
        1 + len(evaluator.siblings),
    )


def last_settings(store: Store, study_id: int) -> RunSettings:
    """Those of a study's latest search, which say how its models are measured; the usual ones before any."""
    searches = [run for run in store.runs(study_id) if run.method in SEARCHES]
    return searches[-1].settings if searches else RunSettings(points=1)


def explain(error: Exception) -> str:
    """One sentence for a person, whatever went wrong."""
    if isinstance(error, MapMergeError):
        return str(error)
    return f"Unexpected error: {type(error).__name__}: {' '.join(str(error).split())}"
