"""Studies, runs, evaluations and picks in one SQLite file, shared by every page, thread and process.

Each evaluation is committed to disk the moment it is added, at most once for a (study, c, task, split); one
of a part of a validation split until more of it is measured.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from platformdirs import user_data_path
from sqlalchemy import bindparam, delete, func, or_, select, true, update
from sqlalchemy.dialects.sqlite import insert

from mapmerge_core.errors import PointError, StudyError
from mapmerge_core.studies.store.baseline_store import BaselineStore
from mapmerge_core.studies.store.learned_store import LearnedStore
from mapmerge_core.files import absolute
from mapmerge_core.studies.store.queries import (
    as_id,
    pick_row,
    select_studies,
    source_to_dict,
    study_row,
)
from mapmerge_core.studies.store.rows import (
    EvaluationRow,
    Measurements,
    PickRow,
    Split,
    StudyRow,
    SubsetEvaluationRow,
)
from mapmerge_core.studies.store.run_store import ACTIVE, RunStore
from mapmerge_core.studies.inputs.sources import read_sources
from mapmerge_core.studies.store.tables import Evaluation, Pick, Run, Study, SubsetEvaluation
from mapmerge_core.tasks.metric import unpack
from mapmerge_core.tasks.subsets import standard_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.tasks.metric import Outcome


def home() -> Path:
    """The data folder: $MAPMERGE_HOME, or the platform's place for user data."""
    folder = os.environ.get("MAPMERGE_HOME")
    return absolute(folder) if folder else user_data_path("mapmerge", appauthor=False)


class Store(RunStore, BaselineStore, LearnedStore):
    """Everything that is kept.

    Safe to share between threads; several processes can open the same file.

    Args:
        folder: Data folder, by default ``home()``; the database is ``mapmerge.db`` in it.
        url: SQLite URL of the database, where it should lie elsewhere; by default $MAPMERGE_DATABASE.

    Raises:
        StudyError: where the file can't be opened, or a newer mapmerge wrote it.
    """

    def __init__(self, folder: Path | str | None = None, *, url: str | None = None) -> None:
        if url is None and folder is None:
            url = os.environ.get("MAPMERGE_DATABASE")
        self.folder = absolute(folder) if folder is not None else home()
        super().__init__(url or self.folder / "mapmerge.db")
        self._tasks: dict[int, list[str]] = {}

    # Studies

    def create_study(self, name: str | None, spec: StudySpec) -> StudyRow:
        """Keeps a new study and the hashes of its files.

        Args:
            name: Its name, which gets a number if it is taken; None makes one from the tasks.
            spec: What it is made of.

        Raises:
            StudyError: where one of its files can't be read.
        """
        sources = read_sources(spec)
        wanted = " ".join((name or "").split()) or _name(spec)
        with self._write() as session:
            taken = set(session.scalars(select(Study.name)))
            number = 2
            free = wanted
            while free in taken:
                free = f"{wanted} ({number})"
                number += 1
            study = Study(
                name=free,
                spec=spec.to_dict(),
                sources=[source_to_dict(source) for source in sources],
                created=_now(),
            )
            session.add(study)
            session.flush()
            study_id = study.id
        return self.study(study_id)

    def studies(self) -> list[StudyRow]:
        """Every study, the one that changed last first."""
        with self._read() as session:
            rows = [study_row(*values) for values in session.execute(select_studies())]
        return sorted(rows, key=lambda row: (row.changed, row.id), reverse=True)

    def study(self, study_id: int) -> StudyRow:
        """One study.

        Raises:
            StudyError: where there is none with this id.
        """
        with self._read() as session:
            values = session.execute(select_studies().where(Study.id == as_id(study_id))).one_or_none()
        if values is None:
            raise StudyError(f"There is no study {study_id}: it may have been deleted.")
        return study_row(*values)

    def find_study(self, name_or_id: str) -> StudyRow:
        """The study with this name, else with this id.

        Raises:
            StudyError: where there is none.
        """
        with self._read() as session:
            found = session.scalar(select(Study.id).where(Study.name == name_or_id))
            if found is None and name_or_id.isdecimal() and len(name_or_id) < 20:
                found = session.scalar(select(Study.id).where(Study.id == as_id(int(name_or_id))))
        if found is None:
            raise StudyError(
                f"There is no study '{name_or_id}': the command `studies` lists those there are."
            )
        return self.study(found)

    def delete_study(self, study_id: int) -> None:
        """Deletes a study with its runs, evaluations, picks and baselines.

        Raises:
            StudyError: while one of its runs is going on.
        """
        study = self.study(study_id)
        for run in self.runs(study_id):
            if run.status in ACTIVE and self.is_claimed(run.id):
                raise StudyError(f"'{study.name}' has a run going on: stop it before deleting the study.")
        files = [self.baseline_file(baseline.id) for baseline in self.baselines(study_id)]
        for run in self.runs(study_id):
            files += [self.learned_file(run.id), self.training_file(run.id)]
        with self._write() as session:
            session.execute(delete(Study).where(Study.id == study_id))
        for file in files:
            file.unlink(missing_ok=True)

    # Evaluations

    def add_evaluation(
        self,
        study_id: int,
        c: np.ndarray,
        task: str,
        split: Split,
        outcome: Outcome,
        *,
        run_id: int | None = None,
    ) -> bool:
        """Commits a measurement; returns False and changes nothing where it was measured before.

        One of a part of the validation split takes the place of one of fewer examples, and one of the whole
        split that of any part.

        Raises:
            PointError: where ``c`` isn't N finite numbers.
            StudyError: for a split other than "val" and "test", and for a part of the test split.
        """
        c = self._check(study_id, c, task)
        if split not in get_args(Split):
            raise StudyError(f"The split '{split}' is unknown: use 'val' or 'test'.")
        if outcome.n_total is not None:
            if split == "test":
                raise StudyError(
                    "The test split is measured whole, so that models compare: measure the rest."
                )
            return self._add_part(study_id, c, task, outcome, outcome.n_total, run_id)
        values = {
            "study_id": study_id,
            "run_id": run_id,
            "c": c,
            "task": task,
            "split": split,
            "value": outcome.value,
            "n_examples": outcome.n_examples,
            "correct": outcome.per_example,
            "seconds": outcome.seconds,
            "created": _now(),
        }
        with self._write() as session:
            connection = session.connection()
            added = connection.scalar(_ADD_EVALUATION, values) is not None
            if added and split == "val":
                connection.execute(_DELETE_PART, {"of_study": study_id, "at": c, "of_task": task})
            return added

    def _add_part(
        self, study_id: int, c: np.ndarray, task: str, outcome: Outcome, n_total: int, run_id: int | None
    ) -> bool:
        """Commits a measurement of a part of the validation split, unless as much or more is known."""
        whole = select(Evaluation.id).where(
            Evaluation.study_id == study_id,
            Evaluation.c == c,
            Evaluation.task == task,
            Evaluation.split == "val",
        )
        more = select(SubsetEvaluation.id).where(
            SubsetEvaluation.study_id == study_id,
            SubsetEvaluation.c == c,
            SubsetEvaluation.task == task,
            SubsetEvaluation.n_examples >= outcome.n_examples,
        )
        with self._write() as session:
            if session.scalar(whole) is not None or session.scalar(more) is not None:
                return False
            # Not an update: a new id tells that something has changed (see `fingerprint`).
            session.execute(_DELETE_PART, {"of_study": study_id, "at": c, "of_task": task})
            session.add(
                SubsetEvaluation(
                    study_id=study_id,
                    run_id=run_id,
                    c=c,
                    task=task,
                    value=outcome.value,
                    n_examples=outcome.n_examples,
                    n_total=n_total,
                    per_example=outcome.per_example,
                    seconds=outcome.seconds,
                    created=_now(),
                )
            )
            return True

    def evaluations(self, study_id: int, split: Split = "val") -> list[EvaluationRow]:
        """A study's measurements on a whole split, in the order in which they were made."""
        columns = [getattr(Evaluation, name) for name in EvaluationRow.__dataclass_fields__]
        query = select(*columns).where(Evaluation.study_id == study_id, Evaluation.split == split)
        with self._read() as session:
            return [EvaluationRow(*values) for values in session.execute(query.order_by(Evaluation.id))]

    def subset_evaluations(self, study_id: int, c: np.ndarray | None = None) -> list[SubsetEvaluationRow]:
        """A study's measurements on parts of validation splits, in the order in which they were made.

        Args:
            study_id: The study.
            c: Coefficients (N,), for the measurements at these alone.

        Raises:
            PointError: where ``c`` isn't N finite numbers.
        """
        columns = [getattr(SubsetEvaluation, name) for name in SubsetEvaluationRow.__dataclass_fields__]
        query = select(*columns).where(SubsetEvaluation.study_id == study_id).order_by(SubsetEvaluation.id)
        if c is not None:
            query = query.where(SubsetEvaluation.c == self._check(study_id, c))
        with self._read() as session:
            return [SubsetEvaluationRow(*values) for values in session.execute(query)]

    def measured(self, study_id: int, c: np.ndarray, split: Split) -> dict[str, float]:
        """Values measured at one c on a whole split, by task.

        Raises:
            PointError: where ``c`` isn't N finite numbers.
        """
        c = self._check(study_id, c)
        query = select(Evaluation.task, Evaluation.value).where(
            Evaluation.study_id == study_id, Evaluation.c == c, Evaluation.split == split
        )
        with self._read() as session:
            return {row.task: row.value for row in session.execute(query)}

    def table(self, study_id: int, split: Split = "val") -> tuple[np.ndarray, np.ndarray]:
        """A study's measurements on a split as arrays, see ``measurements``.

        Returns:
            C (``n x N``) and Y (``n x K``), the values, NaN where a task hasn't been measured.
        """
        found = self.measurements(study_id, split)
        return found.C, found.Y

    def measurements(self, study_id: int, split: Split = "val") -> Measurements:
        """A study's measurements on a split as arrays, of the whole split or else of a part.

        Different coefficients are in the order in which they were measured, those with a value of a whole
        split before the others.
        """
        tasks = self.study(study_id).spec.task_names
        # Before those of whole splits, which take the place of parts: one of the two is found always.
        parts = self.subset_evaluations(study_id) if split == "val" else []
        columns = (Evaluation.c, Evaluation.task, Evaluation.value, Evaluation.n_examples)
        query = select(*columns).where(Evaluation.study_id == study_id, Evaluation.split == split)
        with self._read() as session:
            whole = session.execute(query.order_by(Evaluation.id)).all()
        every = np.array([c for c, *_ in whole] + [row.c for row in parts], dtype=np.float64)
        every = every.reshape(-1, len(tasks))
        _, first, inverse = np.unique(every, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rows = np.argsort(order)[inverse.reshape(-1)]
        shape = len(first), len(tasks)
        Y, S, n_examples = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
        is_whole = np.zeros(shape, dtype=bool)
        at = rows[len(whole) :], [tasks.index(row.task) for row in parts]
        Y[at] = [row.value for row in parts]
        S[at] = [standard_error(unpack(row.per_example, row.n_examples), row.n_total) for row in parts]
        n_examples[at] = [row.n_examples for row in parts]
        at = rows[: len(whole)], [tasks.index(task) for _, task, _, _ in whole]
        Y[at] = [value for *_, value, _ in whole]
        S[at] = 0.0
        n_examples[at] = [n for *_, n in whole]
        is_whole[at] = True
        return Measurements(every[first[order]], Y, S, n_examples, is_whole)

    def sampled_box(self, study_id: int) -> tuple[float, float]:
        """Corners of the smallest box that holds those of all runs that really sampled theirs.

        A run counts once it has measured a point other than the pre-trained and single-task models, which lie
        where they lie whatever its box is; where none has, the box is [0, 1].
        """
        n = len(self.study(study_id).spec.tasks)
        corners = [np.zeros(n), *np.eye(n)]
        whole = select(Evaluation.run_id).where(Evaluation.split == "val", Evaluation.c.not_in(corners))
        parts = select(SubsetEvaluation.run_id).where(SubsetEvaluation.c.not_in(corners))
        query = select(Run.settings).where(
            Run.study_id == study_id,
            Run.method != "nested",
            or_(
                whole.where(Evaluation.run_id == Run.id).exists(),
                parts.where(SubsetEvaluation.run_id == Run.id).exists(),
            ),
        )
        with self._read() as session:
            settings = list(session.scalars(query))
        low = min((values["low"] for values in settings), default=0.0)
        high = max((values["high"] for values in settings), default=1.0)
        return low, high

    def fingerprint(self, study_id: int) -> tuple[int, int, int]:
        """Changes whenever something is measured on a validation split.

        Returns:
            The number of measurements, and the latest one's id among those of whole splits and of parts.
        """
        found = []
        with self._read() as session:
            for table, is_val in ((Evaluation, Evaluation.split == "val"), (SubsetEvaluation, true())):
                query = select(func.count(), func.coalesce(func.max(table.id), 0))
                found.append(session.execute(query.where(table.study_id == study_id, is_val)).one())
        (count, latest), (n_parts, latest_part) = found
        return count + n_parts, latest, latest_part

    # Picks

    def add_pick(
        self,
        study_id: int,
        c: np.ndarray,
        how: Mapping[str, Any],
        *,
        name: str = "",
        shortlisted: bool = False,
    ) -> PickRow:
        """Keeps coefficients that a person chose.

        Raises:
            PointError: where ``c`` isn't N finite numbers.
        """
        c = self._check(study_id, c)
        with self._write() as session:
            pick = Pick(
                study_id=study_id, c=c, how=dict(how), name=name, shortlisted=shortlisted, created=_now()
            )
            session.add(pick)
            session.flush()
            pick_id = pick.id
        return self.pick(pick_id)

    def picks(self, study_id: int) -> list[PickRow]:
        """A study's picks, oldest first."""
        with self._read() as session:
            query = select(Pick).where(Pick.study_id == study_id).order_by(Pick.id)
            return [pick_row(pick) for pick in session.scalars(query)]

    def pick(self, pick_id: int) -> PickRow:
        """One pick.

        Raises:
            StudyError: where there is none with this id.
        """
        with self._read() as session:
            pick = session.get(Pick, as_id(pick_id))
            if pick is None:
                raise StudyError(f"There is no pick {pick_id}: it may have been deleted.")
            return pick_row(pick)

    def update_pick(
        self,
        pick_id: int,
        *,
        name: str | None = None,
        shortlisted: bool | None = None,
        exported: Path | None = None,
    ) -> PickRow:
        """Renames a pick, puts it on or off the shortlist, or records the file that it was exported to.

        Raises:
            StudyError: where there is no pick with this id.
        """
        self.pick(pick_id)
        changes = {
            "name": name,
            "shortlisted": shortlisted,
            "exported": None if exported is None else str(exported),
        }
        changes = {column: value for column, value in changes.items() if value is not None}
        if changes:
            with self._write() as session:
                session.execute(update(Pick).where(Pick.id == pick_id).values(**changes))
        return self.pick(pick_id)

    def _check(self, study_id: int, c: np.ndarray, task: str | None = None) -> np.ndarray:
        tasks = self._tasks.get(study_id)
        if tasks is None:
            with self._read() as session:
                spec = session.scalar(select(Study.spec).where(Study.id == as_id(study_id)))
            if spec is None:
                raise StudyError(f"There is no study {study_id}: it may have been deleted.")
            # They never change, and no other study gets this number.
            tasks = self._tasks[study_id] = [values["name"] for values in spec["tasks"]]
        if task is not None and task not in tasks:
            raise StudyError(f"The study has no task '{task}': it has {', '.join(tasks)}.")
        c = np.asarray(c, dtype=np.float64)
        if c.shape != (len(tasks),) or not np.isfinite(c).all():
            raise PointError(
                f"A study of {len(tasks)} task vectors needs as many finite coefficients, not {c.tolist()}."
            )
        return c


# Built once: writing them out takes longer than running them, and the next evaluation waits.
_EVALUATIONS, _PARTS = (Evaluation.metadata.tables[name] for name in ("evaluations", "subset_evaluations"))
_ADD_EVALUATION = (
    insert(_EVALUATIONS)
    .on_conflict_do_nothing(index_elements=["study_id", "c", "task", "split"])
    .returning(_EVALUATIONS.c.id)
)
_DELETE_PART = delete(_PARTS).where(
    _PARTS.c.study_id == bindparam("of_study"),
    _PARTS.c.c == bindparam("at"),
    _PARTS.c.task == bindparam("of_task"),
)


def _now() -> datetime:
    return datetime.now(UTC)


def _name(spec: StudySpec) -> str:
    names = spec.task_names
    tasks = " + ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
    return tasks + (f" on {spec.transform.label}" if spec.transform else "")
