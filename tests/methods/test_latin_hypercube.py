"""Latin hypercube search: every coordinate has a point in each of its slices."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.errors import SearchError
from mapmerge_core.methods.latin_hypercube import LatinHypercube
from mapmerge_core.methods.map import MAP
from mapmerge_core.search.spaces import Box
from tests.methods.making import make_method


@pytest.mark.parametrize(("n", "low", "high"), [(1, 0.0, 1.0), (3, 0.0, 1.0), (4, 0.2, 0.6)])
def test_every_slice_of_every_coefficient_holds_one_point(n, low, high):
    X = make_method(LatinHypercube, n, 40, low=low, high=high, anchors=False).ask().X
    slices = np.floor((X - low) / (high - low) * 40).astype(int)
    for column in slices.T:
        assert sorted(column) == list(range(40))


def test_anchors_come_first_and_count():
    X = make_method(LatinHypercube, 2, 13).ask().X
    np.testing.assert_array_equal(X[:3], [[0, 0], [1, 0], [0, 1]])
    for column in np.floor(X[3:] * 10).astype(int).T:
        assert sorted(column) == list(range(10))
    with pytest.raises(SearchError, match="too few: the 3 anchors"):
        make_method(LatinHypercube, 2, 2)


def test_another_seed_asks_for_other_points():
    first, other = (make_method(LatinHypercube, 2, 12, seed=seed).ask().X for seed in (1, 2))
    assert not np.isclose(first[3:], other[3:]).any()


def test_its_usual_budget_is_maps():
    assert [LatinHypercube.default_points(Box("abcdefghi"[:n])) for n in (1, 2, 8, 9)] == [
        MAP.default_points(Box("abcdefghi"[:n])) for n in (1, 2, 8, 9)
    ]
