"""Evaluations are kept once, the best that is known of each, and counted."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import PointError, StudyError
from mapmerge_core.search.spaces import Box
from mapmerge_core.studies.config import RunConfig, StudyConfig
from mapmerge_core.tasks.outcome import Outcome
from tests.studies.store.helpers import COLOURS, INNER, STRIPES, outcome, part, plain

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store, Study

nan = np.nan


def box_of(store: Store, study: Study) -> tuple[list[float], list[float]]:
    region = store.evaluations.regions(study.id)[plain(store, study)]
    assert isinstance(region, Box)
    return region.low.tolist(), region.high.tolist()


def test_an_evaluation_is_stored_once_whatever_the_sign_of_zero(store: Store, study: Study):
    run = store.runs.create(study.id, RunConfig())
    add, merge_id = store.evaluations.add, run.merge_id
    assert add(merge_id, np.array([0.0, 0.5]), COLOURS, "val", outcome(0.7), run_id=run.id)
    assert not add(merge_id, np.array([-0.0, 0.5]), COLOURS, "val", outcome(0.1))
    assert add(merge_id, np.array([0.0, 0.5]), COLOURS, "test", outcome(0.6))
    [row] = store.evaluations.rows(merge_id)
    assert (row.value, row.run_id, row.objective, row.n_examples) == (0.7, run.id, COLOURS, 10)
    assert (row.is_whole, row.split, row.seconds) == (True, "val", 0.25)
    np.testing.assert_array_equal(row.values[:3], [1, 0, 1])
    assert not row.x.flags.writeable
    assert store.evaluations.measured(merge_id, np.array([-0.0, 0.5]), "val") == {COLOURS: 0.7}
    assert store.evaluations.measured(merge_id, np.array([0.0, 0.5]), "test") == {COLOURS: 0.6}


def test_the_same_x_of_another_merge_is_another_model(store: Store, study: Study):
    merges = [plain(store, study), store.merges.add(study.id, "ties", {}).id]
    for value, merge_id in zip((0.4, 0.6), merges, strict=True):
        assert store.evaluations.add(merge_id, INNER, COLOURS, "val", outcome(value))
    assert [store.evaluations.measured(merge_id, INNER, "val") for merge_id in merges] == [
        {COLOURS: 0.4},
        {COLOURS: 0.6},
    ]
    tables = store.evaluations.tables(study.id)
    assert [tables[merge_id].Y[0, 0] for merge_id in merges] == [0.4, 0.6]
    assert store.studies.get(study.id).n_points == 2


def test_a_merge_without_coordinates_is_one_model(store: Store, study: Study):
    merge = store.merges.add(study.id, "adamerging", {})
    assert store.evaluations.add(merge.id, np.empty(0), COLOURS, "test", outcome(0.7))
    assert not store.evaluations.add(merge.id, np.empty(0), COLOURS, "test", outcome(0.9))
    table = store.evaluations.table(merge.id, "test")
    assert table.X.shape == (1, 0)
    np.testing.assert_array_equal(table.Y, [[0.7, nan]])
    np.testing.assert_array_equal(table.at(np.empty(0)), [0.7, nan])


def test_the_database_itself_refuses_a_second_measurement(store: Store, study: Study):
    store.evaluations.add(plain(store, study), INNER, COLOURS, "val", outcome(0.7))
    connection = sqlite3.connect(store.path)
    columns = "merge_id, x, objective, split, value, n_examples, seconds, created, per_example"
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute(f"INSERT INTO evaluations ({columns}) SELECT {columns} FROM evaluations")  # noqa: S608
    [[blob]] = connection.execute("SELECT x FROM evaluations")
    connection.close()
    assert blob == INNER.astype("<f8").tobytes()


@pytest.mark.parametrize("x", [[0.1], [0.1, 0.2, 0.3], [0.1, nan], [0.1, np.inf], [[0.1, 0.2]]])
def test_points_that_do_not_fit_are_refused(store: Store, study: Study, x: list):
    merge_id = plain(store, study)
    for call in (
        lambda: store.evaluations.add(merge_id, np.array(x), COLOURS, "val", outcome(0.5)),
        lambda: store.evaluations.measured(merge_id, np.array(x), "val"),
        lambda: store.evaluations.partial(merge_id, np.array(x)),
    ):
        with pytest.raises(PointError, match="is 2 finite numbers"):
            call()
    assert store.evaluations.rows(merge_id) == []


def test_the_table_has_a_row_for_each_point_and_nan_where_nothing_was_measured(store: Store, study: Study):
    merge_id, a, b = plain(store, study), np.array([0.1, 0.2]), np.array([1 / 3, 1.0])
    store.evaluations.add(merge_id, b, STRIPES, "val", outcome(0.5))
    store.evaluations.add(merge_id, a, COLOURS, "val", outcome(0.25))
    store.evaluations.add(merge_id, b, COLOURS, "val", outcome(0.75))
    table = store.evaluations.table(merge_id)
    np.testing.assert_array_equal(table.X, [b, a])
    np.testing.assert_array_equal(table.Y, [[0.75, 0.5], [0.25, nan]])
    np.testing.assert_array_equal(table.at(a), [0.25, nan])
    np.testing.assert_array_equal(table.at(a + 0.1), [nan, nan])
    empty = store.evaluations.table(merge_id, "test")
    assert empty.X.shape == empty.Y.shape == (0, 2)
    assert store.evaluations.tables(study.id, "test") == {}


def test_counts_follow_the_evaluations(store: Store, study: Study):
    settings = {"points": 9, "seed": 9, "design": "sobol"}
    run = store.runs.create(study.id, RunConfig(method_settings=settings, low=0.1, high=0.4))
    prints = {store.evaluations.fingerprint(study.id)}
    for value in (0.1, 0.2):
        for key in (COLOURS, STRIPES):
            store.evaluations.add(run.merge_id, np.array([value, 0]), key, "val", outcome(0.5), run_id=run.id)
            prints.add(store.evaluations.fingerprint(study.id))
    assert len(prints) == 5
    store.evaluations.add(run.merge_id, np.array([0.1, 0]), COLOURS, "test", outcome(0.5))
    store.runs.create(study.id, RunConfig())
    assert store.evaluations.fingerprint(study.id) in prints  # neither changes a front
    now = store.studies.get(study.id)
    assert (now.n_points, now.n_evaluations, now.status) == (2, 5, "queued")
    assert now.changed > study.changed
    row = store.runs.get(run.id)
    assert (row.n_evaluations, row.seconds) == (4, 1.0)


def test_fingerprints_are_a_studys_own(store: Store, study: Study, config: StudyConfig):
    other = store.studies.create("Other", config)
    before = store.evaluations.fingerprint(study.id)
    store.evaluations.add(plain(store, other), INNER, COLOURS, "val", outcome(0.5))
    assert store.evaluations.fingerprint(study.id) == before


# Parts of a split


def test_a_larger_part_takes_the_place_of_a_smaller_one_and_the_whole_split_of_any(store: Store, study: Study):
    first, second = (store.runs.create(study.id, RunConfig(images=20)).id for _ in range(2))
    merge_id = plain(store, study)

    def add(measured: Outcome, run_id: int | None = None) -> bool:
        return store.evaluations.add(merge_id, INNER, COLOURS, "val", measured, run_id=run_id)

    assert add(part([1, 0] * 10), first)
    assert not add(part([1] * 20))
    assert not add(part([1] * 10))
    row = store.evaluations.partial(merge_id, INNER)[COLOURS]
    assert (row.value, row.n_examples, row.n_total, row.run_id, row.is_whole) == (0.5, 20, 60, first, False)
    assert store.evaluations.measured(merge_id, INNER, "val") == {}
    assert add(part([1, 0, 1, 1] * 10), second)
    row = store.evaluations.partial(merge_id, INNER)[COLOURS]
    assert (row.value, row.n_examples, row.run_id) == (0.75, 40, second)
    np.testing.assert_array_equal(row.values, [True, False, True, True] * 10)
    assert add(outcome(0.7))
    assert store.evaluations.partial(merge_id, INNER) == {}
    assert not add(part([1] * 50))
    assert not add(outcome(0.1))
    assert store.evaluations.measured(merge_id, INNER, "val") == {COLOURS: 0.7}
    with pytest.raises(StudyError, match="The test split is measured whole"):
        store.evaluations.add(merge_id, INNER, COLOURS, "test", part([1] * 20))


def test_measuring_on_the_test_split_leaves_parts_of_the_validation_split(store: Store, study: Study):
    merge_id = plain(store, study)
    store.evaluations.add(merge_id, INNER, COLOURS, "val", part([1] * 20))
    store.evaluations.add(merge_id, INNER, COLOURS, "test", outcome(0.7))
    assert list(store.evaluations.partial(merge_id, INNER)) == [COLOURS]
    assert store.evaluations.partial(merge_id, INNER + 0.1) == {}


def test_tables_hold_the_best_that_is_known_and_how_far_off_it_may_be(store: Store, study: Study):
    merge_id, (a, b, c) = plain(store, study), (INNER, INNER + 0.1, INNER + 0.2)
    losses = np.arange(20, dtype="<f4").tobytes()
    store.evaluations.add(merge_id, b, COLOURS, "val", part([1, 1, 1, 0] * 5, standard_error=0.03))
    store.evaluations.add(merge_id, c, STRIPES, "val", Outcome(9.5, 20, losses, 0.1, 80, 1.2))
    store.evaluations.add(merge_id, a, COLOURS, "val", Outcome(0.5, 60, b"", 0.1, standard_error=0.06))
    store.evaluations.add(merge_id, a, STRIPES, "val", part([1, 1, 1, 0] * 5, standard_error=0.04))
    table = store.evaluations.table(merge_id)
    np.testing.assert_array_equal(table.X, [b, c, a])
    np.testing.assert_array_equal(table.Y, [[0.75, nan], [nan, 9.5], [0.5, 0.75]])
    np.testing.assert_array_equal(table.n_examples, [[20, 0], [0, 20], [60, 20]])
    np.testing.assert_array_equal(table.is_whole, [[False, False], [False, False], [True, False]])
    np.testing.assert_array_equal(table.S, [[0.03, nan], [nan, 1.2], [0, 0.04]])
    np.testing.assert_array_equal(table.errors, [[nan, nan], [nan, nan], [0.06, nan]])
    np.testing.assert_array_equal(table.on(20), table.Y)
    np.testing.assert_array_equal(table.on(21), [[nan, nan], [nan, nan], [0.5, nan]])
    np.testing.assert_array_equal(table.on(None), table.on(21))
    np.testing.assert_array_equal(store.evaluations.tables(study.id)[merge_id].Y, table.Y)


def test_counts_follow_what_was_measured_in_part(store: Store, study: Study):
    run = store.runs.create(study.id, RunConfig(images=20, low=0.1, high=0.4))
    prints = [store.evaluations.fingerprint(study.id)]

    def add(x: np.ndarray, measured: Outcome, key: str = COLOURS) -> None:
        store.evaluations.add(run.merge_id, x, key, "val", measured, run_id=run.id)
        prints.append(store.evaluations.fingerprint(study.id))

    add(INNER, part([1] * 20))
    add(INNER + 0.1, part([1] * 20))
    now = store.studies.get(study.id)
    assert (now.n_points, now.n_evaluations) == (2, 2)
    assert now.changed > study.changed
    assert box_of(store, study) == ([0.1, 0.1], [0.4, 0.4])
    row = store.runs.get(run.id)
    assert (row.n_evaluations, row.seconds) == (2, 0.5)
    whole = Outcome(0.5, 60, b"", 0.25)
    add(INNER, part([1] * 30))
    add(INNER + 0.1, whole)
    add(INNER, part([1] * 60))  # all that there are, in the order of parts
    add(INNER, whole)
    add(INNER, part([1] * 20), STRIPES)
    assert len(set(prints)) == len(prints)
    now = store.studies.get(study.id)
    assert (now.n_points, now.n_evaluations, store.runs.get(run.id).n_evaluations) == (2, 3, 3)


# What runs sampled


def test_a_region_holds_what_runs_really_sampled(store: Store, study: Study):
    merge_id = plain(store, study)

    def sample(x: list[float], split: str = "val", **config: object) -> None:
        run = store.runs.create(study.id, RunConfig(**config))
        store.evaluations.add(merge_id, np.array(x), COLOURS, split, outcome(0.5), run_id=run.id)

    assert box_of(store, study) == ([0, 0], [1, 1])
    sample([0, 1], low=-3.0, high=3.0)  # anchors lie where they lie
    sample([0.2, 0.2], "test", low=-3.0, high=3.0)
    store.runs.create(study.id, RunConfig(low=-8.0, high=8.0))
    assert box_of(store, study) == ([0, 0], [1, 1])
    sample([0.2, 0.3], low=0.1, high=0.6)
    assert box_of(store, study) == ([0.1, 0.1], [0.6, 0.6])
    sample([0.3, 0.3], high=0.5)
    assert box_of(store, study) == ([0, 0], [0.6, 0.6])
    sample([0.4, 0.4], high=2.0, method="scalar")  # a line says nothing about a box
    assert box_of(store, study) == ([0, 0], [0.6, 0.6])


def test_the_region_of_a_merge_without_a_box_is_its_space(store: Store, study: Study):
    run = store.runs.create(study.id, RunConfig(merge="soup"))
    other = store.merges.add(study.id, "adamerging", {})
    x = np.array([0.25, 0.75])
    store.evaluations.add(run.merge_id, x, COLOURS, "val", outcome(0.5), run_id=run.id)
    regions = store.evaluations.regions(study.id)
    assert regions[run.merge_id] == store.merges.get(run.merge_id).space
    assert regions[other.id] == other.space
