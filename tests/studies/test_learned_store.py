"""What is kept of learned sets: measurements once, how training went, and picks; it goes with its study."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.merges._training_settings import Training, TrainingPoint
from mapmerge_core.tasks.metric import Outcome

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.store.store import Store
from mapmerge_core.studies.store.tables import SCHEMA_VERSION

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.rows import RunRow, StudyRow


def outcome(value: float, n: int = 60, seconds: float = 0.5) -> Outcome:
    return Outcome(value=value, n_examples=n, per_example=b"\x00", seconds=seconds)


def point(step: int, seconds: float = 1.0) -> TrainingPoint:
    return TrainingPoint(step, 0.1 * step, np.array([1.0, 2.0]) * step, seconds)


@pytest.fixture
def run(store: Store, study: StudyRow) -> RunRow:
    """A run of ten steps that have been taken."""
    settings = RunSettings(points=3, training=Training(steps=10, rank=4, personalised=("visual.*",)))
    run = store.create_run(study.id, settings, "pareto_merging")
    store.add_training_points(run.id, [point(5), point(10)])
    return run


def test_a_run_comes_back_as_it_was_asked_for(store: Store, run: RunRow):
    again = Store(store.folder).run(run.id)
    assert (again.method, again.settings, again.status) == ("pareto_merging", run.settings, "queued")
    assert again.settings.training == Training(steps=10, rank=4, personalised=("visual.*",))


def test_a_measurement_is_kept_once_and_for_one_preference(store: Store, run: RunRow):
    # Weights in proportion are one preference.
    assert store.add_learned_evaluation(run.id, np.array([3.0, 1.0]), "Colours", "val", outcome(0.7), 10)
    assert not store.add_learned_evaluation(run.id, np.array([6.0, 2.0]), "Colours", "val", outcome(0.1), 10)
    assert store.learned_measured(run.id, np.array([0.75, 0.25]), "val") == {"Colours": 0.7}
    assert store.learned_measured(run.id, np.array([0.75, 0.25]), "test") == {}
    assert store.add_learned_evaluation(run.id, np.array([0.75, 0.25]), "Colours", "test", outcome(0.6), 10)
    assert store.learned_measured(run.id, np.array([9.0, 3.0]), "test") == {"Colours": 0.6}


def test_the_table_is_in_the_order_of_measuring_with_gaps(store: Store, run: RunRow):
    for gamma, task, value in [
        ([1.0, 0.0], "Stripes", 0.4),
        ([0.25, 0.75], "Colours", 0.5),
        ([1.0, 0.0], "Colours", 0.9),
    ]:
        store.add_learned_evaluation(run.id, np.array(gamma), task, "val", outcome(value), 10)
    gammas, values = store.learned_table(run.id)
    np.testing.assert_array_equal(gammas, [[1, 0], [0.25, 0.75]])
    np.testing.assert_array_equal(values, [[0.9, 0.4], [0.5, np.nan]])
    empty = store.learned_table(run.id, "test")
    assert [array.shape for array in empty] == [(0, 2), (0, 2)]


def test_what_was_measured_on_the_way_is_told_from_the_finished_set(store: Store, run: RunRow):
    gamma = np.array([0.5, 0.5])
    for step, value in [(5, 0.3), (10, 0.8)]:
        assert store.add_learned_evaluation(run.id, gamma, "Colours", "val", outcome(value), step)
    store.add_learned_evaluation(run.id, gamma, "Colours", "test", outcome(0.2), 7)
    assert store.learned_steps(run.id) == [5, 10]
    np.testing.assert_array_equal(store.learned_table(run.id)[1], [[0.8, np.nan]])
    np.testing.assert_array_equal(store.learned_table(run.id, step=5)[1], [[0.3, np.nan]])
    assert store.learned_measured(run.id, gamma, "val") == {"Colours": 0.8}


def test_examples_are_known_by_task(store: Store, run: RunRow):
    store.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Colours", "test", outcome(0.5, n=40), 10)
    store.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Stripes", "test", outcome(0.5, n=7), 10)
    store.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Stripes", "val", outcome(0.5, n=90), 10)
    assert store.learned_examples(run.id, "test") == {"Colours": 40, "Stripes": 7}
    assert store.learned_examples(run.id, "val") == {"Stripes": 90}


def test_steps_taken_again_take_the_place_of_those_that_were_lost(store: Store, run: RunRow):
    store.add_training_points(run.id, [point(10, seconds=7.0), point(15)])
    points = store.training_points(run.id)
    assert [(each.step, each.seconds) for each in points] == [(5, 1.0), (10, 7.0), (15, 1.0)]
    np.testing.assert_array_equal(points[1].f, [10, 20])
    assert points[1].objective == 1.0


def test_a_run_took_its_training_and_its_validation_measurements(store: Store, study: StudyRow, run: RunRow):
    store.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Colours", "val", outcome(0.5), 5)
    store.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Colours", "val", outcome(0.5), 10)
    store.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Colours", "test", outcome(0.5), 10)
    store.add_evaluation(study.id, np.zeros(2), "Colours", "val", outcome(0.5), run_id=run.id)
    again = store.run(run.id)
    assert again.n_evaluations == 3
    assert again.seconds == pytest.approx(2 * 1.0 + 3 * 0.5)


def test_a_study_counts_its_learned_sets_too(store: Store, study: StudyRow, run: RunRow):
    before = store.study(study.id)
    store.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Colours", "val", outcome(0.5), 10)
    store.add_learned_pick(run.id, np.array([1.0, 0.0]), {"kind": "preference"})
    after = store.study(study.id)
    assert (before.n_evaluations, after.n_evaluations) == (0, 1)
    assert (before.n_picks, after.n_picks, after.n_points) == (0, 1, 0)
    assert after.changed > before.changed


def test_anchors_alone_sample_no_box(store: Store, study: StudyRow, run: RunRow):
    for c in np.eye(3, 2, k=-1):
        store.add_evaluation(study.id, c, "Colours", "val", outcome(0.5), run_id=run.id)
    other = store.create_run(study.id, RunSettings(points=9, low=0.1, high=0.6))
    store.add_evaluation(study.id, np.array([0.5, 0.5]), "Colours", "val", outcome(0.5), run_id=other.id)
    assert store.sampled_box(study.id) == (0.1, 0.6)


def test_picks_are_kept_renamed_and_exported(store: Store, study: StudyRow, run: RunRow):
    rule = {"kind": "rule", "text": "all >= 60%, maximize Colours"}
    first = store.add_learned_pick(run.id, np.array([1.0, 3.0]), rule)
    second = store.add_learned_pick(run.id, np.array([1.0, 0.0]), {"kind": "point"}, name="Edge")
    np.testing.assert_array_equal(first.gamma, [0.25, 0.75])
    assert not first.gamma.flags.writeable
    assert (first.study_id, first.run_id, first.how, first.name) == (study.id, run.id, rule, "")
    path = store.folder / "model.safetensors"
    changed = store.update_learned_pick(first.id, name="Mine", shortlisted=True, exported=path)
    assert (changed.name, changed.shortlisted, changed.exported) == ("Mine", True, path)
    assert store.update_learned_pick(first.id, shortlisted=False).name == "Mine"
    assert [pick.id for pick in store.learned_picks(study.id)] == [first.id, second.id]
    with pytest.raises(StudyError, match="no pick 99 of a learned set"):
        store.update_learned_pick(99, name="x")


@pytest.mark.parametrize(
    ("gamma", "sentence"),
    [
        ([1.0, -0.1], "negative or not finite"),
        ([0.0, 0.0], "Every weight is zero"),
        ([1.0], "over 2 tasks has as many weights"),
        ([np.nan, 1.0], "negative or not finite"),
    ],
)
def test_what_is_no_preference_is_refused(store: Store, run: RunRow, gamma: list[float], sentence: str):
    with pytest.raises(SearchError, match=sentence):
        store.add_learned_pick(run.id, np.array(gamma), {"kind": "point"})
    with pytest.raises(SearchError, match=sentence):
        store.add_learned_evaluation(run.id, np.array(gamma), "Colours", "val", outcome(0.5), 10)
    with pytest.raises(SearchError, match=sentence):
        store.learned_measured(run.id, np.array(gamma), "val")


def test_a_run_that_is_not_there_is_said_to_be_missing(store: Store):
    gamma = np.array([0.5, 0.5])
    for call in (
        lambda: store.learned_table(99),
        lambda: store.learned_measured(99, gamma, "val"),
        lambda: store.add_learned_pick(99, gamma, {"kind": "point"}),
        lambda: store.add_learned_evaluation(99, gamma, "Colours", "val", outcome(0.5), 1),
    ):
        with pytest.raises(StudyError, match="no run 99"):
            call()


def test_a_deleted_study_takes_its_learned_sets_and_their_files_along(
    store: Store, study: StudyRow, spec: StudySpec, run: RunRow
):
    store.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Colours", "val", outcome(0.5), 10)
    pick = store.add_learned_pick(run.id, np.array([1.0, 0.0]), {"kind": "point"})
    other = store.create_run(
        store.create_study("Other", spec).id, RunSettings(points=1, training=Training()), "pareto_merging"
    )
    files = [store.learned_file(run.id), store.training_file(run.id)]
    kept = store.learned_file(other.id)
    kept.parent.mkdir()
    for file in (*files, kept):
        file.write_bytes(b"weights")
    store.delete_study(study.id)
    assert [file.exists() for file in (*files, kept)] == [False, False, True]
    with pytest.raises(StudyError, match=f"no pick {pick.id}"):
        store.learned_pick(pick.id)
    with sqlite3.connect(store.path) as connection:
        left = connection.execute(
            "SELECT (SELECT count(*) FROM training_steps), (SELECT count(*) FROM learned_evaluations), "
            "(SELECT count(*) FROM learned_picks)"
        )
        assert left.fetchone() == (0, 0, 0)
    connection.close()


def test_databases_beside_each_other_keep_their_files_apart(store: Store):
    other = Store(url=f"sqlite:///{store.folder / 'other.db'}")
    assert store.learned_file(1) == store.folder / "learned" / "learned-1.safetensors"
    assert len({place.learned_file(1).parent for place in (store, other)}) == 2
    other.close()


def test_a_database_from_before_gains_what_it_lacks(store: Store, study: StudyRow):
    old = store.create_run(study.id, RunSettings(points=9))
    store.add_evaluation(study.id, np.zeros(2), "Colours", "val", outcome(0.5), run_id=old.id)
    store.close()
    with sqlite3.connect(store.path) as connection:
        for table in ("training_steps", "learned_evaluations", "learned_picks"):
            connection.execute(f"DROP TABLE {table}")
        # Settings as they were written then.
        connection.execute("UPDATE runs SET settings = json_remove(settings, '$.training')")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    again = Store(store.folder)
    assert [run.settings for run in again.runs(study.id)] == [RunSettings(points=9)]
    assert again.study(study.id).n_evaluations == 1
    run = again.create_run(study.id, RunSettings(points=1, training=Training()), "pareto_merging")
    again.add_training_points(run.id, [point(1)])
    assert again.add_learned_evaluation(run.id, np.array([1.0, 0.0]), "Colours", "val", outcome(0.5), 1)
    again.close()
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()
