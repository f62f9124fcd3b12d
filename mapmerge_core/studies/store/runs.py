"""The store's runs: what each was asked to do, how it stands, and which process may go on with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from sqlalchemy import Row, func, insert, select, update

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config.run import Compute, RunConfig
from mapmerge_core.studies.store.database import Database, as_id
from mapmerge_core.studies.store.rows import ACTIVE, Run, RunStatus
from mapmerge_core.studies.store.tables import evaluations, runs

if TYPE_CHECKING:
    from mapmerge_core.studies.store.merges import Merges

_CLAIM_SECONDS = 0.3


class Runs:
    """The runs of studies: one method on one merge, with a budget and a seed."""

    def __init__(self, database: Database, merges: Merges) -> None:
        self._database, self._merges = database, merges

    def create(self, study_id: int, config: RunConfig) -> Run:
        """Keep a new run; it waits as "queued" until a worker claims it.

        Raises:
            StudyError: There is no such study, or the merge can't serve it.
            SearchError: Its settings can't be sampled or fitted.
            RuleError: Its rule isn't one over the study's objectives.
        """
        config.check(self._merges.config(study_id))
        merge = self._merges.add(study_id, config.merge, config.merge_settings)
        values = {
            "study_id": study_id,
            "merge_id": merge.id,
            "config": config.to_dict(),
            "status": "queued",
            "created": datetime.now(UTC),
        }
        with self._database.write() as connection:
            run_id = connection.scalar(insert(runs).returning(runs.c.id), values)
        return self.get(run_id or 0)

    def all(self, study_id: int) -> list[Run]:
        """Return a study's runs, oldest first."""
        return self._select(runs.c.study_id == as_id(study_id))

    def get(self, run_id: int) -> Run:
        """Return one run.

        Raises:
            StudyError: There is none with this id.
        """
        if not (rows := self._select(runs.c.id == as_id(run_id))):
            raise StudyError(f"There is no run {run_id}: it may have been deleted.")
        return rows[0]

    def find_same(self, study_id: int, config: RunConfig) -> Run | None:
        """Return the study's latest run that was asked to do the same, wherever it was computed, if any."""
        same = (run for run in reversed(self.all(study_id)) if run.config.is_same_as(config))
        return next(same, None)

    def set_status(self, run_id: int, status: RunStatus, error: str | None = None) -> None:
        """Record that a run started or ended, when, and why it failed."""
        changes: dict[str, Any] = {"status": status, "error": error}
        if status == "running":
            changes |= {"started": func.coalesce(runs.c.started, datetime.now(UTC)), "finished": None}
        elif status not in ACTIVE:
            changes["finished"] = datetime.now(UTC)
        self._update(run_id, changes)

    def set_compute(self, run_id: int, compute: Compute) -> None:
        """Have a run that the caller has claimed go on on another device, or in another precision."""
        self._update(run_id, {"config": replace(self.get(run_id).config, compute=compute).to_dict()})

    def claim(self, run_id: int) -> FileLock:
        """Take a run for this process and mark it queued; whoever holds the lock alone may execute it.

        The operating system releases the lock when the process ends, however it ends.

        Raises:
            StudyError: The run is done, or somebody is executing it.
        """
        self.get(run_id)
        lock = self._lock(run_id)
        try:
            # Not at once: somebody may hold it for a moment to see whether the run goes on.
            lock.acquire(timeout=_CLAIM_SECONDS, poll_interval=_CLAIM_SECONDS / 10)
        except Timeout:
            raise StudyError(f"Run {run_id} is already going on: watch it, or stop it first.") from None
        if self.get(run_id).status == "done":
            lock.release()
            raise StudyError(f"Run {run_id} is done: start a new run to evaluate more points.")
        self.set_status(run_id, "queued")
        return lock

    def is_claimed(self, run_id: int) -> bool:
        """Return whether some process holds the run, waiting or running."""
        try:
            with self._lock(run_id):
                return False
        except Timeout:
            return True

    def recover(self) -> list[Run]:
        """Mark runs that a dead process left behind as interrupted and return them.

        Call it when a process starts.
        """
        recovered = []
        for run in self._select(runs.c.status.in_(ACTIVE)):
            lock = self._lock(run.id)
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                # It may have ended between the query and the lock.
                if self.get(run.id).status in ACTIVE:
                    self.set_status(run.id, "interrupted")
                    recovered.append(self.get(run.id))
            finally:
                lock.release()
        return recovered

    def _lock(self, run_id: int) -> FileLock:
        path = self._database.path
        folder = path.parent / "locks"
        folder.mkdir(exist_ok=True)
        # Claimed in one thread and released in another, so it can't be local to a thread.
        return FileLock(folder / f"{path.name}-run-{run_id}.lock", timeout=0, thread_local=False)

    def _update(self, run_id: int, changes: dict[str, Any]) -> None:
        with self._database.write() as connection:
            connection.execute(update(runs).where(runs.c.id == run_id).values(**changes))

    def _select(self, condition: Any) -> list[Run]:  # noqa: ANN401 - an SQL expression
        own = (evaluations.c.run_id == runs.c.id) & (evaluations.c.split == "val")
        query = select(
            runs,
            select(func.count()).where(own).scalar_subquery().label("n_evaluations"),
            select(func.coalesce(func.sum(evaluations.c.seconds), 0.0)).where(own).scalar_subquery().label("seconds"),
        )
        with self._database.read() as connection:
            return [_run(row) for row in connection.execute(query.where(condition).order_by(runs.c.id))]


def _run(row: Row[Any]) -> Run:
    return Run(**row._asdict() | {"config": RunConfig.from_dict(row.config)})
