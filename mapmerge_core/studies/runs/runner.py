"""Ask, evaluate what is missing, store each value at once, tell."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.methods.catalogue import SEARCHES
from mapmerge_core.studies.runs.learning import learn, seconds_per_step
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.config.run import MIN_IMAGES, RunSettings, has_parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from mapmerge_core.merges._training_settings import Training
    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.config.run import VectorsDtype
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator


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
        n_devices: How many devices measure a search's points at the same time.
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
        # What has been learned is measured on one device, as it is trained.
        return seconds + n_steps * self.seconds_per_step if n_steps else seconds / self.n_devices

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
    measure(store, study, evaluator, C, alone=True, cancel=cancel, progress=progress)
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
    """Those of the latest search that a study has done; the usual ones before any."""
    searches = [run for run in store.runs(study_id) if run.method in SEARCHES and run.status == "done"]
    return searches[-1].settings if searches else RunSettings(points=1)


def explain(error: Exception) -> str:
    """One sentence for a person, whatever went wrong."""
    if isinstance(error, MapMergeError):
        return str(error)
    return f"Unexpected error: {type(error).__name__}: {' '.join(str(error).split())}"
