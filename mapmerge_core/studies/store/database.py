"""Opens the SQLite file: durable, readable while it is written, and of a version that this mapmerge knows."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from mapmerge_core.errors import StudyError
from mapmerge_core.files import absolute
from mapmerge_core.studies.store.tables import SCHEMA_VERSION, Base

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUSY_MILLISECONDS = 30_000


class Database:
    """An open database, made anew where there was none; threads can share it.

    Args:
        place: Path of the file, or an SQLite URL.

    Raises:
        StudyError: where the file can't be opened, isn't ours, or was written by a newer mapmerge.
    """

    def __init__(self, place: Path | str) -> None:
        self.path = path = place if isinstance(place, Path) else _path_of_url(place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(
                f"The data folder {path.parent} can't be made ({error.strerror}): set MAPMERGE_HOME to "
                "another."
            ) from error
        self._engine = create_engine(URL.create("sqlite", database=str(path)))
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        # Takes the write lock as a transaction begins, so that what it read can't change before it writes.
        self._writer = self._engine.execution_options(mapmerge_begin="BEGIN IMMEDIATE")
        try:
            with self._writer.begin() as connection:
                _make_tables(connection, path)
        except DatabaseError as error:
            self.close()
            raise StudyError(
                f"The database {path} can't be opened ({error.orig}): check the file, or set "
                "MAPMERGE_HOME to another folder."
            ) from error

    def close(self) -> None:
        """Closes the file; nothing can be read or written afterwards."""
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with self._explained(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._explained(), Session(self._writer) as session, session.begin():
            yield session

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
            f"The database URL '{text}' doesn't name an SQLite file: use one such as "
            "sqlite:////folder/mapmerge.db."
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


def _make_tables(connection: Connection, path: Path) -> None:
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version > SCHEMA_VERSION:
        raise StudyError(
            f"{path} was written by a newer mapmerge (format {version}, this one knows {SCHEMA_VERSION}): "
            "update mapmerge."
        )
    if version < SCHEMA_VERSION:  # formats have only gained tables
        Base.metadata.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
