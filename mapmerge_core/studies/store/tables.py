"""The database's tables, in types that SQLite and PostgreSQL both have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime, written as UTC (SQLite itself keeps no time zones)."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()


def _table(name: str, *items: Any) -> Table:  # noqa: ANN401 - columns, constraints and indices
    # Ids are never used twice, so that an old link can't open another study.
    ids = Column("id", Integer, primary_key=True)
    return Table(name, metadata, ids, *items, sqlite_autoincrement=True)


def _column(name: str, kind: Any, **options: Any) -> Column[Any]:  # noqa: ANN401 - a column's type
    return Column(name, kind, nullable=False, **options)


def _parent(name: str, of: str, **options: Any) -> Column[Any]:  # noqa: ANN401
    return Column(name, ForeignKey(f"{of}.id", ondelete="CASCADE"), nullable=False, **options)


studies = _table(
    "studies",
    _column("name", Text, unique=True),
    _column("config", JSON),
    _column("sources", JSON),
    _column("created", UtcTime),
)

merges = _table(
    "merges",
    _parent("study_id", "studies"),
    _column("name", Text),
    _column("settings", Text),  # JSON with sorted keys: equal settings are equal texts
    _column("space", JSON),
    _column("is_prepared", Boolean),
    _column("seconds", Double),
    _column("evaluations", Integer),
    _column("created", UtcTime),
    UniqueConstraint("study_id", "name", "settings", name="uq_merges"),
)

runs = _table(
    "runs",
    _parent("study_id", "studies", index=True),
    _parent("merge_id", "merges", index=True),
    _column("config", JSON),
    _column("status", Text),
    Column("error", Text),
    _column("created", UtcTime),
    Column("started", UtcTime),
    Column("finished", UtcTime),
)

evaluations = _table(
    "evaluations",
    _parent("merge_id", "merges"),
    Column("run_id", ForeignKey("runs.id", ondelete="SET NULL"), index=True),
    _column("x", LargeBinary),  # little-endian float64
    _column("objective", Text),
    _column("split", Text),
    _column("value", Double),
    Column("standard_error", Double),
    _column("n_examples", Integer),
    Column("n_total", Integer),  # NULL where the whole split was measured
    _column("seconds", Double),
    _column("created", UtcTime),
    _column("per_example", LargeBinary),
    UniqueConstraint("merge_id", "x", "objective", "split", name="uq_evaluations"),
    Index("ix_evaluations_merge_split", "merge_id", "split"),
)

picks = _table(
    "picks",
    _parent("merge_id", "merges", index=True),
    _column("x", LargeBinary),
    _column("how", JSON),
    _column("name", Text),
    _column("notes", Text),
    _column("shortlisted", Boolean),
    Column("exported", Text),
    _column("created", UtcTime),
)

training_steps = Table(
    "training_steps",
    metadata,
    _parent("merge_id", "merges", primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    _column("objective", Double),
    _column("f", LargeBinary),
    _column("seconds", Double),
)
