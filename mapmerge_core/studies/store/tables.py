"""The database's tables and how its values are written; ``store`` is the only reader and writer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 4


class Coefficients(TypeDecorator[np.ndarray]):
    """A c as little-endian float64 bytes; −0.0 is written as 0.0, so that equal c are equal bytes."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:  # noqa: ARG002, ANN401
        """Array -> bytes."""
        if value is None:
            return None
        return (np.asarray(value, dtype="<f8") + 0.0).tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> np.ndarray | None:  # noqa: ARG002
        """Bytes -> read-only array."""
        return None if value is None else np.frombuffer(value, dtype="<f8")


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime, written as UTC (SQLite itself keeps no time zones)."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Aware -> naive UTC."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Naive UTC -> aware."""
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Parent of the tables; ids are never used twice, so that an old link can't open another study."""

    metadata = MetaData()
    __table_args__: Any = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy's way to declare it
    type_annotation_map = {datetime: UtcTime, np.ndarray: Coefficients, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


class Study(Base):
    """Pretrained + task vectors + tasks."""

    __tablename__ = "studies"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    spec: Mapped[dict[str, Any]]
    sources: Mapped[list[Any]]
    created: Mapped[datetime]


class Run(Base):
    """One method with a budget and a seed."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    method: Mapped[str]
    settings: Mapped[dict[str, Any]]
    status: Mapped[str]
    error: Mapped[str | None]
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]


class Evaluation(Base):
    """One measurement of one c on one task's split."""

    __tablename__ = "evaluations"
    __table_args__ = (
        UniqueConstraint("study_id", "c", "task", "split"),
        Index("ix_evaluations_study_split", "study_id", "split"),
        Base.__table_args__,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id", ondelete="SET NULL"), index=True)
    c: Mapped[np.ndarray]
    task: Mapped[str]
    split: Mapped[str]
    value: Mapped[float]
    n_examples: Mapped[int]
    per_example: Mapped[bytes] = mapped_column("correct")  # named when right or wrong was all there was
    seconds: Mapped[float]
    created: Mapped[datetime]


class SubsetEvaluation(Base):
    """The measurement of one c on most of one task's validation split; none once the whole is measured."""

    __tablename__ = "subset_evaluations"
    __table_args__ = (UniqueConstraint("study_id", "c", "task"), Base.__table_args__)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id", ondelete="SET NULL"), index=True)
    c: Mapped[np.ndarray]
    task: Mapped[str]
    value: Mapped[float]
    n_examples: Mapped[int]
    n_total: Mapped[int]
    per_example: Mapped[bytes]
    seconds: Mapped[float]
    created: Mapped[datetime]


class Pick(Base):
    """Coefficients that a person chose, and why."""

    __tablename__ = "picks"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    c: Mapped[np.ndarray]
    how: Mapped[dict[str, Any]]
    name: Mapped[str]
    shortlisted: Mapped[bool]
    exported: Mapped[str | None]
    created: Mapped[datetime]


class Baseline(Base):
    """A merge that no search chose: a c, layer-wise coefficients, a model file, or made from settings."""

    __tablename__ = "baselines"
    __table_args__ = (UniqueConstraint("study_id", "name", "settings"), Base.__table_args__)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    settings: Mapped[str]
    c: Mapped[np.ndarray | None]
    layers: Mapped[np.ndarray | None]
    evaluations: Mapped[int]
    seconds: Mapped[float]
    created: Mapped[datetime]


class BaselineEvaluation(Base):
    """One measurement on one task's split of a baseline that is no c."""

    __tablename__ = "baseline_evaluations"
    __table_args__ = (UniqueConstraint("baseline_id", "task", "split"), Base.__table_args__)

    id: Mapped[int] = mapped_column(primary_key=True)
    baseline_id: Mapped[int] = mapped_column(ForeignKey("baselines.id", ondelete="CASCADE"))
    task: Mapped[str]
    split: Mapped[str]
    value: Mapped[float]
    n_examples: Mapped[int]
    per_example: Mapped[bytes] = mapped_column("correct")  # named when right or wrong was all there was
    seconds: Mapped[float]
    created: Mapped[datetime]


class TrainingStep(Base):
    """What training a learned set had come to after a step: means since the row before."""

    __tablename__ = "training_steps"
    __table_args__ = ()  # its key is no number of its own

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    objective: Mapped[float]
    f: Mapped[np.ndarray]
    seconds: Mapped[float]


class LearnedEvaluation(Base):
    """One measurement on one task's split of a learned set's model for a preference, after a step."""

    __tablename__ = "learned_evaluations"
    __table_args__ = (UniqueConstraint("run_id", "step", "gamma", "task", "split"), Base.__table_args__)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    step: Mapped[int]
    gamma: Mapped[np.ndarray]
    task: Mapped[str]
    split: Mapped[str]
    value: Mapped[float]
    n_examples: Mapped[int]
    per_example: Mapped[bytes]
    seconds: Mapped[float]
    created: Mapped[datetime]


class LearnedPick(Base):
    """A preference whose model of a learned set a person chose, and why."""

    __tablename__ = "learned_picks"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    gamma: Mapped[np.ndarray]
    how: Mapped[dict[str, Any]]
    name: Mapped[str]
    shortlisted: Mapped[bool]
    exported: Mapped[str | None]
    created: Mapped[datetime]
