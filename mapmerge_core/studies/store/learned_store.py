"""The store's learned sets: how Pareto Merging's training goes, what was measured, and what people chose."""

from __future__ import annotations

from dataclasses import astuple
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import func, select, update
from sqlalchemy.dialects.sqlite import insert

from mapmerge_core.errors import StudyError
from mapmerge_core.merges._training_settings import TrainingPoint
from mapmerge_core.studies.store.database import Database
from mapmerge_core.studies.store.queries import as_id, learned_pick_row
from mapmerge_core.studies.store.tables import LearnedEvaluation, LearnedPick, Run, Study, TrainingStep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mapmerge_core.studies.store.rows import LearnedPickRow, Split
    from mapmerge_core.tasks.metric import Outcome


class LearnedStore(Database):
    """The part of the store that keeps learned sets; use it through ``Store``.

    A preference γ is K weights that sum to 1; others are divided by their sum first.
    """

    def learned_file(self, run_id: int) -> Path:
        """Where a run's learned set lies once it is trained."""
        return self._learned_folder / f"learned-{run_id}.safetensors"

    def training_file(self, run_id: int) -> Path:
        """Where an unfinished training lies."""
        return self._learned_folder / f"training-{run_id}.safetensors"

    @property
    def _learned_folder(self) -> Path:
        # Other databases may share the folder, and each counts its runs from 1.
        usual = self.path.name == "mapmerge.db"
        return self.path.with_name("learned" if usual else f"{self.path.name}-learned")

    def add_training_points(self, run_id: int, points: Sequence[TrainingPoint]) -> None:
        """Keeps how training goes; a resumed run's steps take the place of those that were lost."""
        with self._write() as session:
            for point in points:
                values = dict(zip(TrainingPoint.__dataclass_fields__, astuple(point), strict=True))
                statement = insert(TrainingStep).values(run_id=run_id, **values)
                changed = {name: statement.excluded[name] for name in values if name != "step"}
                session.execute(
                    statement.on_conflict_do_update(index_elements=["run_id", "step"], set_=changed)
                )

    def training_points(self, run_id: int) -> list[TrainingPoint]:
        """How training went so far, in the order of the steps."""
        columns = [getattr(TrainingStep, name) for name in TrainingPoint.__dataclass_fields__]
        query = select(*columns).where(TrainingStep.run_id == as_id(run_id)).order_by(TrainingStep.step)
        with self._read() as session:
            return [TrainingPoint(*values) for values in session.execute(query)]

    def add_learned_evaluation(
        self, run_id: int, gamma: np.ndarray, task: str, split: Split, outcome: Outcome, step: int
    ) -> bool:
        """Commits a measurement of the model for a preference, as it was after ``step`` steps.

        Returns:
            False where it was measured before, and nothing is changed.

        Raises:
            SearchError: where ``gamma`` is no preference.
            StudyError: where there is no such run.
        """
        statement = (
            insert(LearnedEvaluation)
            .values(
                run_id=run_id,
                step=step,
                gamma=self._preference(run_id, gamma),
                task=task,
                split=split,
                value=outcome.value,
                n_examples=outcome.n_examples,
                per_example=outcome.per_example,
                seconds=outcome.seconds,
                created=datetime.now(UTC),
            )
            .on_conflict_do_nothing(index_elements=["run_id", "step", "gamma", "task", "split"])
            .returning(LearnedEvaluation.id)
        )
        with self._write() as session:
            return session.scalar(statement) is not None

    def learned_measured(self, run_id: int, gamma: np.ndarray, split: Split) -> dict[str, float]:
        """Values measured of the finished set's model for a preference, by task.

        Raises:
            SearchError: where ``gamma`` is no preference.
            StudyError: where there is no such run.
        """
        query = select(LearnedEvaluation.task, LearnedEvaluation.value).where(
            *self._finished(run_id, split), LearnedEvaluation.gamma == self._preference(run_id, gamma)
        )
        with self._read() as session:
            return {row.task: row.value for row in session.execute(query)}

    def learned_table(
        self, run_id: int, split: Split = "val", step: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A learned set's measurements as arrays.

        Args:
            run_id: The run.
            split: "val" or "test".
            step: After how many steps; None for the finished set.

        Returns:
            Γ (``m x K``), different preferences in the order of measuring, and Y (``m x K``), NaN where a
            task hasn't been measured.

        Raises:
            StudyError: where there is no such run.
        """
        tasks = self._tasks_of(run_id)
        where = self._finished(run_id, split)
        if step is not None:
            where = (*where[:2], LearnedEvaluation.step == step)
        query = select(LearnedEvaluation.gamma, LearnedEvaluation.task, LearnedEvaluation.value).where(*where)
        rows: dict[bytes, np.ndarray] = {}
        with self._read() as session:
            for gamma, task, value in session.execute(query.order_by(LearnedEvaluation.id)):
                values = rows.setdefault(gamma.tobytes(), np.full(len(tasks), np.nan))
                values[tasks.index(task)] = value
        gammas = np.array([np.frombuffer(key) for key in rows]).reshape(-1, len(tasks))
        return gammas, np.array(list(rows.values())).reshape(-1, len(tasks))

    def learned_steps(self, run_id: int) -> list[int]:
        """After which steps something was measured on the validation split, in order."""
        query = select(LearnedEvaluation.step).where(
            LearnedEvaluation.run_id == as_id(run_id), LearnedEvaluation.split == "val"
        )
        with self._read() as session:
            return list(session.scalars(query.distinct().order_by(LearnedEvaluation.step)))

    def learned_examples(self, run_id: int, split: Split) -> dict[str, int]:
        """How many examples each task was measured on, by task."""
        query = select(LearnedEvaluation.task, func.max(LearnedEvaluation.n_examples)).where(
            LearnedEvaluation.run_id == as_id(run_id), LearnedEvaluation.split == split
        )
        with self._read() as session:
            rows = session.execute(query.group_by(LearnedEvaluation.task))
            return {row[0]: row[1] for row in rows}

    # Picks

    def add_learned_pick(
        self,
        run_id: int,
        gamma: np.ndarray,
        how: Mapping[str, Any],
        *,
        name: str = "",
        shortlisted: bool = False,
    ) -> LearnedPickRow:
        """Keeps a preference whose model of the run's set a person chose.

        Raises:
            SearchError: where ``gamma`` is no preference.
            StudyError: where there is no such run.
        """
        gamma = self._preference(run_id, gamma)
        with self._write() as session:
            pick = LearnedPick(
                run_id=run_id,
                gamma=gamma,
                how=dict(how),
                name=name,
                shortlisted=shortlisted,
                created=datetime.now(UTC),
            )
            session.add(pick)
            session.flush()
            pick_id = pick.id
        return self.learned_pick(pick_id)

    def learned_picks(self, study_id: int) -> list[LearnedPickRow]:
        """The picks of all of a study's learned sets, oldest first."""
        query = select(LearnedPick, Run.study_id).join(Run, Run.id == LearnedPick.run_id)
        with self._read() as session:
            rows = session.execute(query.where(Run.study_id == as_id(study_id)).order_by(LearnedPick.id))
            return [learned_pick_row(*values) for values in rows]

    def learned_pick(self, pick_id: int) -> LearnedPickRow:
        """One pick of a learned set.

        Raises:
            StudyError: where there is none with this id.
        """
        query = select(LearnedPick, Run.study_id).join(Run, Run.id == LearnedPick.run_id)
        with self._read() as session:
            values = session.execute(query.where(LearnedPick.id == as_id(pick_id))).one_or_none()
            if values is None:
                raise StudyError(f"There is no pick {pick_id} of a learned set: it may have been deleted.")
            return learned_pick_row(*values)

    def update_learned_pick(
        self,
        pick_id: int,
        *,
        name: str | None = None,
        shortlisted: bool | None = None,
        exported: Path | None = None,
    ) -> LearnedPickRow:
        """Renames a pick, puts it on or off the shortlist, or records the file that it was exported to.

        Raises:
            StudyError: where there is no pick with this id.
        """
        self.learned_pick(pick_id)
        changes = {
            "name": name,
            "shortlisted": shortlisted,
            "exported": None if exported is None else str(exported),
        }
        changes = {column: value for column, value in changes.items() if value is not None}
        if changes:
            with self._write() as session:
                session.execute(update(LearnedPick).where(LearnedPick.id == pick_id).values(**changes))
        return self.learned_pick(pick_id)

    def _tasks_of(self, run_id: int) -> list[str]:
        query = select(Study.spec).join(Run, Run.study_id == Study.id).where(Run.id == as_id(run_id))
        with self._read() as session:
            spec = session.scalar(query)
        if spec is None:
            raise StudyError(f"There is no run {run_id}: it may have been deleted.")
        return [values["name"] for values in spec["tasks"]]

    def _preference(self, run_id: int, gamma: np.ndarray) -> np.ndarray:
        from mapmerge_core.search.preferences import normalise

        return normalise(gamma, len(self._tasks_of(run_id)))

    def _finished(self, run_id: int, split: Split) -> tuple[Any, ...]:
        """Conditions on an evaluation: on a split, of the finished set, which is that after the last step."""
        last = (
            select(func.max(TrainingStep.step)).where(TrainingStep.run_id == as_id(run_id)).scalar_subquery()
        )
        return (
            LearnedEvaluation.run_id == as_id(run_id),
            LearnedEvaluation.split == split,
            LearnedEvaluation.step == last,
        )
