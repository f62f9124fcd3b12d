"""Models that people chose come back, of whichever merge, and are found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mapmerge_core.errors import PointError, StudyError
from mapmerge_core.studies.store import Store, Study, point_key
from tests.studies.store.helpers import plain


def test_picks_come_back_and_change(store: Store, study: Study):
    how = {"kind": "preference", "weights": {"Colours": 2.0, "Stripes": 1.0}}
    soup = store.merges.add(study.id, "soup", {}).id
    pick = store.picks.add(plain(store, study), np.array([0.3, 0.4]), how)
    other = store.picks.add(soup, np.array([1.0, 3.0]), {"kind": "point"}, name="Other", shortlisted=True)
    assert [row.id for row in store.picks.all(study.id)] == [pick.id, other.id]
    assert (other.study_id, other.merge_id, other.name, other.shortlisted) == (study.id, soup, "Other", True)
    path = Path("/models/mine.safetensors")
    changed = store.picks.update(pick.id, name="Mine", notes="For the fair.", shortlisted=True, exported=path)
    assert (changed.name, changed.notes, changed.shortlisted, changed.how) == ("Mine", "For the fair.", True, how)
    assert changed.exported == path
    np.testing.assert_array_equal(changed.x, [0.3, 0.4])
    assert not changed.x.flags.writeable
    assert store.picks.update(pick.id, shortlisted=False).name == "Mine"
    assert store.studies.get(study.id).n_picks == 2
    with pytest.raises(StudyError, match="no pick 99"):
        store.picks.update(99, name="x")


def test_one_model_is_one_whatever_way_its_point_is_written(store: Store, study: Study):
    first, soup = plain(store, study), store.merges.add(study.id, "soup", {}).id
    pick = store.picks.add(soup, np.array([1.0, 3.0]), {"kind": "point"})
    np.testing.assert_array_equal(pick.x, [0.25, 0.75])  # weights in proportion are one point
    assert pick.key == point_key(soup, store.merges.get(soup).space.point([2.0, 6.0]))
    assert (found := store.picks.find(soup, np.array([5.0, 15.0]))) is not None
    assert found.id == pick.id
    assert store.picks.find(soup, np.array([0.5, 0.5])) is None
    assert store.picks.find(first, np.array([0.25, 0.75])) is None
    zero = store.picks.add(first, np.array([0.0, 0.5]), {"kind": "point"})
    latest = store.picks.add(first, np.array([-0.0, 0.5]), {"kind": "point"})
    assert zero.key == latest.key
    assert (found := store.picks.find(first, np.array([0.0, 0.5]))) is not None
    assert found.id == latest.id


@pytest.mark.parametrize(
    ("merge", "x", "sentence"),
    [
        ("task_arithmetic", [0.1], "2 coordinates"),
        ("task_arithmetic", [np.nan, 1.0], "must be finite"),
        ("soup", [1.0, -0.1], "A weight is negative"),
        ("soup", [0.0, 0.0], "Every weight is zero"),
    ],
)
def test_what_is_no_point_is_refused(store: Store, study: Study, merge: str, x: list[float], sentence: str):
    merge_id = store.merges.add(study.id, merge, {}).id
    for call in (store.picks.find, lambda *where: store.picks.add(*where, {"kind": "point"})):
        with pytest.raises(PointError, match=sentence):
            call(merge_id, np.array(x))
