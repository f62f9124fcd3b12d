"""Execute a run: prepare its merge, then ask, measure what is missing, and tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.studies.config import Compute
from mapmerge_core.studies.runs.measuring import Progress, measure, reference_points
from mapmerge_core.studies.runs.preparing import prepare_merge

if TYPE_CHECKING:
    from mapmerge_core.merges.base import Merge
    from mapmerge_core.studies.store import Run, Store, Study
    from mapmerge_core.tasks.evaluator import Evaluator

GetEvaluator = Callable[["Study", Compute], "Evaluator"]
"""Gives a study's evaluator, as `EvaluatorCache.get` does."""


def execute_run(
    store: Store,
    run_id: int,
    get_evaluator: GetEvaluator,
    *,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> Run:
    """Execute or resume a run that the caller has claimed, and record how it ended.

    The pre-trained and the fine-tuned models are measured as well: every comparison needs them.

    Args:
        store: Where evaluations go; those that it has are not made again.
        run_id: The run.
        get_evaluator: Gives a study's evaluator, as `EvaluatorCache.get` does.
        cancel: Set it to stop after the evaluation or the training step in flight.
        progress: Called after every evaluation and every step of preparing the merge.

    Returns:
        The run, "done" or "stopped".

    Raises:
        MapMergeError: The run failed; it is "failed" with the same sentence.
    """
    run = store.runs.get(run_id)
    study = store.studies.get(run.study_id)
    store.runs.set_status(run_id, "running")
    try:
        run.config.check(study.config)
        evaluator = get_evaluator(study, run.config.compute)
        _search(store, run, study, evaluator, cancel or Event(), progress or (lambda _done, _total: None))
    except (Cancelled, KeyboardInterrupt) as stop:
        store.runs.set_status(run_id, "stopped")
        if isinstance(stop, KeyboardInterrupt):
            raise
    except Exception as error:
        store.runs.set_status(run_id, "failed", explain(error))
        raise
    else:
        store.runs.set_status(run_id, "done")
    return store.runs.get(run_id)


def _search(store: Store, run: Run, study: Study, evaluator: Evaluator, cancel: Event, progress: Progress) -> None:
    """Measure the references and what the run's method asks for, until it is done."""
    method = run.config.make_method(study.config)
    batch = method.ask()
    reference_id, references = reference_points(store, study)
    if batch is not None and run.merge_id == reference_id:  # most methods ask for them anyway
        references = np.array([x for x in references if not (x == batch.X).all(axis=1).any()])
    keys = [objective.key for objective in study.config.objectives]
    ahead = len(references) * len(keys)
    before = 0

    def prepared(done: int, total: int) -> None:
        nonlocal before
        before = total
        progress(done, total + ahead + method.n_evaluations)

    def measured(done: int, _: int) -> None:
        progress(before + done, before + ahead + method.n_evaluations)

    prepare_merge(store, run.merge_id, evaluator, cancel=cancel, progress=prepared)
    if len(references):
        measure(store, study, evaluator, reference_id, references, run_id=run.id, cancel=cancel, progress=measured)
    before, ahead = before + ahead, 0
    while batch is not None:
        values = measure(
            store,
            study,
            evaluator,
            run.merge_id,
            batch.X,
            objectives=[keys[k] for k in batch.objectives],
            images=run.config.images,
            run_id=run.id,
            cancel=cancel,
            progress=measured,
        )
        before, ahead = before + values.size, ahead - values.size
        method.tell(batch, values)
        batch = method.ask()


def last_compute(store: Store, study_id: int, merge: Merge | None = None) -> Compute:
    """Return what the study's latest finished run computed with, or the default before any.

    A ``merge`` that changes task vectors takes them in float32.
    """
    done = [run for run in store.runs.all(study_id) if run.status == "done"]
    compute = done[-1].config.compute if done else Compute()
    return replace(compute, vectors="float32") if merge and merge.needs.whole_models else compute


def explain(error: Exception) -> str:
    """Return one sentence for a person, whatever went wrong."""
    if isinstance(error, MapMergeError):
        return str(error)
    return f"Unexpected error: {type(error).__name__}: {' '.join(str(error).split())}"
