"""What is stored comes back, once, and can be read while it is written."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.tasks.metric import Outcome

from mapmerge_core.errors import PointError, StudyError
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.store.store import Store, home

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.rows import StudyRow


def outcome(value: float, seconds: float = 0.25) -> Outcome:
    return Outcome(value=value, n_examples=10, per_example=np.packbits([1, 0, 1]).tobytes(), seconds=seconds)


def test_a_study_comes_back_as_it_was_kept(store: Store, spec: StudySpec):
    before = datetime.now(UTC)
    study = Store(store.folder).study(store.create_study("  My   study ", spec).id)
    assert study.name == "My study"
    assert study.spec == spec
    assert study.created.tzinfo is not None
    assert timedelta(0) <= study.created - before < timedelta(seconds=10)
    assert (study.n_points, study.n_evaluations, study.n_picks, study.status) == (0, 0, 0, None)
    assert [source.role for source in study.sources][:2] == ["pretrained", "architecture"]


def test_names_are_unique_and_readable(store: Store, spec: StudySpec):
    assert [store.create_study(None, spec).name for _ in range(3)] == [
        "Colours + Stripes",
        "Colours + Stripes (2)",
        "Colours + Stripes (3)",
    ]
    _, second, _ = sorted(store.studies(), key=lambda row: row.id)
    assert store.find_study(second.name).id == second.id
    assert store.find_study(str(second.id)).name == second.name
    with pytest.raises(StudyError, match="no study 'Third'"):
        store.find_study("Third")


def test_an_evaluation_is_stored_once_whatever_the_sign_of_zero(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=5))
    assert store.add_evaluation(study.id, np.array([0.0, 0.5]), "Colours", "val", outcome(0.7), run_id=run.id)
    assert not store.add_evaluation(study.id, np.array([-0.0, 0.5]), "Colours", "val", outcome(0.1))
    assert store.add_evaluation(study.id, np.array([0.0, 0.5]), "Colours", "test", outcome(0.6))
    [row] = store.evaluations(study.id)
    assert (row.value, row.run_id, row.task, row.n_examples) == (0.7, run.id, "Colours", 10)
    np.testing.assert_array_equal(np.unpackbits(np.frombuffer(row.per_example, np.uint8))[:3], [1, 0, 1])
    assert store.measured(study.id, np.array([-0.0, 0.5]), "val") == {"Colours": 0.7}
    assert store.measured(study.id, np.array([0.0, 0.5]), "test") == {"Colours": 0.6}


def test_the_database_itself_refuses_a_second_measurement(store: Store, study: StudyRow):
    store.add_evaluation(study.id, np.array([0.2, 0.3]), "Colours", "val", outcome(0.7))
    connection = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute(
            "INSERT INTO evaluations "
            "(study_id, c, task, split, value, n_examples, correct, seconds, created) "
            "SELECT study_id, c, task, split, 0, 1, x'', 0, created FROM evaluations"
        )
    [[blob]] = connection.execute("SELECT c FROM evaluations")
    connection.close()
    assert blob == np.array([0.2, 0.3], dtype="<f8").tobytes()


def test_the_table_has_a_row_for_each_c_and_nan_where_nothing_was_measured(store: Store, study: StudyRow):
    a, b = np.array([0.1, 0.2]), np.array([1 / 3, 1.0])
    store.add_evaluation(study.id, b, "Stripes", "val", outcome(0.5))
    store.add_evaluation(study.id, a, "Colours", "val", outcome(0.25))
    store.add_evaluation(study.id, b, "Colours", "val", outcome(0.75))
    C, Y = store.table(study.id)
    np.testing.assert_array_equal(C, [b, a])
    np.testing.assert_array_equal(Y, [[0.75, 0.5], [0.25, np.nan]])
    C, Y = store.table(study.id, "test")
    assert C.shape == Y.shape == (0, 2)


def test_counts_follow_the_evaluations(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=5, seed=9, low=0.1, high=0.4, design="sobol"))
    prints = {store.fingerprint(study.id)}
    for value in (0.1, 0.2):
        for task in ("Colours", "Stripes"):
            store.add_evaluation(study.id, np.array([value, 0]), task, "val", outcome(0.5), run_id=run.id)
            prints.add(store.fingerprint(study.id))
    assert len(prints) == 5
    store.add_evaluation(study.id, np.array([0.1, 0]), "Colours", "test", outcome(0.5))
    assert store.fingerprint(study.id) in prints  # measuring on the test split changes no front
    store.create_run(study.id, RunSettings(points=5))
    assert store.fingerprint(study.id) in prints
    assert store.evaluations(study.id, "test")
    now = store.study(study.id)
    assert (now.n_points, now.n_evaluations, now.status) == (2, 5, "queued")
    assert now.changed > study.changed
    row = store.run(run.id)
    assert (row.n_evaluations, row.seconds) == (4, 1.0)
    assert row.settings == RunSettings(points=5, seed=9, low=0.1, high=0.4, design="sobol")


@pytest.mark.parametrize("c", [[0.1], [0.1, 0.2, 0.3], [0.1, np.nan], [[0.1, 0.2]]])
def test_coefficients_that_do_not_fit_are_refused(store: Store, study: StudyRow, c: list):
    with pytest.raises(PointError, match="2 task vectors"):
        store.add_evaluation(study.id, np.array(c), "Colours", "val", outcome(0.5))
    assert store.evaluations(study.id) == []


def test_unknown_tasks_splits_studies_runs_and_picks_are_refused(store: Store, study: StudyRow):
    c = np.zeros(2)
    for call, sentence in [
        (lambda: store.add_evaluation(study.id, c, "Light", "val", outcome(0.5)), "no task 'Light'"),
        (lambda: store.add_evaluation(study.id, c, "Colours", "train", outcome(0.5)), "split 'train'"),
        (lambda: store.add_evaluation(99, c, "Colours", "val", outcome(0.5)), "no study 99"),
        (lambda: store.study(99), "no study 99"),
        (lambda: store.create_run(99, RunSettings(points=5)), "no study 99"),
        (lambda: store.run(99), "no run 99"),
        (lambda: store.pick(99), "no pick 99"),
    ]:
        with pytest.raises(StudyError, match=sentence):
            call()


@pytest.mark.parametrize("number", [2**63, 10**30, -1, -(2**70)])
def test_numbers_that_no_id_can_have_are_not_found(store: Store, study: StudyRow, number: int):
    for call, sentence in [
        (lambda: store.study(number), "no study"),
        (lambda: store.run(number), "no run"),
        (lambda: store.claim_run(number), "no run"),
        (lambda: store.pick(number), "no pick"),
        (lambda: store.update_pick(number, name="x"), "no pick"),
        (lambda: store.find_study(str(number)), "no study"),
        (lambda: store.create_run(number, RunSettings(points=5)), "no study"),
        (lambda: store.add_pick(number, np.zeros(2), {}), "no study"),
    ]:
        with pytest.raises(StudyError, match=f"There is {sentence}"):
            call()
    with pytest.raises(StudyError, match="no study"):
        store.find_study("9" * 5000)
    assert store.studies()[0].id == study.id


def test_picks_come_back_and_change(store: Store, study: StudyRow):
    how = {"kind": "preference", "weights": {"Colours": 2.0, "Stripes": 1.0}}
    pick = store.add_pick(study.id, np.array([0.3, 0.4]), how)
    other = store.add_pick(study.id, np.array([0.5, 0.6]), {"kind": "point"}, name="Other", shortlisted=True)
    assert [row.id for row in store.picks(study.id)] == [pick.id, other.id]
    changed = store.update_pick(pick.id, name="Mine", shortlisted=True, exported=Path("/models/mine.safetensors"))
    assert (changed.name, changed.shortlisted, changed.how) == ("Mine", True, how)
    assert changed.exported == Path("/models/mine.safetensors")
    np.testing.assert_array_equal(changed.c, [0.3, 0.4])
    assert store.update_pick(pick.id, shortlisted=False).name == "Mine"


def test_deleting_a_study_leaves_nothing_behind_and_its_number_is_not_used_again(
    store: Store, study: StudyRow, spec: StudySpec
):
    run = store.create_run(study.id, RunSettings(points=5))
    store.add_evaluation(study.id, np.zeros(2), "Colours", "val", outcome(0.5), run_id=run.id)
    store.add_pick(study.id, np.zeros(2), {"kind": "point"})
    store.delete_study(study.id)
    connection = sqlite3.connect(store.path)
    for table in ("studies", "runs", "evaluations", "picks"):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
    connection.close()
    assert store.create_study("Next", spec).id > study.id


def test_a_claimed_run_belongs_to_one_worker(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=5))
    claim = store.claim_run(run.id)
    with pytest.raises(StudyError, match=f"Run {run.id} is already going on"):
        store.claim_run(run.id)
    # Another process is refused too, and doesn't take the run for one that was left behind.
    code = (
        "import sys\n"
        "from mapmerge_core.studies.store.store import Store\n"
        "from mapmerge_core.errors import StudyError\n"
        "store = Store(sys.argv[1])\n"
        "print(len(store.recover()))\n"
        "try: store.claim_run(int(sys.argv[2]))\n"
        "except StudyError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(store.folder), str(run.id)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.stdout.split("\n")[0] == "0"
    assert "already going on" in result.stdout
    with pytest.raises(StudyError, match="stop it before deleting"):
        store.delete_study(study.id)
    # Released in another thread than it was claimed in.
    thread = threading.Thread(target=claim.release)
    thread.start()
    thread.join()
    store.claim_run(run.id).release()
    store.set_status(run.id, "done")
    with pytest.raises(StudyError, match="is done: start a new run"):
        store.claim_run(run.id)


def test_a_short_look_at_a_lock_does_not_refuse_the_run(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=5))
    lock = store.claim_run(run.id)
    thread = threading.Timer(0.05, lock.release)
    thread.start()
    store.claim_run(run.id).release()
    thread.join()


def test_two_databases_in_a_folder_lock_their_runs_apart(store: Store, spec: StudySpec):
    other = Store(url=f"sqlite:///{store.folder / 'other.db'}")
    claims = []
    for each in (store, other):
        run = each.create_run(each.create_study("Same", spec).id, RunSettings(points=5))
        assert run.id == 1
        claims.append(each.claim_run(run.id))
    for claim in claims:
        claim.release()


def test_a_folder_name_may_hold_any_character(tmp_path: Path, spec: StudySpec):
    folder = tmp_path / "a?b=c #%20&"
    Store(folder).create_study("Kept", spec)
    assert (folder / "mapmerge.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert Store(folder).find_study("Kept").id == 1


def test_a_database_that_cannot_be_written_says_so(store: Store, study: StudyRow):
    with sqlite3.connect(store.path) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON picks BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    connection.close()
    with pytest.raises(StudyError, match=r"mapmerge\.db can't be read or written \(disk is full\)"):
        store.add_pick(study.id, np.zeros(2), {"kind": "point"})


def test_statuses_and_times_are_recorded(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=5))
    assert (run.status, run.started, run.finished) == ("queued", None, None)
    store.set_status(run.id, "running")
    started = store.run(run.id).started
    assert started is not None
    store.set_status(run.id, "failed", "The disk is full.")
    failed = store.run(run.id)
    assert (failed.status, failed.error) == ("failed", "The disk is full.")
    assert failed.finished is not None
    assert failed.finished >= started
    store.set_status(run.id, "running")
    again = store.run(run.id)
    assert (again.started, again.finished, again.error) == (started, None, None)


def test_runs_left_behind_are_recovered_as_interrupted(store: Store, study: StudyRow):
    left, stopped, going_on = (store.create_run(study.id, RunSettings(points=5)) for _ in range(3))
    store.set_status(left.id, "running")
    store.set_status(stopped.id, "stopped")
    claim = store.claim_run(going_on.id)
    assert [row.id for row in Store(store.folder).recover()] == [left.id]
    assert [row.status for row in store.runs(study.id)] == ["interrupted", "stopped", "queued"]
    claim.release()


def test_readers_and_writers_do_not_wait_for_each_other(store: Store, study: StudyRow):
    assert sqlite3.connect(store.path).execute("PRAGMA journal_mode").fetchone() == ("wal",)
    problems: list[BaseException] = []
    sizes: list[int] = []
    ended = threading.Event()

    def read() -> None:
        try:
            while not ended.is_set():
                sizes.append(len(store.evaluations(study.id)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must see it
            problems.append(error)

    def write(column: int) -> None:
        own = Store(store.folder)
        try:
            for i in range(40):
                c = np.zeros(2)
                c[column] = i + 1
                own.add_evaluation(study.id, c, "Colours", "val", outcome(0.5))
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
    assert len(store.evaluations(study.id)) == 80
    # A long reading transaction doesn't stop a writer either.
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN")
    holder.execute("SELECT count(*) FROM evaluations").fetchone()
    started = time.monotonic()
    store.add_evaluation(study.id, np.zeros(2), "Stripes", "val", outcome(0.5))
    assert time.monotonic() - started < 5
    assert holder.execute("SELECT count(*) FROM evaluations").fetchone() == (80,)
    holder.close()


def test_ten_thousand_evaluations_are_read_quickly(store: Store, study: StudyRow):
    moment = "2026-01-01 00:00:00.000000"
    rows = [
        (study.id, np.array([i, 0.5]).tobytes(), task, "val", 0.5, 1, b"", 0.1, moment)
        for i in range(5000)
        for task in ("Colours", "Stripes")
    ]
    with sqlite3.connect(store.path) as connection:
        connection.executemany(
            "INSERT INTO evaluations "
            "(study_id, c, task, split, value, n_examples, correct, seconds, created) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
    connection.close()
    started = time.process_time()
    assert len(store.evaluations(study.id)) == 10_000
    assert store.table(study.id)[1].shape == (5000, 2)
    assert time.process_time() - started < 2


def test_a_newer_file_is_left_alone(store: Store):
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StudyError, match=r"written by a newer mapmerge \(format 99"):
        Store(store.folder)


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
    code = "from mapmerge_core.studies.store.store import home; print(home())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert Path(result.stdout.strip()).name == "mapmerge"
