"""The store's runs: what each was asked to do, how it stands, and which process may run it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from sqlalchemy import func, select, update

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.store.database import Database
from mapmerge_core.studies.store.queries import as_id, run_row, select_runs
from mapmerge_core.studies.config.study import StudySpec
from mapmerge_core.studies.store.tables import Run, Study

if TYPE_CHECKING:
    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.studies.store.rows import RunRow, RunStatus
    from mapmerge_core.studies.config.run import RunSettings

_CLAIM_SECONDS = 0.3
ACTIVE: tuple[RunStatus, ...] = ("queued", "running")


class RunStore(Database):
    """The part of the store that keeps runs; use it through ``Store``."""

    def create_run(self, study_id: int, settings: RunSettings, method: MethodName = "map") -> RunRow:
        """Keeps a new run; it waits as "queued" until a worker claims it.

        Raises:
            StudyError: where there is no such study.
            SearchError: for settings that can't be sampled or fitted.
            RuleError: for a rule that isn't one over the study's tasks.
        """
        with self._write() as session:
            study = session.get(Study, as_id(study_id))
            if study is None:
                raise StudyError(f"There is no study {study_id}: it may have been deleted.")
            settings.check(method, StudySpec.from_dict(study.spec))
            run = Run(
                study_id=study_id,
                method=method,
                settings=settings.to_dict(),
                status="queued",
                error=None,
                created=datetime.now(UTC),
            )
            session.add(run)
            session.flush()
            run_id = run.id
        return self.run(run_id)

    def runs(self, study_id: int) -> list[RunRow]:
        """A study's runs, oldest first."""
        with self._read() as session:
            query = select_runs().where(Run.study_id == study_id).order_by(Run.id)
            return [run_row(*values) for values in session.execute(query)]

    def run(self, run_id: int) -> RunRow:
        """One run.

        Raises:
            StudyError: where there is none with this id.
        """
        with self._read() as session:
            values = session.execute(select_runs().where(Run.id == as_id(run_id))).one_or_none()
        if values is None:
            raise StudyError(f"There is no run {run_id}: it may have been deleted.")
        return run_row(*values)

    def set_status(self, run_id: int, status: RunStatus, error: str | None = None) -> None:
        """Records that a run started or ended, when, and why it failed."""
        changes: dict[str, Any] = {"status": status, "error": error}
        if status == "running":
            changes |= {"started": func.coalesce(Run.started, datetime.now(UTC)), "finished": None}
        elif status not in ACTIVE:
            changes["finished"] = datetime.now(UTC)
        with self._write() as session:
            session.execute(update(Run).where(Run.id == run_id).values(**changes))

    def claim_run(self, run_id: int) -> FileLock:
        """Takes a run for this process's worker and marks it queued; whoever holds the lock alone may run it.

        The operating system releases the lock when the process ends, however it ends.

        Raises:
            StudyError: where the run is done, or somebody is running it.
        """
        self.run(run_id)
        lock = self._lock(run_id)
        try:
            # Not at once: somebody may hold it for a moment to see whether the run goes on.
            lock.acquire(timeout=_CLAIM_SECONDS, poll_interval=_CLAIM_SECONDS / 10)
        except Timeout:
            raise StudyError(f"Run {run_id} is already going on: watch it, or stop it first.") from None
        if self.run(run_id).status == "done":
            lock.release()
            raise StudyError(f"Run {run_id} is done: start a new run to evaluate more points.")
        self.set_status(run_id, "queued")
        return lock

    def set_device(self, run_id: int, device: str) -> None:
        """Has a run that the caller has claimed go on on another device."""
        settings = replace(self.run(run_id).settings, device=device)
        with self._write() as session:
            session.execute(update(Run).where(Run.id == run_id).values(settings=settings.to_dict()))

    def recover(self) -> list[RunRow]:
        """Marks runs that a dead process left behind as interrupted and returns them.

        Call it when a process starts.
        """
        with self._read() as session:
            left = list(session.scalars(select(Run.id).where(Run.status.in_(ACTIVE))))
        recovered = []
        for run_id in left:
            lock = self._lock(run_id)
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                # It may have ended between the query and the lock.
                if self.run(run_id).status in ACTIVE:
                    self.set_status(run_id, "interrupted")
                    recovered.append(self.run(run_id))
            finally:
                lock.release()
        return recovered

    def is_claimed(self, run_id: int) -> bool:
        """Whether some process's worker holds the run, waiting or running."""
        try:
            with self._lock(run_id):
                return False
        except Timeout:
            return True

    def _lock(self, run_id: int) -> FileLock:
        folder = self.path.parent / "locks"
        folder.mkdir(exist_ok=True)
        # Claimed in one thread and released in another, so it can't be local to a thread.
        return FileLock(folder / f"{self.path.name}-run-{run_id}.lock", timeout=0, thread_local=False)
