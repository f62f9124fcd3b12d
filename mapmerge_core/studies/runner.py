"""Ask, evaluate what is missing, store each value at once, tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.studies.learning import learn, seconds_per_step
from mapmerge_core.studies.settings import MIN_IMAGES, has_parts
from mapmerge_core.tasks.metric import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mapmerge_core.methods.pareto.training import Training
    from mapmerge_core.studies.rows import RunRow, Split, StudyRow, SubsetEvaluationRow
    from mapmerge_core.studies.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

Progress = Callable[[int, int], None]
"""Called with the evaluations that the store has and those wanted in all, at the start and after each."""


def execute_run(
    store: Store,
    run_id: int,
    get_evaluator: Callable[[StudyRow, str, str], Evaluator],
    *,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> RunRow:
    """Runs or resumes a run that the caller has claimed (``Store.claim_run``), and records how it ended.

    Args:
        store: Where evaluations go, and where those that are there already are not made again.
        run_id: The run.
        get_evaluator: Gives the evaluator of (study, device, precision), as ``EvaluatorCache.get`` does.
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
        evaluator = get_evaluator(study, run.settings.device, run.settings.precision)
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

    Returns:
        The values (``m x K``), a column for each task in the order given.

    Raises:
        Cancelled: once ``cancel`` is set.
    """
    tasks = study.spec.task_names if tasks is None else tasks
    wanted = [None if split == "test" or _is_anchor(c) else images for c in C]
    values = _known(store, study, C, tasks, split, wanted)
    done = int(np.isfinite(values).sum())
    if progress:
        progress(done, values.size)
    for c, n, row in zip(C, wanted, values, strict=True):
        if np.isfinite(row).all():
            continue
        if cancel and cancel.is_set():
            raise Cancelled
        # Another process may have measured some of it in the meantime.
        known, parts = _known_at(store, study, c, split, n)
        row[:] = [known.get(task, np.nan) for task in tasks]
        missing = [task for task in tasks if task not in known]
        done = int(np.isfinite(values).sum())
        if not missing:
            if progress:
                progress(done, values.size)
            continue
        before = {task: unpack(part.per_example, part.n_examples) for task, part in parts.items()}
        for task, outcome in evaluator.outcomes(c, missing, split, images=n, known=before):
            spent = outcome.seconds + (parts[task].seconds if task in parts else 0.0)
            added = store.add_evaluation(
                study.id, c, task, split, replace(outcome, seconds=spent), run_id=run_id
            )
            # Whoever stored it first, everybody goes on with the same value.
            row[tasks.index(task)] = outcome.value if added else _known_at(store, study, c, split, n)[0][task]
            done += 1
            if progress:
                progress(done, values.size)
            if cancel and cancel.is_set() and done < values.size:
                raise Cancelled
    return values


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
        device: Where it was measured, such as "cpu" or "cuda".
        precision: What it was computed in, "float32" or "bfloat16".
        seconds_per_few: To measure one c on the fewest images of each task that a run may ask for.
        sizes: How many examples each task's validation split has; none where parts of it can't be measured.
    """

    seconds_per_point: float
    device: str
    precision: str
    seconds_per_step: float = 0.0
    seconds_per_few: float = 0.0
    sizes: tuple[int, ...] = ()

    def seconds_for(self, n_points: int, n_steps: int = 0, images: int | None = None) -> float:
        """What a run takes.

        Args:
            n_points: How many c it measures on every task.
            n_steps: Of training.
            images: Of each task's validation split; all by default. The pre-trained and the single-task
                models are taken for some of the points, and are measured on whole splits.
        """
        training = n_steps * self.seconds_per_step
        if images is None or not self.sizes:
            return n_points * self.seconds_per_point + training
        n_whole = min(n_points, len(self.sizes) + 1)
        in_part = (n_points - n_whole) * self._seconds_on(images)
        return n_whole * self.seconds_per_point + in_part + training

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
        str(evaluator.device),
        str(evaluator.precision),
        each,
        sum(outcome.seconds for _, outcome in few),
        tuple(outcome.n_total or outcome.n_examples for _, outcome in few),
    )


def explain(error: Exception) -> str:
    """One sentence for a person, whatever went wrong."""
    if isinstance(error, MapMergeError):
        return str(error)
    return f"Unexpected error: {type(error).__name__}: {' '.join(str(error).split())}"
