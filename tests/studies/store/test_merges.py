"""A study's merges: once for each name and settings, with what preparing them took and how training went."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mapmerge_core.errors import MapMergeError, RegistryError, SettingError, StudyError
from mapmerge_core.merges.base import TrainingPoint
from mapmerge_core.registries import MERGES
from mapmerge_core.search.spaces import Box, Simplex
from mapmerge_core.studies.store import Store, Study
from tests.studies.conftest import tiny_config
from tests.studies.store.helpers import plain


def test_every_study_has_task_arithmetic_from_the_beginning(store: Store, study: Study):
    [merge] = store.merges.all(study.id)
    assert (merge.name, merge.study_id, merge.is_prepared, merge.seconds) == ("task_arithmetic", study.id, False, 0)
    assert isinstance(merge.space, Box)
    assert merge.space.names == ("Colours", "Stripes")
    assert merge.title == merge.make().label
    assert merge.is_usable
    assert store.merges.add(study.id, "task_arithmetic", {}).id == merge.id


def test_the_same_settings_are_one_merge_and_others_another(store: Store, study: Study):
    first = store.merges.add(study.id, "ties", {})
    assert store.merges.add(study.id, "ties", dict(first.settings)).id == first.id
    assert store.merges.add(study.id, "ties", dict(reversed(first.settings.items()))).id == first.id
    other = store.merges.add(study.id, "ties", {"keep": 0.3})
    assert other.id != first.id
    assert other.settings == {**first.settings, "keep": 0.3}
    assert other.make().settings.keep == 0.3
    again = Store(store.folder)
    assert [merge.id for merge in again.merges.all(study.id)] == [plain(store, study), first.id, other.id]


def test_a_merge_is_kept_as_prepared_with_what_that_took(store: Store, study: Study):
    merge = store.merges.add(study.id, "regmean", {})
    assert isinstance(merge.space, Simplex)
    assert not merge.is_usable
    store.merges.set_prepared(merge.id, 2.5, 6)
    now = store.merges.get(merge.id)
    assert (now.is_prepared, now.is_usable, now.seconds, now.evaluations) == (True, True, 2.5, 6)
    assert store.merges.add(study.id, "regmean", {}).is_prepared


def test_what_a_study_can_not_have_is_not_kept(store: Store, study: Study, tiny_zoo: Path):
    three = store.studies.create("Three", tiny_config(tiny_zoo, ("Colours", "Stripes", "Light")))
    with pytest.raises(RegistryError, match="no merge 'salad'"):
        store.merges.add(study.id, "salad", {})
    with pytest.raises(SettingError, match="keep"):
        store.merges.add(study.id, "ties", {"keep": 7.0})
    with pytest.raises(StudyError, match="SLERP merges 2 models, not 3"):
        store.merges.add(three.id, "slerp", {})
    assert len(store.merges.all(study.id)) == len(store.merges.all(three.id)) == 1


def test_a_merge_whose_package_was_uninstalled_is_still_listed(store: Store, study: Study):
    kind = MERGES["breadcrumbs"]
    merge = store.merges.add(study.id, "breadcrumbs", {})
    MERGES.unregister("breadcrumbs")
    try:
        gone = store.merges.get(merge.id)
        assert (gone.title, gone.is_usable, gone.space) == ("breadcrumbs", False, merge.space)
        with pytest.raises(MapMergeError, match="no merge 'breadcrumbs'"):
            gone.make()
    finally:
        MERGES.register(kind)


def test_steps_taken_again_take_the_place_of_those_that_were_lost(store: Store, study: Study):
    def point(step: int, seconds: float = 1.0) -> TrainingPoint:
        return TrainingPoint(step, 0.1 * step, np.array([1.0, 2.0]) * step, seconds)

    merge_id = store.merges.add(study.id, "pareto_merging", {}).id
    store.training.add(merge_id, [])
    store.training.add(merge_id, [point(5), point(10)])
    store.training.add(merge_id, [point(10, seconds=7.0), point(15)])
    points = store.training.all(merge_id)
    assert [(row.step, row.seconds) for row in points] == [(5, 1.0), (10, 7.0), (15, 1.0)]
    np.testing.assert_array_equal(points[1].f, [10, 20])
    assert points[1].objective == 1.0
    assert store.training.all(plain(store, study)) == []
