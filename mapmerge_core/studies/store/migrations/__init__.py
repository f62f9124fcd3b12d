"""Migrations of the database, applied as it is opened.

A change of `tables` comes with a module in ``versions``: ``NNNN_what_changes.py`` with ``revision``,
``down_revision``, ``upgrade`` and, since nobody goes back, no ``downgrade``; `LATEST` becomes its number.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from mapmerge_core.errors import StudyError

LATEST = "0001"
"""The revision that `tables` describes."""


def upgrade(connection: Connection, place: object) -> None:
    """Bring a database to the latest revision, within the connection's transaction.

    Args:
        connection: A connection that holds the write lock.
        place: What sentences call the database.

    Raises:
        StudyError: It was written by a newer mapmerge, or by something else.
    """
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        if (revision := connection.scalar(text("SELECT version_num FROM alembic_version"))) == LATEST:
            return
    elif tables:
        raise StudyError(
            f"{place} is a database of something else, or of mapmerge 0.1, and is left as it is: set "
            "MAPMERGE_HOME to another folder."
        )
    else:
        revision = None
    from alembic.migration import MigrationContext  # a tenth of a second, which opening seldom needs
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(__file__).parent))
    if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise StudyError(
            f"{place} was written by a newer mapmerge (format {revision}, this one knows {LATEST}): update mapmerge."
        )
    context = MigrationContext.configure(
        connection,
        opts={"fn": lambda now, _: scripts._upgrade_revs(LATEST, now)},  # noqa: SLF001
    )
    with Operations.context(context):
        context.run_migrations()
