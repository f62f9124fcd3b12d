"""The store: its parts over one database and one data folder, shared by every page, thread and process."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path

from mapmerge_core.files import absolute
from mapmerge_core.studies.store.database import Database
from mapmerge_core.studies.store.evaluations import Evaluations
from mapmerge_core.studies.store.merges import Merges, Training
from mapmerge_core.studies.store.picks import Picks
from mapmerge_core.studies.store.runs import Runs
from mapmerge_core.studies.store.studies import Studies


def home() -> Path:
    """Return the data folder: $MAPMERGE_HOME, or the platform's place for user data."""
    folder = os.environ.get("MAPMERGE_HOME")
    return absolute(folder) if folder else user_data_path("mapmerge", appauthor=False)


class Store:
    """Everything that is kept.

    Safe to share between threads; several processes can open the same database. Each evaluation is on the disk
    once `Evaluations.add` returns.

    Args:
        folder: Data folder, by default `home`; the database is ``mapmerge.db`` in it.
        url: SQLite URL of the database, where it should lie elsewhere; by default $MAPMERGE_DATABASE.

    Attributes:
        folder: The data folder.
        path: The database's file.
        studies: Studies.
        merges: Their merges, and where a merge's state lies.
        runs: Runs, and which process may go on with one.
        evaluations: Evaluations of models, a merge and an x.
        picks: Models that people chose.
        training: How the training of merges goes.

    Raises:
        StudyError: The database can't be opened, or a newer mapmerge wrote it.
    """

    def __init__(self, folder: Path | str | None = None, *, url: str | None = None) -> None:
        if url is None and folder is None:
            url = os.environ.get("MAPMERGE_DATABASE")
        self.folder = absolute(folder) if folder is not None else home()
        self._database = Database(url or self.folder / "mapmerge.db")
        self.path = self._database.path
        own = self.path == self.folder / "mapmerge.db"
        # Other databases may share the data folder, and each counts its merges from 1.
        files = self.folder / "merges" if own else self.path.with_name(f"{self.path.name}-merges")
        self.merges = Merges(self._database, files)
        self.runs = Runs(self._database, self.merges)
        self.studies = Studies(self._database, self.merges, self.runs)
        self.evaluations = Evaluations(self._database, self.merges)
        self.picks = Picks(self._database, self.merges)
        self.training = Training(self._database)

    def close(self) -> None:
        """Close the database; nothing can be read or written afterwards."""
        self._database.close()
