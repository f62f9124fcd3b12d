"""Baselines are kept once, with what was measured of them, and go with their study."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.tasks.metric import Outcome

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.rows import StudyRow


def outcome(value: float) -> Outcome:
    return Outcome(value=value, n_examples=10, per_example=b"\x00\x00", seconds=0.1)


def test_a_baseline_is_kept_with_its_coefficients(store: Store, study: StudyRow):
    layers = np.arange(6.0).reshape(3, 2)
    made = store.add_baseline(study.id, "layered", {"steps": 5}, layers=layers, evaluations=4, seconds=1.5)
    plain = store.add_baseline(study.id, "soup", {}, c=np.array([0.5, 0.5]))
    np.testing.assert_array_equal(store.baseline(made.id).layers, layers)
    assert store.baseline(made.id).c is None
    np.testing.assert_array_equal(store.baseline(plain.id).c, [0.5, 0.5])
    assert (made.settings, made.evaluations, made.seconds) == ({"steps": 5}, 4, 1.5)
    assert [row.name for row in store.baselines(study.id)] == ["layered", "soup"]


def test_the_same_settings_are_one_baseline_and_others_another(store: Store, study: StudyRow):
    first = store.add_baseline(study.id, "ties", {"keep": 0.2, "scale": 1.0}, seconds=1.0)
    again = store.add_baseline(study.id, "ties", {"scale": 1.0, "keep": 0.2}, seconds=9.0)
    other = store.add_baseline(study.id, "ties", {"keep": 0.3, "scale": 1.0})
    assert (again.id, again.seconds) == (first.id, 1.0)
    assert other.id != first.id
    assert store.find_baseline(study.id, "ties", {"scale": 1.0, "keep": 0.3}).id == other.id
    assert store.find_baseline(study.id, "ties", {"keep": 0.4, "scale": 1.0}) is None


def test_what_was_measured_stays_what_it_was(store: Store, study: StudyRow):
    ties = store.add_baseline(study.id, "ties", {})
    assert store.add_baseline_evaluation(ties.id, "Colours", "test", outcome(0.7))
    assert not store.add_baseline_evaluation(ties.id, "Colours", "test", outcome(0.9))
    assert store.add_baseline_evaluation(ties.id, "Colours", "val", outcome(0.6))
    assert store.baseline_measured(ties.id, "test") == {"Colours": 0.7}
    assert store.baseline_measured(ties.id, "val") == {"Colours": 0.6}


def test_a_deleted_study_takes_its_baselines_and_their_files_along(store: Store, study: StudyRow):
    fisher = store.add_baseline(study.id, "fisher", {})
    store.add_baseline_evaluation(fisher.id, "Colours", "test", outcome(0.7))
    file = store.baseline_file(fisher.id)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    store.delete_study(study.id)
    assert not file.exists()
    assert store.baseline_measured(fisher.id, "test") == {}
    with pytest.raises(StudyError, match="no baseline"):
        store.baseline(fisher.id)


def test_nothing_is_kept_for_a_study_that_was_deleted_meanwhile(store: Store, study: StudyRow):
    ties = store.add_baseline(study.id, "ties", {})
    written = store.new_baseline_file()
    written.parent.mkdir(parents=True)
    written.write_bytes(b"weights")
    store.delete_study(study.id)
    with pytest.raises(StudyError, match="The study was deleted in the meantime"):
        store.add_baseline(study.id, "fisher", {}, file=written)
    with pytest.raises(StudyError, match="The study was deleted in the meantime"):
        store.add_baseline_evaluation(ties.id, "Colours", "test", outcome(0.7))
    assert list(written.parent.iterdir()) == [written]


def test_databases_that_share_a_data_folder_keep_their_models_apart(store: Store, spec: StudySpec, tmp_path: Path):
    stores = [store, *(Store(store.folder, url=f"sqlite:///{tmp_path}/{name}.db") for name in "ab")]
    for value, each in enumerate(stores):
        written = each.new_baseline_file()
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_bytes(bytes([value]))
        row = each.add_baseline(each.create_study("Tiny", spec).id, "fisher", {}, file=written)
        assert row.id == 1
    assert [each.baseline_file(1).read_bytes() for each in stores] == [b"\0", b"\1", b"\2"]
    for other in stores[1:]:
        other.close()


def test_what_a_killed_process_left_is_removed_in_time(store: Store):
    dead, writing = store.new_baseline_file(), store.new_baseline_file()
    kept = store.baseline_file(1)
    dead.parent.mkdir(parents=True)
    for file in (dead, writing, kept):
        file.write_bytes(b"weights")
    long_ago = time.time() - 2 * 24 * 60 * 60
    for file in (dead, kept):
        os.utime(file, (long_ago, long_ago))
    store.new_baseline_file()
    assert set(dead.parent.iterdir()) == {writing, kept}


def test_a_database_from_before_there_were_baselines_gains_them(store: Store, study: StudyRow, tmp_path: Path):
    store.close()
    path = tmp_path / "home" / "mapmerge.db"
    with sqlite3.connect(path) as connection:
        connection.executescript("DROP TABLE baseline_evaluations; DROP TABLE baselines; PRAGMA user_version = 1;")
    connection.close()
    again = Store(tmp_path / "home")
    assert again.study(study.id).name == "Tiny"
    assert again.add_baseline(study.id, "soup", {}, c=np.array([0.5, 0.5])).name == "soup"
    again.close()
