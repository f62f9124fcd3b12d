"""The first release's tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


def _parent(name: str, of: str, **options: Any) -> sa.Column[int]:  # noqa: ANN401 - a column's options
    return sa.Column(name, sa.Integer, sa.ForeignKey(f"{of}.id", ondelete="CASCADE"), nullable=False, **options)


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "studies",
        _id(),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("sources", sa.JSON, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "merges",
        _id(),
        _parent("study_id", "studies"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("space", sa.JSON, nullable=False),
        sa.Column("is_prepared", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("evaluations", sa.Integer, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.UniqueConstraint("study_id", "name", "settings", name="uq_merges"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "runs",
        _id(),
        _parent("study_id", "studies", index=True),
        _parent("merge_id", "merges", index=True),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("started", sa.DateTime),
        sa.Column("finished", sa.DateTime),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "evaluations",
        _id(),
        _parent("merge_id", "merges"),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id", ondelete="SET NULL"), index=True),
        sa.Column("x", sa.LargeBinary, nullable=False),
        sa.Column("objective", sa.Text, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("standard_error", sa.Double),
        sa.Column("n_examples", sa.Integer, nullable=False),
        sa.Column("n_total", sa.Integer),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("per_example", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("merge_id", "x", "objective", "split", name="uq_evaluations"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_evaluations_merge_split", "evaluations", ["merge_id", "split"])
    op.create_table(
        "picks",
        _id(),
        _parent("merge_id", "merges", index=True),
        sa.Column("x", sa.LargeBinary, nullable=False),
        sa.Column("how", sa.JSON, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("shortlisted", sa.Boolean, nullable=False),
        sa.Column("exported", sa.Text),
        sa.Column("created", sa.DateTime, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "training_steps",
        _parent("merge_id", "merges", primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("objective", sa.Double, nullable=False),
        sa.Column("f", sa.LargeBinary, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
    )
