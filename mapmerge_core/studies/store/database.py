"""The database: durable, readable while it is written, of this version. Whatever is SQLite's own is here alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Table, create_engine, event, make_url
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, IntegrityError

from mapmerge_core.errors import StudyError
from mapmerge_core.files import absolute
from mapmerge_core.studies.store.migrations import upgrade

_BUSY_MILLISECONDS = 30_000
_LARGEST_ID = 2**31 - 1


def insert_or_keep(table: Table, unique: Sequence[str]) -> Any:  # noqa: ANN401 - SQLAlchemy's type is longer
    """Return a statement that inserts a row and gives its id, or gives none where ``unique`` has these values."""
    return insert(table).on_conflict_do_nothing(index_elements=unique).returning(table.c.id)


def insert_or_replace(table: Table, unique: Sequence[str], when: Callable[[Any], Any] | None = None) -> Any:  # noqa: ANN401
    """Return a statement that inserts a row, or changes the one where ``unique`` has these values.

    Args:
        table: The table.
        unique: Its unique columns.
        when: Given the new row's columns, the condition on which the old one changes; always by default.
    """
    statement = insert(table)
    changed = {
        column.name: statement.excluded[column.name] for column in table.columns if column.name not in ("id", *unique)
    }
    where = None if when is None else when(statement.excluded)
    return statement.on_conflict_do_update(index_elements=unique, set_=changed, where=where)


def as_id(number: int) -> int:
    """Return the number, or 0, which is nobody's id, for one that the database can't hold."""
    return number if 0 < number <= _LARGEST_ID else 0


class Database:
    """An open database, made where there was none; threads can share it.

    Args:
        place: Path of the file, or an SQLite URL.

    Raises:
        StudyError: The file can't be opened, isn't ours, or was written by a newer mapmerge.
    """

    def __init__(self, place: Path | str) -> None:
        self.path = path = place if isinstance(place, Path) else _path_of_url(place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(
                f"The data folder {path.parent} can't be made ({error.strerror}): set MAPMERGE_HOME to another."
            ) from error
        self._engine = create_engine(URL.create("sqlite", database=str(path)))
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        # Takes the write lock as a transaction begins, so that what it read can't change before it writes.
        self._writer = self._engine.execution_options(mapmerge_begin="BEGIN IMMEDIATE")
        try:
            with self._writer.begin() as connection:
                upgrade(connection, path)
        except DatabaseError as error:
            self.close()
            raise StudyError(
                f"The database {path} can't be opened ({error.orig}): check the file, or set "
                "MAPMERGE_HOME to another folder."
            ) from error

    def close(self) -> None:
        """Close the file; nothing can be read or written afterwards."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Hand out a connection that sees one state of the database, whoever writes."""
        with self._explained(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Hand out a connection whose changes are on the disk once the block ends, all or none of them."""
        with self._explained(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if isinstance(error, IntegrityError) and "FOREIGN KEY" in str(error.orig):
                raise StudyError(
                    "The study was deleted in the meantime, so nothing is kept of this: start a new one."
                ) from error
            raise StudyError(
                f"The database {self.path} can't be read or written ({error.orig}): make sure that its disk "
                "isn't full and that its folder can be written to."
            ) from error


def _path_of_url(text: str) -> Path:
    try:
        url = make_url(text)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise StudyError(
            f"The database URL '{text}' doesn't name an SQLite file: use one such as sqlite:////folder/mapmerge.db."
        )
    return absolute(url.database)


def _prepare(connection: Any, record: Any) -> None:  # noqa: ANN401, ARG001 - the driver's own objects
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so, in _begin
    for pragma in (
        f"busy_timeout = {_BUSY_MILLISECONDS}",
        "journal_mode = WAL",
        "synchronous = FULL",  # an evaluation is on the disk once it is committed, even if power fails
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("mapmerge_begin", "BEGIN"))
