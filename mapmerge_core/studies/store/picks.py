"""The store's picks: models that people chose."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Row, insert, select, update

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.store.database import Database, as_id
from mapmerge_core.studies.store.rows import Pick
from mapmerge_core.studies.store.tables import merges, picks

if TYPE_CHECKING:
    from mapmerge_core.studies.store.merges import Merges


class Picks:
    """Models that people chose, and why."""

    def __init__(self, database: Database, merges: Merges) -> None:
        self._database, self._merges = database, merges

    def add(
        self,
        merge_id: int,
        x: np.ndarray,
        how: Mapping[str, Any],
        *,
        name: str = "",
        notes: str = "",
        shortlisted: bool = False,
    ) -> Pick:
        """Keep a point of a merge that a person chose.

        Raises:
            StudyError: There is no such merge.
            PointError: ``x`` is no point of its space.
        """
        values = {
            "merge_id": merge_id,
            "x": self._merges.get(merge_id).space.point(x).astype("<f8").tobytes(),
            "how": dict(how),
            "name": name,
            "notes": notes,
            "shortlisted": shortlisted,
            "created": datetime.now(UTC),
        }
        with self._database.write() as connection:
            pick_id = connection.scalar(insert(picks).returning(picks.c.id), values)
        return self.get(pick_id or 0)

    def all(self, study_id: int) -> list[Pick]:
        """Return a study's picks, oldest first."""
        return self._select(merges.c.study_id == as_id(study_id))

    def get(self, pick_id: int) -> Pick:
        """Return one pick.

        Raises:
            StudyError: There is none with this id.
        """
        if not (rows := self._select(picks.c.id == as_id(pick_id))):
            raise StudyError(f"There is no pick {pick_id}: it may have been deleted.")
        return rows[0]

    def find(self, merge_id: int, x: np.ndarray) -> Pick | None:
        """Return the latest pick of the model at a point, if there is one.

        Raises:
            StudyError: There is no such merge.
            PointError: ``x`` is no point of its space.
        """
        point = self._merges.get(merge_id).space.point(x).astype("<f8").tobytes()
        rows = self._select((picks.c.merge_id == as_id(merge_id)) & (picks.c.x == point))
        return rows[-1] if rows else None

    def update(
        self,
        pick_id: int,
        *,
        name: str | None = None,
        notes: str | None = None,
        shortlisted: bool | None = None,
        exported: Path | None = None,
    ) -> Pick:
        """Rename a pick, note something, put it on or off the shortlist, or record its exported file.

        Raises:
            StudyError: There is no pick with this id.
        """
        changes = {
            "name": name,
            "notes": notes,
            "shortlisted": shortlisted,
            "exported": None if exported is None else str(exported),
        }
        changes = {column: value for column, value in changes.items() if value is not None}
        if changes:
            with self._database.write() as connection:
                connection.execute(update(picks).where(picks.c.id == as_id(pick_id)).values(**changes))
        return self.get(pick_id)

    def _select(self, condition: Any) -> list[Pick]:  # noqa: ANN401 - an SQL expression
        query = select(picks, merges.c.study_id).join(merges, merges.c.id == picks.c.merge_id)
        with self._database.read() as connection:
            return [_pick(row) for row in connection.execute(query.where(condition).order_by(picks.c.id))]


def _pick(row: Row[Any]) -> Pick:
    exported = None if row.exported is None else Path(row.exported)
    return Pick(**row._asdict() | {"x": np.frombuffer(row.x, "<f8"), "exported": exported})
