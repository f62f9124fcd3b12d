"""What is stored comes back, whoever opened the database, and says so where it can't be kept."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from mapmerge_core.errors import StudyError
from mapmerge_core.merges.base import TrainingPoint
from mapmerge_core.studies.config import RunConfig, StudyConfig
from mapmerge_core.studies.store import Store, Study, home
from tests.studies.conftest import tiny_config
from tests.studies.store.helpers import COLOURS, STRIPES, outcome, plain

ROOT = Path(__file__).parents[3]


def test_a_study_comes_back_as_it_was_kept(store: Store, config: StudyConfig):
    before = datetime.now(UTC)
    study = Store(store.folder).studies.get(store.studies.create("  My   study ", config).id)
    assert study.name == "My study"
    assert study.config == config
    assert study.created.tzinfo is not None
    assert timedelta(0) <= study.created - before
    assert (study.n_points, study.n_evaluations, study.n_picks, study.status) == (0, 0, 0, None)
    assert {"pretrained", "architecture"} < {source.role for source in study.sources}
    assert study.changed == study.created


def test_names_are_unique_and_readable(store: Store, config: StudyConfig):
    assert [store.studies.create(None, config).name for _ in range(3)] == [
        "Colours + Stripes",
        "Colours + Stripes (2)",
        "Colours + Stripes (3)",
    ]
    _, second, _ = sorted(store.studies.all(), key=lambda study: study.id)
    assert store.studies.find(second.name).id == second.id
    assert store.studies.find(str(second.id)).name == second.name
    with pytest.raises(StudyError, match="no study 'Third'"):
        store.studies.find("Third")


def test_a_study_is_renamed_to_a_name_of_its_own(store: Store, study: Study, config: StudyConfig):
    other = store.studies.create("Other", config)
    assert store.studies.rename(study.id, "  Flags  and stripes ").name == "Flags and stripes"
    assert store.studies.rename(study.id, "Flags and stripes").id == study.id
    with pytest.raises(StudyError, match="a study 'Other' already"):
        store.studies.rename(study.id, "Other")
    with pytest.raises(StudyError, match="needs a name"):
        store.studies.rename(other.id, "  ")
    with pytest.raises(StudyError, match="no study 99"):
        store.studies.rename(99, "Mine")
    assert {row.name for row in store.studies.all()} == {"Flags and stripes", "Other"}


def test_the_study_that_changed_last_is_listed_first(store: Store, study: Study, config: StudyConfig):
    other = store.studies.create("Other", config)
    assert [row.id for row in store.studies.all()] == [other.id, study.id]
    store.evaluations.add(plain(store, study), np.zeros(2), COLOURS, "val", outcome(0.5))
    assert [row.id for row in store.studies.all()] == [study.id, other.id]


def test_what_is_not_there_is_said_to_be_missing(store: Store, study: Study):
    x, first = np.zeros(2), plain(store, study)
    for call, sentence in [
        (lambda: store.evaluations.add(first, x, "Light/accuracy", "val", outcome(0.5)), "no objective 'Light/acc"),
        (lambda: store.evaluations.add(first, x, COLOURS, "train", outcome(0.5)), "split 'train'"),
        (lambda: store.evaluations.add(99, x, COLOURS, "val", outcome(0.5)), "no merge 99"),
        (lambda: store.evaluations.table(99), "no merge 99"),
        (lambda: store.studies.get(99), "no study 99"),
        (lambda: store.runs.create(99, RunConfig()), "no study 99"),
        (lambda: store.merges.add(99, "ties", {}), "no study 99"),
        (lambda: store.runs.get(99), "no run 99"),
        (lambda: store.picks.get(99), "no pick 99"),
        (lambda: store.picks.add(99, x, {"kind": "point"}), "no merge 99"),
        (lambda: store.merges.get(99), "no merge 99"),
    ]:
        with pytest.raises(StudyError, match=sentence):
            call()


@pytest.mark.parametrize("number", [2**31, 2**63, 10**30, -1, -(2**70)])
def test_numbers_that_no_id_can_have_are_not_found(store: Store, study: Study, number: int):
    for call, sentence in [
        (lambda: store.studies.get(number), "no study"),
        (lambda: store.studies.find(str(number)), "no study"),
        (lambda: store.runs.create(number, RunConfig()), "no study"),
        (lambda: store.runs.get(number), "no run"),
        (lambda: store.runs.claim(number), "no run"),
        (lambda: store.picks.get(number), "no pick"),
        (lambda: store.picks.update(number, name="x"), "no pick"),
        (lambda: store.picks.add(number, np.zeros(2), {}), "no merge"),
        (lambda: store.merges.get(number), "no merge"),
    ]:
        with pytest.raises(StudyError, match=f"There is {sentence}"):
            call()
    with pytest.raises(StudyError, match="no study"):
        store.studies.find("9" * 5000)
    assert store.runs.all(number) == []
    assert store.studies.all()[0].id == study.id


def test_deleting_a_study_leaves_nothing_behind_and_its_number_is_not_used_again(
    store: Store, study: Study, config: StudyConfig
):
    other = store.studies.create("Other", config)
    run = store.runs.create(study.id, RunConfig(merge="regmean"))
    for merge_id in (run.merge_id, plain(store, other)):
        x = store.merges.get(merge_id).space.default
        store.evaluations.add(merge_id, x, COLOURS, "val", outcome(0.5))
        store.picks.add(merge_id, x, {"kind": "point"})
        store.training.add(merge_id, [TrainingPoint(1, 0.5, np.ones(2), 1.0)])
        for file in (store.merges.state_file(merge_id), store.merges.checkpoint_file(merge_id)):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"weights")
    store.studies.delete(study.id)
    assert not store.merges.state_file(run.merge_id).exists()
    assert not store.merges.checkpoint_file(run.merge_id).exists()
    assert store.merges.state_file(plain(store, other)).exists()
    with pytest.raises(StudyError, match=f"no study {study.id}"):
        store.studies.delete(study.id)
    connection = sqlite3.connect(store.path)
    for table, left in {
        "studies": 1, "merges": 1, "runs": 0, "evaluations": 1, "picks": 1, "training_steps": 1
    }.items():  # fmt: skip
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (left,)  # noqa: S608
    connection.close()
    store.studies.delete(other.id)
    assert store.studies.create("Next", config).id > other.id


def test_nothing_is_kept_for_a_study_that_was_deleted_meanwhile(store: Store, study: Study):
    merge = store.merges.add(study.id, "regmean", {})
    x = merge.space.default
    store.evaluations.add(merge.id, x, COLOURS, "val", outcome(0.7))
    other = Store(store.folder)
    other.studies.delete(study.id)
    gone = "The study was deleted in the meantime"
    with pytest.raises(StudyError, match=gone):
        store.evaluations.add(merge.id, x, STRIPES, "val", outcome(0.7))
    with pytest.raises(StudyError, match=gone):
        store.training.add(merge.id, [TrainingPoint(1, 0.5, np.ones(2), 1.0)])
    # What a preparation that took an hour has just written goes, too.
    state = store.merges.state_file(merge.id)
    state.parent.mkdir(exist_ok=True)
    state.write_bytes(b"weights")
    with pytest.raises(StudyError, match=gone):
        store.merges.set_prepared(merge.id, 3600.0, 0)
    assert not state.exists()
    other.close()


def test_databases_that_share_a_data_folder_keep_their_files_and_locks_apart(store: Store, config: StudyConfig):
    stores = [store, *(Store(store.folder, url=f"sqlite:///{store.folder / name}.db") for name in "ab")]
    assert store.merges.state_file(1) == store.folder / "merges" / "1.safetensors"
    assert len({place.merges.state_file(1) for place in stores}) == 3
    claims = []
    for each in stores:
        run = each.runs.create(each.studies.create("Same", config).id, RunConfig())
        assert run.id == 1
        claims.append(each.runs.claim(run.id))
    for claim in claims:
        claim.release()
    for other in stores[1:]:
        other.close()


def test_a_folder_name_may_hold_any_character(tmp_path: Path, config: StudyConfig):
    folder = tmp_path / "a?b=c #%20&"
    Store(folder).studies.create("Kept", config)
    assert (folder / "mapmerge.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert Store(folder).studies.find("Kept").id == 1


def test_a_database_that_cannot_be_written_says_so(store: Store, study: Study):
    with sqlite3.connect(store.path) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON picks BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    connection.close()
    with pytest.raises(StudyError, match=r"mapmerge\.db can't be read or written \(disk is full\)"):
        store.picks.add(plain(store, study), np.zeros(2), {"kind": "point"})


def test_readers_and_writers_do_not_wait_for_each_other(store: Store, study: Study):
    assert sqlite3.connect(store.path).execute("PRAGMA journal_mode").fetchone() == ("wal",)
    merge_id = plain(store, study)
    problems: list[BaseException] = []
    sizes: list[int] = []
    ended = threading.Event()

    def read() -> None:
        try:
            while not ended.is_set():
                sizes.append(len(store.evaluations.rows(merge_id)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must see it
            problems.append(error)

    def write(column: int) -> None:
        own = Store(store.folder)
        try:
            for i in range(40):
                x = np.zeros(2)
                x[column] = i + 1
                own.evaluations.add(merge_id, x, COLOURS, "val", outcome(0.5))
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(k,)) for k in range(2)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()
    assert problems == []
    assert sizes == sorted(sizes)
    assert len(store.evaluations.rows(merge_id)) == 80
    # A long reading transaction doesn't stop a writer either, which would wait for half a minute.
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN")
    holder.execute("SELECT count(*) FROM evaluations").fetchone()
    store.evaluations.add(merge_id, np.zeros(2), STRIPES, "val", outcome(0.5))
    assert holder.execute("SELECT count(*) FROM evaluations").fetchone() == (80,)
    holder.close()


def test_kill_9_loses_no_evaluation_that_was_stored(store: Store, study: Study):
    """The child says that a value is stored before it goes on, and dies at once when it is killed."""
    code = (
        "import sys, numpy as np\n"
        "from mapmerge_core.studies.store import Store\n"
        "from mapmerge_core.tasks.outcome import Outcome\n"
        "store, i = Store(sys.argv[1]), 0\n"
        "while True:\n"
        "    i += 1\n"
        "    store.evaluations.add(int(sys.argv[2]), np.array([i, 0.5]), sys.argv[3], 'val', "
        "Outcome(0.5, 1, b'', 0.1))\n"
        "    print(i, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder), str(plain(store, study)), COLOURS],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(20)]
    child.kill()
    said += [int(line) for line in child.stdout.read().split()]
    child.wait()
    kept = [int(row.x[0]) for row in store.evaluations.rows(plain(store, study))]
    assert kept[: len(said)] == said
    assert len(kept) <= len(said) + 1


def test_a_file_that_is_no_database_says_so(tmp_path: Path):
    (tmp_path / "mapmerge.db").write_bytes(b"not a database, but long enough to be looked at" * 30)
    with pytest.raises(StudyError, match=r"can't be opened .*not a database"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="set MAPMERGE_HOME to another"):
        Store(tmp_path / "file" / "home")


def test_settings_say_where_the_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "a"))
    monkeypatch.delenv("MAPMERGE_DATABASE", raising=False)
    assert home() == tmp_path / "a"
    assert Store().path == tmp_path / "a" / "mapmerge.db"
    monkeypatch.setenv("MAPMERGE_DATABASE", f"sqlite:///{tmp_path / 'b' / 'other.db'}")
    assert Store().path == tmp_path / "b" / "other.db"
    assert (tmp_path / "b" / "other.db").exists()
    for url in ("postgresql://localhost/x", "sqlite://", "nonsense"):
        with pytest.raises(StudyError, match="doesn't name an SQLite file"):
            Store(url=url)


def test_a_home_is_found_without_settings():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAPMERGE")}
    code = "from mapmerge_core.studies.store import home; print(home())"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert Path(result.stdout.strip()).name == "mapmerge"


def test_studies_are_listed_by_as_many_queries_however_many_there_are(store: Store, tiny_zoo: Path):
    """Home shows all studies: what it reads mustn't grow with each."""
    statements: list[str] = []
    connection = store._database._engine
    from sqlalchemy import event

    event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
    counts = []
    for name in ("One", "Two"):
        study = store.studies.create(name, tiny_config(tiny_zoo))
        store.evaluations.add(plain(store, study), np.zeros(2), COLOURS, "val", outcome(0.5))
        statements.clear()
        store.studies.all()
        counts.append(len(statements))
    assert counts[0] == counts[1]
