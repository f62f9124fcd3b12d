"""Work in the background: one thread per device, a queue, progress with a time left, stop and resume.

Workers write to the store and to their job alone; whoever shows a job reads frozen snapshots of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.errors import Cancelled, MapMergeError, StudyError
from mapmerge_core.studies.analysis.references import shares_of
from mapmerge_core.studies.analysis.replay import run_result
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.jobs.job import Job, JobKind, JobSnapshot, JobStatus
from mapmerge_core.studies.runs.completing import complete
from mapmerge_core.studies.runs.estimating import Estimate, estimate
from mapmerge_core.studies.runs.exporting import export_pick, export_point
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.preparing import prepare_merge
from mapmerge_core.studies.runs.refining import refine
from mapmerge_core.studies.runs.runner import execute_run, explain, last_compute
from mapmerge_core.studies.runs.unlabelled import UnlabelledChoice, choose_unlabelled

if TYPE_CHECKING:
    from filelock import FileLock

    from mapmerge_core.studies.analysis.analysis import RuleChoice
    from mapmerge_core.studies.config import Compute, RunConfig
    from mapmerge_core.studies.store import Run, Split, Store
    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.export.writing import ExportResult

__all__ = ["JobSnapshot", "Jobs"]

# Work without a device reads and writes files only, and needn't wait for one.
_FILES = "files"
_KEPT_JOBS = 200

_log = logging.getLogger(__name__)


class Jobs:
    """All background work of one process; make one and share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._queues: dict[str, SimpleQueue[Job | None]] = {}
        self._threads: list[threading.Thread] = []
        self._device_locks: dict[str, threading.Lock] = {}
        self._evaluators = EvaluatorCache()
        self._closed = False

    def submit(
        self,
        kind: JobKind,
        study_id: int,
        title: str,
        work: Callable[[Job], Any],
        *,
        device: str | None = None,
        run_id: int | None = None,
        claim: FileLock | None = None,
    ) -> int:
        """Queue work and return the job's id.

        Args:
            kind: What kind of work it is.
            study_id: The study that it is for.
            title: What it does, in a few words.
            work: Is called with the job in another thread: it should report to `Job.count` and stop with
                `Cancelled` once ``Job.cancel`` is set. What it returns is the job's result.
            device: The device that it needs, one of whose jobs run at a time; None for work on files.
            run_id: The run that it executes.
            claim: That run's claim, which is released at the end.

        Raises:
            StudyError: The process is shutting down.
        """
        worker = device or _FILES
        with self._lock:
            if self._closed:
                if claim:
                    claim.release()
                raise StudyError("mapmerge is shutting down: start it again first.")
            job = Job(JobSnapshot(next(self._ids), kind, study_id, run_id, title), work, self._lock, claim)
            self._jobs[job.state.id] = job
            for old in [old.state for old in self._jobs.values() if not old.state.is_live][:-_KEPT_JOBS]:
                del self._jobs[old.id]
            if worker not in self._queues:
                self._queues[worker] = SimpleQueue()
                thread = threading.Thread(target=self._serve, args=(worker,), name=f"mapmerge-{worker}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._queues[worker].put(job)
            return job.state.id

    def start_run(self, run_id: int) -> int:
        """Start a queued run, or resume a stopped, interrupted or failed one; the result is the ``Run``.

        Raises:
            StudyError: There is no such run, it is done, or somebody is running it.
        """
        claim = self._store.runs.claim(run_id)
        run = self._store.runs.get(run_id)

        def work(job: Job) -> Run:
            get = self._evaluators.get
            ended = execute_run(self._store, run_id, get, cancel=job.cancel, progress=job.count)
            if ended.status == "done":
                with suppress(MapMergeError):  # the run is done, though its points may be too few for a front
                    run_result(self._store, run_id)  # it may take seconds, which a page shouldn't wait for
            return ended

        return self.submit(
            "run", run.study_id, run.config.label, work, device=run.config.compute.device, run_id=run_id, claim=claim
        )

    def prepare(self, merge_id: int, compute: Compute | None = None) -> int:
        """Prepare a merge.

        Raises:
            StudyError: There is no such merge.
        """
        stored = self._store.merges.get(merge_id)

        def work(evaluator: Evaluator, **how: Any) -> None:  # noqa: ANN401
            prepare_merge(self._store, merge_id, evaluator, **how)

        merge = stored.make()
        compute = compute or last_compute(self._store, stored.study_id, merge)
        return self._on_device("prepare", stored.study_id, f"Prepare {merge.title}", work, compute)

    def measure(self, merge_id: int, X: np.ndarray, split: Split, title: str, compute: Compute | None = None) -> int:
        """Measure every objective at the rows of ``X``; the result is an ``m x K`` array of values.

        Raises:
            StudyError: There is no such merge.
        """
        stored, rows = self._store.merges.get(merge_id), np.array(X, dtype=np.float64)
        study = self._store.studies.get(stored.study_id)
        compute = compute or last_compute(self._store, study.id, stored.make())

        def work(evaluator: Evaluator, **how: Any) -> np.ndarray:  # noqa: ANN401
            return measure(self._store, study, evaluator, merge_id, rows, split=split, **how)

        return self._on_device("measure", study.id, title, work, compute)

    def estimate(self, study_id: int, run: RunConfig) -> int:
        """Time what a run would do; the result is an ``Estimate``.

        Raises:
            StudyError: There is no such study.
        """
        study = self._store.studies.get(study_id)

        def work(evaluator: Evaluator, **how: Any) -> Estimate:  # noqa: ANN401
            return estimate(self._store, study, evaluator, run, **how)

        return self._on_device("estimate", study_id, "Time an evaluation", work, run.compute)

    def complete(
        self,
        study_id: int,
        *,
        merges: bool | Collection[str] = True,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        compute: Compute | None = None,
    ) -> int:
        """Make and measure what a study's comparison lacks, see `completing.complete`.

        Raises:
            StudyError: There is no such study or objective.
            SearchError: The weights can't be used.
        """
        shares_of(weights, self._store.studies.get(study_id).config.objectives)
        given: dict[str, Any] = {"merges": merges, "weights": weights, "seed": seed, "compute": compute}

        def work(job: Job) -> None:
            get = self._evaluators.get
            complete(self._store, study_id, get, **given, cancel=job.cancel, progress=job.count)

        title = "Make baselines and measure" if merges else "Measure"
        device = (compute or last_compute(self._store, study_id)).device
        return self.submit("complete", study_id, title, work, device=device)

    def refine(self, merge_id: int, rule: str, compute: Compute | None = None) -> int:
        """Measure where a rule is met best, see `refining.refine`; the result is a ``RuleChoice``.

        Raises:
            StudyError: There is no such merge.
        """
        stored = self._store.merges.get(merge_id)
        compute = compute or last_compute(self._store, stored.study_id, stored.make())

        def work(evaluator: Evaluator, **how: Any) -> RuleChoice:  # noqa: ANN401
            return refine(self._store, merge_id, evaluator, rule, **how)

        return self._on_device("refine", stored.study_id, "Measure near the rule", work, compute)

    def choose_unlabelled(
        self, study_id: int, source: DataSource, merge_id: int | None = None, compute: Compute | None = None
    ) -> int:
        """Choose a model for unlabelled data; the result is an ``UnlabelledChoice``.

        Raises:
            StudyError: There is no such study.
        """

        def work(evaluator: Evaluator, **how: Any) -> UnlabelledChoice:  # noqa: ANN401
            return choose_unlabelled(self._store, study_id, source, evaluator, merge_id=merge_id, **how)

        return self._on_device("choose", study_id, "Look at the unlabelled data", work, compute)

    def export(
        self,
        pick_id: int | None = None,
        *,
        merge_id: int = 0,
        x: np.ndarray | None = None,
        path: Path | str | None = None,
    ) -> int:
        """Write the model of a pick, or of a merge at a point; the result is an ``ExportResult``.

        Raises:
            StudyError: There is no such pick or merge.
        """
        if pick_id is not None:
            study_id = self._store.picks.get(pick_id).study_id
        else:
            study_id = self._store.merges.get(merge_id).study_id

        def work(_: Job) -> ExportResult:
            if pick_id is not None:
                return export_pick(self._store, pick_id, path)
            return export_point(self._store, merge_id, x, path)

        return self.submit("export", study_id, "Export the merged model", work)

    def stop(self, job_id: int) -> None:
        """Stop a job: at once while it waits, after the evaluation in flight while it runs.

        Raises:
            StudyError: There is no such job.
        """
        with self._lock:
            job = self._find(job_id)
            job.cancel.set()
            if job.state.status == "queued":
                self._end(job, "stopped")

    def snapshot(self, job_id: int) -> JobSnapshot:
        """Return a job's state.

        Raises:
            StudyError: There is no such job.
        """
        with self._lock:
            return self._find(job_id).snapshot()

    def for_study(self, study_id: int) -> list[JobSnapshot]:
        """Return a study's jobs since this process started, latest first."""
        with self._lock:
            return [job.snapshot() for job in reversed(self._jobs.values()) if job.state.study_id == study_id]

    def wait(self, job_id: int, timeout: float | None = None) -> JobSnapshot:
        """Block until a job has ended or ``timeout`` seconds have passed, and return its state."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (now := self.snapshot(job_id)).is_live and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.02)
        return now

    def close(self, timeout: float = 10.0) -> None:
        """Stop everything and wait up to ``timeout`` seconds for evaluations in flight.

        A run whose evaluation takes longer is found interrupted by ``Store.runs.recover`` later.
        """
        with self._lock:
            self._closed = True
            for job_id, job in self._jobs.items():
                if job.state.is_live:
                    self.stop(job_id)
            for queue in self._queues.values():
                queue.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _on_device(
        self, kind: JobKind, study_id: int, title: str, work: Callable[..., Any], compute: Compute | None
    ) -> int:
        """Queue work with the study's evaluator; by default computed as in its latest run."""
        study, chosen = self._store.studies.get(study_id), compute or last_compute(self._store, study_id)

        def whole(job: Job) -> Any:  # noqa: ANN401
            return work(self._evaluators.get(study, chosen), cancel=job.cancel, progress=job.count)

        return self.submit(kind, study_id, title, whole, device=chosen.device)

    def _serve(self, worker: str) -> None:
        queue = self._queues[worker]
        while (job := queue.get()) is not None:
            try:
                self._execute(job, worker)
            except Exception:  # noqa: BLE001 - the thread must live on for the jobs that wait
                _log.exception("Job %d (%s) broke its worker", job.state.id, job.state.title)

    def _execute(self, job: Job, worker: str) -> None:
        try:
            with ExitStack() as held:
                for lock in self._device_locks_of(worker):
                    held.enter_context(lock)
                with self._lock:
                    if job.state.status != "queued":
                        return
                    job.start()
                result = job.work(job)
        except Cancelled:
            self._end(job, "stopped")
        except Exception as error:  # noqa: BLE001 - whatever it is, the person must see that the job failed
            if not isinstance(error, MapMergeError):
                _log.exception("Job %d (%s) failed", job.state.id, job.state.title)
            self._evaluators.clear()
            self._end(job, "failed", error=explain(error))
        else:
            stopped = job.state.kind == "run" and result.status == "stopped"
            self._end(job, "stopped" if stopped else "done", result=result)

    def _end(self, job: Job, status: JobStatus, *, error: str | None = None, result: object = None) -> None:
        with self._lock:
            run_id = job.state.run_id
            if run_id is not None and job.state.status == "queued":
                # `execute_run` records how a run ended; this one never reached it.
                self._store.runs.set_status(run_id, "failed" if error else "stopped", error)
            if job.claim:
                job.claim.release()
            job.end(status, error, result)

    def _find(self, job_id: int) -> Job:
        if job_id not in self._jobs:
            raise StudyError(f"There is no job {job_id}: it ended long ago, or before mapmerge was restarted.")
        return self._jobs[job_id]

    def _device_locks_of(self, worker: str) -> list[threading.Lock]:
        """Return the locks of all of a worker's devices, in an order that is the same for all workers."""
        # "auto" may be the same device as "cuda" or "cpu", and two jobs on one would only slow each other.
        names = [worker]
        if worker != _FILES:
            from mapmerge_core.tasks.devices import choose_devices, name_of

            names = sorted(name_of(device) for device in choose_devices(worker))
        with self._lock:
            return [self._device_locks.setdefault(name, threading.Lock()) for name in names]
