"""A database of an older version is upgraded as it is opened, and what isn't ours is left alone."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.store import Store, Study, migrations
from mapmerge_core.studies.store.tables import metadata
from tests.studies.store.helpers import COLOURS, outcome, plain
from tests.studies.store.test_store import ROOT

VERSIONS = Path(str(files(migrations)))


def test_the_migrations_lead_to_the_tables_that_the_code_uses(store: Store):
    scripts = ScriptDirectory(str(VERSIONS))
    assert scripts.get_current_head() == migrations.LATEST
    engine = create_engine(f"sqlite:///{store.path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def later_version(folder: Path, *steps: str) -> Path:
    """The migrations with one more, 9999, which takes these steps."""
    later = folder / "migrations"
    (later / "versions").mkdir(parents=True)
    for script in (VERSIONS / "versions").glob("0*.py"):
        (later / "versions" / script.name).write_text(script.read_text())
    (later / "versions" / "9999_later.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = '9999', '{migrations.LATEST}'\n"
        "def upgrade():\n" + "".join(f"    {step}\n" for step in steps)
    )
    return later


def test_a_stored_example_is_upgraded(store: Store, study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A later version, made up here, adds a column: what an earlier one stored stays, and reads go on."""
    store.evaluations.add(plain(store, study), np.array([0.2, 0.3]), COLOURS, "val", outcome(0.7))
    store.close()
    later = later_version(
        tmp_path, "op.add_column('studies', sa.Column('colour', sa.Text, nullable=False, server_default='blue'))"
    )
    known = migrations.LATEST
    monkeypatch.setattr(migrations, "LATEST", "9999")
    monkeypatch.setattr(migrations, "__file__", str(later / "__init__.py"))
    for _ in range(2):  # the second time there is nothing to do
        upgraded = Store(store.folder)
        assert upgraded.studies.get(study.id).name == "Tiny"
        assert upgraded.evaluations.measured(plain(upgraded, study), np.array([0.2, 0.3]), "val") == {COLOURS: 0.7}
        upgraded.close()
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("SELECT colour FROM studies").fetchall() == [("blue",)]
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    connection.close()
    # And the version before refuses what the later one wrote.
    monkeypatch.undo()
    assert known == migrations.LATEST
    with pytest.raises(StudyError, match=rf"written by a newer mapmerge \(format 9999, this one knows {known}\)"):
        Store(store.folder)


def test_a_migration_that_fails_changes_nothing(
    store: Store, study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    store.close()
    later = later_version(
        tmp_path, "op.add_column('studies', sa.Column('colour', sa.Text))", "op.execute('SELECT nothing')"
    )
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "LATEST", "9999")
        patch.setattr(migrations, "__file__", str(later / "__init__.py"))
        with pytest.raises(StudyError, match=r"can't be opened .*nothing"):
            Store(store.folder)
    assert Store(store.folder).studies.get(study.id).name == "Tiny"


def test_a_database_of_something_else_is_left_alone(tmp_path: Path):
    path = tmp_path / "mapmerge.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE studies (id INTEGER, spec TEXT)")
    connection.close()
    with pytest.raises(StudyError, match="a database of something else"):
        Store(tmp_path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("studies",)]
    connection.close()


def test_processes_that_open_a_new_database_at_once_make_it_once(tmp_path: Path):
    code = "import sys; from mapmerge_core.studies.store import Store; print(len(Store(sys.argv[1]).studies.all()))"
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    assert [child.communicate()[0].strip() for child in children] == ["0"] * 3


def test_opening_a_database_that_is_up_to_date_needs_no_alembic(store: Store):
    code = (
        "import sys; from mapmerge_core.studies.store import Store; Store(sys.argv[1]).studies.all(); "
        "print([name for name in sys.modules if name.split('.')[0] in ('alembic', 'torch')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"


def test_the_tables_are_postgresqls_too():
    for table in metadata.sorted_tables:
        assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
