"""The store's studies: models and tasks with all that belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, delete, distinct, func, insert, select, update

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.inputs.sources import Source, read_sources
from mapmerge_core.studies.store.database import Database, as_id
from mapmerge_core.studies.store.rows import ACTIVE, Study
from mapmerge_core.studies.store.tables import evaluations, merges, picks, runs, studies

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudyConfig
    from mapmerge_core.studies.store.merges import Merges
    from mapmerge_core.studies.store.runs import Runs


class Studies:
    """Studies."""

    def __init__(self, database: Database, merges: Merges, runs: Runs) -> None:
        self._database, self._merges, self._runs = database, merges, runs

    def create(self, name: str | None, config: StudyConfig) -> Study:
        """Keep a new study and the hashes of its files, with task arithmetic as its first merge.

        Args:
            name: Its name, which gets a number if it is taken; None makes one from the tasks.
            config: What it is made of.

        Raises:
            StudyError: One of its files can't be read.
        """
        sources = [_source_to_dict(source) for source in read_sources(config)]
        wanted = _plain(name or "") or _name(config)
        with self._database.write() as connection:
            taken = set(connection.scalars(select(studies.c.name)))
            free, number = wanted, 2
            while free in taken:
                free, number = f"{wanted} ({number})", number + 1
            values = {"name": free, "config": config.to_dict(), "sources": sources, "created": datetime.now(UTC)}
            study_id = connection.scalar(insert(studies).returning(studies.c.id), values) or 0
            self._merges.insert(connection, study_id, config, "task_arithmetic", {})
        return self.get(study_id)

    def all(self) -> list[Study]:
        """Return every study, the one that changed last first."""
        return sorted(self._select(None), key=lambda study: (study.changed, study.id), reverse=True)

    def get(self, study_id: int) -> Study:
        """Return one study.

        Raises:
            StudyError: There is none with this id.
        """
        if not (rows := self._select(as_id(study_id))):
            raise StudyError(f"There is no study {study_id}: it may have been deleted.")
        return rows[0]

    def find(self, name_or_id: str) -> Study:
        """Return the study with this name, or else with this id.

        Raises:
            StudyError: There is none.
        """
        with self._database.read() as connection:
            study_id = connection.scalar(select(studies.c.id).where(studies.c.name == name_or_id))
        if study_id is None and name_or_id.isdecimal() and len(name_or_id) < 20:
            study_id = int(name_or_id)
        if study_id is None or not (rows := self._select(as_id(study_id))):
            raise StudyError(f"There is no study '{name_or_id}': the command `studies` lists those there are.")
        return rows[0]

    def rename(self, study_id: int, name: str) -> Study:
        """Give a study another name.

        Raises:
            StudyError: There is no such study; the name is empty, or another study's.
        """
        self.get(study_id)
        if not (name := _plain(name)):
            raise StudyError("A study needs a name: type one.")
        with self._database.write() as connection:
            owner = connection.scalar(select(studies.c.id).where(studies.c.name == name))
            if owner not in (None, study_id):
                raise StudyError(f"There is a study '{name}' already: choose another name.")
            connection.execute(update(studies).where(studies.c.id == study_id).values(name=name))
        return self.get(study_id)

    def delete(self, study_id: int) -> None:
        """Delete a study with its merges, runs, evaluations and picks, and the merges' files.

        Raises:
            StudyError: There is no such study, or one of its runs is going on.
        """
        study = self.get(study_id)
        for run in self._runs.all(study_id):
            if run.status in ACTIVE and self._runs.is_claimed(run.id):
                raise StudyError(f"'{study.name}' has a run going on: stop it before deleting the study.")
        stored = self._merges.all(study_id)
        with self._database.write() as connection:
            connection.execute(delete(studies).where(studies.c.id == study_id))
        for merge in stored:
            self._merges.state_file(merge.id).unlink(missing_ok=True)
            self._merges.checkpoint_file(merge.id).unlink(missing_ok=True)

    def _select(self, study_id: int | None) -> list[Study]:
        """Return the study with this id, or all, each with its counts."""
        one = [] if study_id is None else [study_id]
        n_picks = select(merges.c.study_id, func.count()).join_from(picks, merges, merges.c.id == picks.c.merge_id)
        latest = runs.c.id.in_(select(func.max(runs.c.id)).group_by(runs.c.study_id))
        statuses = select(runs.c.study_id, runs.c.status).where(latest)
        with self._database.read() as connection:
            rows = connection.execute(_narrowed(select(studies), studies.c.id, one)).all()
            counts = _counts(connection, one)
            picked = _pairs(connection, n_picks.group_by(merges.c.study_id), merges.c.study_id, one)
            status = _pairs(connection, statuses, runs.c.study_id, one)
        return [
            Study(
                id=row.id,
                name=row.name,
                config=self._merges.decode(row.id, row.config),
                sources=tuple(_source_from_dict(source) for source in row.sources),
                created=row.created,
                n_points=counts.get(row.id, _NOTHING)[0],
                n_evaluations=counts.get(row.id, _NOTHING)[1],
                n_picks=picked.get(row.id, 0),
                status=status.get(row.id),
                changed=counts[row.id][2] if row.id in counts else row.created,
            )
            for row in rows
        ]


_NOTHING = 0, 0


def _narrowed(query: Any, column: Any, values: Sequence[int]) -> Any:  # noqa: ANN401 - SQL expressions
    return query.where(column.in_(values)) if values else query


def _pairs(connection: Connection, query: Any, column: Any, values: Sequence[int]) -> dict[int, Any]:  # noqa: ANN401
    return {row[0]: row[1] for row in connection.execute(_narrowed(query, column, values))}


def _counts(connection: Connection, one: Sequence[int]) -> dict[int, tuple[int, int, datetime]]:
    """Return each study's points, evaluations and the latest one's time."""
    query = _narrowed(
        select(
            merges.c.study_id,
            evaluations.c.split,
            func.count(distinct(evaluations.c.x)).label("n_points"),
            func.count().label("n_evaluations"),
            func.max(evaluations.c.created).label("changed"),
        )
        .join_from(evaluations, merges, merges.c.id == evaluations.c.merge_id)
        .group_by(merges.c.study_id, merges.c.id, evaluations.c.split),
        merges.c.study_id,
        one,
    )
    counts: dict[int, tuple[int, int, datetime]] = {}
    row: Row[Any]
    for row in connection.execute(query):
        points, total, changed = counts.get(row.study_id, (0, 0, row.changed))
        points += row.n_points if row.split == "val" else 0
        counts[row.study_id] = points, total + row.n_evaluations, max(changed, row.changed)
    return counts


def _plain(name: str) -> str:
    return " ".join(name.split())


def _name(config: StudyConfig) -> str:
    names = [task.name for task in config.tasks]
    return " + ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _source_to_dict(source: Source) -> dict[str, Any]:
    return {**vars(source), "path": str(source.path)}


def _source_from_dict(values: dict[str, Any]) -> Source:
    return Source(**values | {"path": Path(values["path"])})
