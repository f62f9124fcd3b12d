"""The store's merges: their settings, where their states lie, and how their training went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, select, update

from mapmerge_core.errors import StudyError
from mapmerge_core.merges.base import TrainingPoint
from mapmerge_core.registries import MERGES
from mapmerge_core.search.spaces import space_from_dict
from mapmerge_core.settings import to_dict
from mapmerge_core.studies.config.study import StudyConfig
from mapmerge_core.studies.store.database import Database, as_id, insert_or_keep, insert_or_replace
from mapmerge_core.studies.store.rows import StoredMerge
from mapmerge_core.studies.store.tables import merges, studies, training_steps

_INSERT = insert_or_keep(merges, ["study_id", "name", "settings"])
_INSERT_STEP = insert_or_replace(training_steps, ["merge_id", "step"])


class Merges:
    """The merges of studies; every study has task arithmetic from its creation."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder
        self._configs: dict[int, StudyConfig] = {}

    def add(self, study_id: int, name: str, settings: Mapping[str, Any]) -> StoredMerge:
        """Return a study's merge with this name and these settings, a new one where it has none.

        Args:
            study_id: The study.
            name: The merge's name in the registry.
            settings: Those that differ from the defaults, or all.

        Raises:
            StudyError: There is no such study, or the merge can't serve it.
            RegistryError: There is no such merge.
            SettingError: It hasn't such settings.
        """
        config = self.config(study_id)
        with self._database.write() as connection:
            merge_id = self.insert(connection, study_id, config, name, settings)
        return self.get(merge_id)

    def insert(
        self, connection: Connection, study_id: int, config: StudyConfig, name: str, settings: Mapping[str, Any]
    ) -> int:
        """Do what `add` does within a transaction, and return the merge's id."""
        merge = MERGES[name](dict(settings))
        merge.check(config.facts())
        key = {"study_id": study_id, "name": name, "settings": json.dumps(to_dict(merge.settings), sort_keys=True)}
        values = {
            **key,
            "space": merge.space(config.model_names).to_dict(),
            "is_prepared": False,
            "seconds": 0.0,
            "evaluations": 0,
            "created": datetime.now(UTC),
        }
        query = select(merges.c.id).filter_by(**key)
        return int(connection.scalar(_INSERT, values) or connection.execute(query).scalar_one())

    def all(self, study_id: int) -> list[StoredMerge]:
        """Return a study's merges, oldest first."""
        query = select(merges).where(merges.c.study_id == as_id(study_id)).order_by(merges.c.id)
        with self._database.read() as connection:
            return [_merge(row) for row in connection.execute(query)]

    def get(self, merge_id: int) -> StoredMerge:
        """Return one merge.

        Raises:
            StudyError: There is none with this id.
        """
        with self._database.read() as connection:
            row = connection.execute(select(merges).where(merges.c.id == as_id(merge_id))).one_or_none()
        if row is None:
            raise StudyError(f"There is no merge {merge_id}: it may have been deleted.")
        return _merge(row)

    def state_file(self, merge_id: int) -> Path:
        """Return where a merge's state lies once it is prepared, if it has one."""
        return self._folder / f"{merge_id}.safetensors"

    def checkpoint_file(self, merge_id: int) -> Path:
        """Return where an unfinished training of a merge lies."""
        return self._folder / f"{merge_id}.training.safetensors"

    def set_prepared(self, merge_id: int, seconds: float, evaluations: int) -> None:
        """Record that a merge has been prepared, and what that took.

        Raises:
            StudyError: Its study was deleted in the meantime; its state is, too.
        """
        values = {"is_prepared": True, "seconds": seconds, "evaluations": evaluations}
        with self._database.write() as connection:
            changed = connection.execute(update(merges).where(merges.c.id == merge_id).values(**values))
        if not changed.rowcount:
            self.state_file(merge_id).unlink(missing_ok=True)
            raise StudyError("The study was deleted in the meantime, so nothing is kept of this: start a new one.")

    def config(self, study_id: int) -> StudyConfig:
        """Return a study's configuration, which never changes.

        Raises:
            StudyError: There is no study with this id.
        """
        if study_id not in self._configs:
            query = select(studies.c.config).where(studies.c.id == as_id(study_id))
            with self._database.read() as connection:
                values = connection.scalar(query)
            if values is None:
                raise StudyError(f"There is no study {study_id}: it may have been deleted.")
            return self.decode(study_id, values)
        return self._configs[study_id]

    def decode(self, study_id: int, values: dict[str, Any]) -> StudyConfig:
        """Return a study's configuration from its row, made once for all who ask."""
        if study_id not in self._configs:
            self._configs[study_id] = StudyConfig.from_dict(values)
        return self._configs[study_id]


class Training:
    """How the training of merges goes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, merge_id: int, points: Sequence[TrainingPoint]) -> None:
        """Keep how training goes; a resumed training's steps take the place of those that were lost."""
        rows = [
            {
                "merge_id": merge_id,
                "step": point.step,
                "objective": point.objective,
                "f": np.asarray(point.f, dtype="<f8").tobytes(),
                "seconds": point.seconds,
            }
            for point in points
        ]
        if rows:
            with self._database.write() as connection:
                connection.execute(_INSERT_STEP, rows)

    def all(self, merge_id: int) -> list[TrainingPoint]:
        """Return how a merge's training went so far, in the order of the steps."""
        columns = [getattr(training_steps.c, name) for name in ("step", "objective", "f", "seconds")]
        query = select(*columns).where(training_steps.c.merge_id == as_id(merge_id))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(training_steps.c.step)).all()
        return [TrainingPoint(row.step, row.objective, np.frombuffer(row.f, "<f8"), row.seconds) for row in rows]


def _merge(row: Row[Any]) -> StoredMerge:
    values = row._asdict()
    space = space_from_dict(values.pop("space"))
    return StoredMerge(**values | {"settings": json.loads(row.settings), "space": space})
