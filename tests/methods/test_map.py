"""MAP and direct search ask for one design on every task, and are done when they have been told."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.errors import SearchError
from mapmerge_core.methods.base import Batch
from mapmerge_core.methods.direct import DirectSearch
from mapmerge_core.methods.map import MAP
from mapmerge_core.search.spaces import Box
from tests.methods.making import make_method


@pytest.mark.parametrize("method", [MAP, DirectSearch])
def test_asks_for_the_anchors_first_and_stays_in_the_box(method):
    batch = make_method(method, 3, 20, seed=1, low=0.1, high=0.6).ask()
    assert batch.objectives == (0, 1, 2)
    assert batch.X.shape == (20, 3)
    np.testing.assert_array_equal(batch.X[:4], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert batch.X[4:].min() >= 0.1
    assert batch.X[4:].max() <= 0.6


def test_the_same_seed_asks_the_same_and_another_seed_something_else():
    first = make_method(MAP, 2, 12, seed=5).ask().X
    np.testing.assert_array_equal(first, make_method(MAP, 2, 12, seed=5).ask().X)
    assert not np.array_equal(first[3:], make_method(MAP, 2, 12, seed=6).ask().X[3:])


def test_a_point_that_one_method_measured_is_another_methods_too():
    np.testing.assert_array_equal(
        make_method(MAP, 2, 30, seed=5).ask().X, make_method(DirectSearch, 2, 200, seed=5).ask().X[:30]
    )


def test_asks_again_until_told_and_nothing_afterwards():
    method = make_method(MAP, 2, 10)
    batch = method.ask()
    np.testing.assert_array_equal(batch.X, method.ask().X)
    method.tell(batch, np.zeros((10, 2)))
    assert method.ask() is None
    assert method.n_evaluations == 20


def test_refuses_values_for_what_it_did_not_ask():
    method = make_method(MAP, 2, 10)
    batch = method.ask()
    for other in (Batch(batch.X[::-1], batch.objectives), Batch(batch.X, (0,))):
        with pytest.raises(SearchError, match="tell the batch"):
            method.tell(other, np.zeros((10, 2)))
    for values in (np.zeros((9, 2)), np.full((10, 2), np.nan)):
        with pytest.raises(SearchError, match="10 points on 2 objectives need as many finite values"):
            method.tell(batch, values)
    method.tell(batch, np.zeros((10, 2)))
    with pytest.raises(SearchError, match="tell the batch"):
        method.tell(batch, np.zeros((10, 2)))


def test_the_default_budgets_are_the_papers():
    assert MAP.paper_points == {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}
    assert DirectSearch.paper_points == {2: 200, 3: 300, 4: 300, 5: 500, 6: 500, 7: 1000, 8: 1000}
    assert len(make_method(MAP, 4).ask().X) == 60
    assert len(make_method(DirectSearch, 4).ask().X) == 300
    # Beyond the paper: six for each of (9 + 1)(9 + 2) / 2 = 55 parameters.
    assert MAP.default_points(Box("ABCDEFGHI")) == 330


def test_a_grid_counts_its_own_points():
    method = make_method(DirectSearch, 2, 30, design="grid", anchors=False)
    assert len(method.ask().X) == 25
    assert method.n_evaluations == 50


def test_a_budget_below_the_anchors_is_refused():
    with pytest.raises(SearchError, match="too few"):
        make_method(MAP, 8, 5)
