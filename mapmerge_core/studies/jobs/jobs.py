"""Work in the background: one thread per device, a queue, progress with a time left, stop and resume.

Workers write to the store and to their job alone; whoever shows a job reads frozen snapshots of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.errors import Cancelled, MapMergeError, StudyError
from mapmerge_core.studies.runs.completing import complete
from mapmerge_core.studies.analysis.entries import shares_of
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.exporting import export_baseline, export_learned_pick, export_pick
from mapmerge_core.studies.analysis.findings import finding_of
from mapmerge_core.studies.jobs.job import LIVE, Job, JobKind, JobSnapshot, JobStatus
from mapmerge_core.studies.analysis.learned import learned_set, run_title
from mapmerge_core.studies.runs.learning import measure_learned, refine_by_rule
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.runner import Estimate, estimate, execute_run, explain, last_settings
from mapmerge_core.studies.config.run import check_seed
from mapmerge_core.studies.runs.unlabelled import choose_unlabelled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from filelock import FileLock

    from mapmerge_core.merges._training_settings import Training
    from mapmerge_core.studies.analysis.learned import LearnedRule
    from mapmerge_core.studies.store.rows import RunRow, Split
    from mapmerge_core.studies.config.run import VectorsDtype
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.studies.runs.unlabelled import UnlabelledChoice
    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.evaluator import Evaluator

__all__ = ["JobSnapshot", "Jobs"]

# Exporting reads and writes files only, so it needn't wait for a device.
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
        self._evaluators: dict[str, EvaluatorCache] = {}
        self._closed = False

    def start_run(self, run_id: int) -> int:
        """Starts a queued run, or resumes a stopped, interrupted or failed one.

        Returns:
            The job's id.

        Raises:
            StudyError: where there is no such run, it is done, or somebody is running it.
        """
        claim = self._store.claim_run(run_id)
        run = self._store.run(run_id)
        device = run.settings.device

        def work(job: Job) -> Any:  # noqa: ANN401
            get = self._cache(device).get
            done = execute_run(self._store, run_id, get, cancel=job.cancel, progress=self._counter(job))
            if done.method == "nested":
                finding_of(self._store, done)  # its tree takes seconds, which a page shouldn't wait for
            return done

        return self._add("run", run.study_id, run_title(run), work, device, run_id, claim)

    def measure(self, study_id: int, C: np.ndarray, split: Split, title: str) -> int:
        """Measures every task at the rows of ``C`` (``m x N``) and stores what isn't known yet.

        Task vectors are held as in the study's latest search.

        Returns:
            The job's id; its result is the values (``m x K``).
        """
        study, last = self._store.study(study_id), last_settings(self._store, study_id)
        rows = np.array(C, dtype=np.float64)

        def work(job: Job) -> np.ndarray:
            evaluator = self._cache("auto").get(study, "auto", last.precision, last.vectors)
            return measure(
                self._store,
                study,
                evaluator,
                rows,
                split=split,
                cancel=job.cancel,
                progress=self._counter(job),
            )

        return self._add("measure", study_id, title, work, "auto")

    def estimate(
        self,
        study_id: int,
        device: str = "auto",
        precision: str = "auto",
        vectors: VectorsDtype = "float32",
        training: Training | None = None,
    ) -> int:
        """Times real evaluations, which count as the study's, and steps of a ``training``.

        Its result is an ``Estimate``.

        Returns:
            The job's id.
        """
        study = self._store.study(study_id)

        def work(job: Job) -> Estimate:
            evaluator = self._cache(device).get(study, device, precision, vectors)
            return estimate(
                self._store,
                study,
                evaluator,
                training=training,
                cancel=job.cancel,
                progress=self._counter(job),
            )

        return self._add("estimate", study_id, "Time an evaluation", work, device)

    def compare(
        self,
        study_id: int,
        *,
        baselines: bool = True,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
    ) -> int:
        """Measures on the test split what a study's comparison lacks, and makes missing baselines if wanted.

        Args:
            study_id: The study.
            baselines: Whether to make the missing baselines.
            weights: The shown preference by task, see ``comparing.compare``.
            seed: Seed of the sampled preferences.
            device: Where to.
            precision: Of evaluations on the validation split.

        Returns:
            The job's id; it has no result, ``comparing.compare`` shows what came of it.

        Raises:
            StudyError: where there is no such study, and for a task that it doesn't have.
            SearchError: for weights and seeds that can't be used.
        """
        check_seed(seed)
        shares_of(weights, self._store.study(study_id).spec.task_names)

        def work(job: Job) -> None:
            cache = self._cache(device)
            complete(
                self._store,
                study_id,
                lambda study: cache.get(study, device, precision),
                baselines=baselines,
                weights=weights,
                seed=seed,
                cancel=job.cancel,
                progress=self._counter(job),
            )

        title = "Make baselines and measure" if baselines else "Measure"
        return self._add("compare", study_id, title, work, device)

    def measure_learned(self, run_id: int, gammas: np.ndarray, split: Split, title: str) -> int:
        """Measures a learned set's models for the preferences ``gammas`` (``m x K``) on every task.

        Returns:
            The job's id; its result is the values (``m x K``).

        Raises:
            StudyError: where there is no such run.
        """
        run = self._store.run(run_id)
        rows = np.array(gammas, dtype=np.float64)

        def work(job: Job) -> np.ndarray:
            return measure_learned(
                self._store,
                run_id,
                self._evaluator_of(run),
                rows,
                split=split,
                cancel=job.cancel,
                progress=self._counter(job),
            )

        return self._add("measure", run.study_id, title, work, run.settings.device)

    def refine(self, run_id: int, rule: str) -> int:
        """Looks for a preference that meets a rule better, by measuring; its result is a ``LearnedRule``.

        Returns:
            The job's id.

        Raises:
            StudyError: where there is no such run, or it isn't done.
            RuleError: where it is no rule over the study's tasks.
        """
        run = self._store.run(run_id)
        learned_set(self._store, run_id).by_rule(rule)

        def work(job: Job) -> LearnedRule:
            evaluator = self._evaluator_of(run)
            return refine_by_rule(
                self._store, run_id, evaluator, rule, cancel=job.cancel, progress=self._counter(job)
            )

        return self._add("refine", run.study_id, "Measure near the rule", work, run.settings.device)

    def choose_unlabelled(
        self, study_id: int, source: DataSource, run_id: int | None = None, device: str = "auto"
    ) -> int:
        """Chooses a model for unlabelled data; its result is an ``UnlabelledChoice``.

        Args:
            study_id: The study.
            source: The data; labels are never read.
            run_id: The run whose learned set to choose from; None for the study's front.
            device: Where to.

        Returns:
            The job's id.

        Raises:
            StudyError: where there is no such study.
        """
        study = self._store.study(study_id)

        def work(job: Job) -> UnlabelledChoice:
            evaluator = self._cache(device).get(study, device, "auto")
            return choose_unlabelled(
                self._store,
                study_id,
                source,
                evaluator,
                run_id=run_id,
                cancel=job.cancel,
                progress=self._counter(job),
            )

        return self._add("choose", study_id, "Look at the unlabelled data", work, device)

    def export_learned(self, pick_id: int) -> int:
        """Writes the model of a learned set's pick; its result is an ``ExportResult``.

        Returns:
            The job's id.

        Raises:
            StudyError: where there is no such pick.
        """
        pick = self._store.learned_pick(pick_id)

        title = "Export the merged model"
        return self._add(
            "export", pick.study_id, title, lambda _: export_learned_pick(self._store, pick_id), _FILES
        )

    def export(self, pick_id: int) -> int:
        """Writes a pick's merged model; its result is an ``ExportResult``.

        Returns:
            The job's id.

        Raises:
            StudyError: where there is no such pick.
        """
        pick = self._store.pick(pick_id)

        title = "Export the merged model"
        return self._add("export", pick.study_id, title, lambda _: export_pick(self._store, pick_id), _FILES)

    def export_baseline(self, baseline_id: int) -> int:
        """Writes a baseline's model; its result is an ``ExportResult``.

        Returns:
            The job's id.

        Raises:
            StudyError: where there is no such baseline.
        """
        baseline = self._store.baseline(baseline_id)

        title = "Export the baseline's model"
        return self._add(
            "export", baseline.study_id, title, lambda _: export_baseline(self._store, baseline_id), _FILES
        )

    def stop(self, job_id: int) -> None:
        """Stops a job: at once while it waits, after the evaluation in flight while it runs.

        Raises:
            StudyError: where there is no such job.
        """
        with self._lock:
            job = self._find(job_id)
            job.cancel.set()
            if job.status == "queued":
                self._end(job, "stopped")

    def snapshot(self, job_id: int) -> JobSnapshot:
        """How a job stands.

        Raises:
            StudyError: where there is no such job.
        """
        with self._lock:
            return self._find(job_id).snapshot()

    def for_study(self, study_id: int) -> list[JobSnapshot]:
        """A study's jobs since this process started, latest first."""
        with self._lock:
            return [job.snapshot() for job in reversed(self._jobs.values()) if job.study_id == study_id]

    def wait(self, job_id: int, timeout: float | None = None) -> JobSnapshot:
        """Blocks until a job has ended or ``timeout`` seconds have passed, and returns how it stands."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (now := self.snapshot(job_id)).is_live and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.02)
        return now

    def close(self, timeout: float = 10.0) -> None:
        """Stops everything and waits up to ``timeout`` seconds for evaluations in flight.

        A run whose evaluation takes longer is found interrupted by ``Store.recover`` later.
        """
        with self._lock:
            self._closed = True
            for job_id, job in self._jobs.items():
                if job.status in LIVE:
                    self.stop(job_id)
            for queue in self._queues.values():
                queue.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _add(
        self,
        kind: JobKind,
        study_id: int,
        title: str,
        work: Callable[[Job], Any],
        worker: str,
        run_id: int | None = None,
        claim: FileLock | None = None,
    ) -> int:
        with self._lock:
            if self._closed:
                if claim:
                    claim.release()
                raise StudyError("mapmerge is shutting down: start it again first.")
            job = Job(next(self._ids), kind, study_id, title, work, run_id, claim)
            self._jobs[job.id] = job
            for old in [old for old in self._jobs.values() if old.status not in LIVE][:-_KEPT_JOBS]:
                del self._jobs[old.id]
            if worker not in self._queues:
                self._queues[worker] = SimpleQueue()
                thread = threading.Thread(
                    target=self._serve, args=(worker,), name=f"mapmerge-{worker}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            self._queues[worker].put(job)
            return job.id

    def _serve(self, worker: str) -> None:
        queue = self._queues[worker]
        while (job := queue.get()) is not None:
            try:
                self._execute(job, worker)
            except Exception:  # noqa: BLE001 - the thread must live on for the jobs that wait
                _log.exception("Job %d (%s) broke its worker", job.id, job.title)

    def _execute(self, job: Job, worker: str) -> None:
        try:
            with ExitStack() as held:
                for lock in self._device_locks_of(worker):
                    held.enter_context(lock)
                with self._lock:
                    if job.status != "queued":
                        return
                    job.status, job.started = "running", time.monotonic()
                result = job.work(job)
        except Cancelled:
            self._end(job, "stopped")
        except Exception as error:  # noqa: BLE001 - whatever it is, the person must see that the job failed
            if not isinstance(error, MapMergeError):
                _log.exception("Job %d (%s) failed", job.id, job.title)
            self._cache(worker).clear()
            self._end(job, "failed", error=explain(error))
        else:
            stopped = job.kind == "run" and result.status == "stopped"
            self._end(job, "stopped" if stopped else "done", result=result)

    def _end(self, job: Job, status: JobStatus, *, error: str | None = None, result: object = None) -> None:
        with self._lock:
            if job.run_id is not None and job.started is None:
                # The runner records how a run ended; this one never reached it.
                self._store.set_status(job.run_id, "failed" if error else "stopped", error)
            if job.claim:
                job.claim.release()
            job.ended = time.monotonic()
            job.error, job.result = error, result
            job.status = status

    def _counter(self, job: Job) -> Callable[[int, int], None]:
        def count(done: int, total: int) -> None:
            with self._lock:
                job.count(done, total)

        return count

    def _find(self, job_id: int) -> Job:
        if job_id not in self._jobs:
            raise StudyError(
                f"There is no job {job_id}: it ended long ago, or before mapmerge was restarted."
            )
        return self._jobs[job_id]

    def _evaluator_of(self, run: RunRow) -> Evaluator:
        """The evaluator that a run used."""
        device, precision = run.settings.device, run.settings.precision
        return self._cache(device).get(self._store.study(run.study_id), device, precision)

    def _cache(self, device: str) -> EvaluatorCache:
        with self._lock:
            return self._evaluators.setdefault(device, EvaluatorCache())

    def _device_locks_of(self, worker: str) -> list[threading.Lock]:
        """The locks of all of a worker's devices, in an order that is the same for all workers."""
        # "auto" may be the same device as "cuda" or "cpu", and two jobs on one would only slow each other.
        names = [worker]
        if worker != _FILES:
            from mapmerge_core.tasks.evaluator import choose_devices, name_of

            names = sorted(name_of(device) for device in choose_devices(worker))
        with self._lock:
            return [self._device_locks.setdefault(name, threading.Lock()) for name in names]
