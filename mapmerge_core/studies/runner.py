"""Ask, evaluate what is missing, store each value at once, tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.studies.learning import learn, seconds_per_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mapmerge_core.methods.pareto.training import Training
    from mapmerge_core.studies.rows import RunRow, Split, StudyRow
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
    run_id: int | None = None,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Measures tasks, by default all, at the rows of ``C`` (``m x N``), unless the store knows the values.

    Returns:
        The values (``m x K``), a column for each task in the order given.

    Raises:
        Cancelled: once ``cancel`` is set.
    """
    every = study.spec.task_names
    tasks = every if tasks is None else tasks
    columns = [every.index(task) for task in tasks]
    values = np.full((len(C), len(tasks)), np.nan)
    known_C, known_Y = store.table(study.id, split)
    for c, row in zip(C, values, strict=True):
        for known in known_Y[(known_C == c).all(axis=1)]:
            row[:] = known[columns]
    done = int(np.isfinite(values).sum())
    if progress:
        progress(done, values.size)
    for c, row in zip(C, values, strict=True):
        if np.isfinite(row).all():
            continue
        if cancel and cancel.is_set():
            raise Cancelled
        # Another process may have measured some of it in the meantime.
        known = store.measured(study.id, c, split)
        row[:] = [known.get(task, np.nan) for task in tasks]
        missing = [task for task in tasks if task not in known]
        done = int(np.isfinite(values).sum())
        if not missing:
            if progress:
                progress(done, values.size)
            continue
        for task, outcome in evaluator.outcomes(c, missing, split):
            added = store.add_evaluation(study.id, c, task, split, outcome, run_id=run_id)
            # Whoever stored it first, everybody goes on with the same value.
            row[tasks.index(task)] = outcome.value if added else store.measured(study.id, c, split)[task]
            done += 1
            if progress:
                progress(done, values.size)
            if cancel and cancel.is_set() and done < values.size:
                raise Cancelled
    return values


@dataclass(frozen=True)
class Estimate:
    """What measuring one point costs.

    Attributes:
        seconds_per_point: To measure one c on the validation split of every task.
        seconds_per_step: Of Pareto Merging's training, where that was asked for.
        device: Where it was measured, such as "cpu" or "cuda".
        precision: What it was computed in, "float32" or "bfloat16".
    """

    seconds_per_point: float
    device: str
    precision: str
    seconds_per_step: float = 0.0

    def seconds_for(self, n_points: int, n_steps: int = 0) -> float:
        """To measure ``n_points`` c on the validation split of every task, and to train ``n_steps`` steps."""
        return n_points * self.seconds_per_point + n_steps * self.seconds_per_step


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
    perhaps from another device, they are evaluated for the time alone.

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
    return Estimate(sum(timed), str(evaluator.device), str(evaluator.precision), each)


def explain(error: Exception) -> str:
    """One sentence for a person, whatever went wrong."""
    if isinstance(error, MapMergeError):
        return str(error)
    return f"Unexpected error: {type(error).__name__}: {' '.join(str(error).split())}"
