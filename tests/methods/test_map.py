"""MAP and direct search ask for one design on every task, and are done when they have been told."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.errors import SearchError
from mapmerge_core.methods import direct
from mapmerge_core.methods.base import Batch
from mapmerge_core.methods.direct import DirectSearch
from mapmerge_core.methods.map import MAP, PAPER_POINTS


@pytest.mark.parametrize("method", [MAP, DirectSearch])
def test_asks_for_the_anchors_first_and_stays_in_the_box(method):
    batch = method(3, 20, seed=1, low=0.1, high=0.6).ask()
    assert batch.tasks == (0, 1, 2)
    assert batch.C.shape == (20, 3)
    np.testing.assert_array_equal(batch.C[:4], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert batch.C[4:].min() >= 0.1
    assert batch.C[4:].max() <= 0.6


def test_the_same_seed_asks_the_same_and_another_seed_something_else():
    first = MAP(2, 12, seed=5).ask().C
    np.testing.assert_array_equal(first, MAP(2, 12, seed=5).ask().C)
    assert not np.array_equal(first[3:], MAP(2, 12, seed=6).ask().C[3:])


def test_a_point_that_one_method_measured_is_another_methods_too():
    np.testing.assert_array_equal(MAP(2, 30, seed=5).ask().C, DirectSearch(2, 200, seed=5).ask().C[:30])


def test_asks_again_until_told_and_nothing_afterwards():
    method = MAP(2, 10)
    batch = method.ask()
    np.testing.assert_array_equal(batch.C, method.ask().C)
    method.tell(batch, np.zeros((10, 2)))
    assert method.ask() is None
    assert method.n_evaluations == 20


def test_refuses_values_for_what_it_did_not_ask():
    method = MAP(2, 10)
    batch = method.ask()
    for other in (Batch(batch.C[::-1], batch.tasks), Batch(batch.C, (0,))):
        with pytest.raises(SearchError, match="tell the batch"):
            method.tell(other, np.zeros((10, 2)))
    for values in (np.zeros((9, 2)), np.full((10, 2), np.nan)):
        with pytest.raises(SearchError, match="10 coefficients on 2 tasks need as many finite values"):
            method.tell(batch, values)
    method.tell(batch, np.zeros((10, 2)))
    with pytest.raises(SearchError, match="tell the batch"):
        method.tell(batch, np.zeros((10, 2)))


def test_the_default_budgets_are_the_papers():
    assert PAPER_POINTS == {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}
    assert direct.PAPER_POINTS == {2: 200, 3: 300, 4: 300, 5: 500, 6: 500, 7: 1000, 8: 1000}
    assert len(MAP(4).ask().C) == 60
    assert len(DirectSearch(4).ask().C) == 300
    # Beyond the paper: six for each of (9 + 1)(9 + 2) / 2 = 55 parameters.
    assert MAP.default_points(9) == 330


def test_a_grid_counts_its_own_points():
    method = DirectSearch(2, 30, design="grid", anchors=False)
    assert len(method.ask().C) == 25
    assert method.n_evaluations == 50


def test_a_budget_below_the_anchors_is_refused():
    with pytest.raises(SearchError, match="too few"):
        MAP(8, 5)
