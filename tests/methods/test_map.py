"""MAP asks for a design once, and is done when it has been told."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.errors import SearchError
from mapmerge_core.methods.map import MAP, PAPER_POINTS, default_points


def test_asks_for_the_anchors_first_and_stays_in_the_box():
    C = MAP(3, 20, seed=1, low=0.1, high=0.6).ask()
    assert C.shape == (20, 3)
    np.testing.assert_array_equal(C[:4], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert C[4:].min() >= 0.1
    assert C[4:].max() <= 0.6


def test_the_same_seed_asks_the_same_and_another_seed_something_else():
    first = MAP(2, 12, seed=5).ask()
    np.testing.assert_array_equal(first, MAP(2, 12, seed=5).ask())
    assert not np.array_equal(first[3:], MAP(2, 12, seed=6).ask()[3:])


def test_asks_again_until_told_and_nothing_afterwards():
    method = MAP(2, 10)
    C = method.ask()
    np.testing.assert_array_equal(C, method.ask())
    method.tell(C, np.zeros((10, 2)))
    assert method.ask().shape == (0, 2)
    assert method.points == 10


def test_refuses_values_for_other_coefficients():
    method = MAP(2, 10)
    with pytest.raises(SearchError, match="tell the rows that were asked"):
        method.tell(method.ask()[::-1], np.zeros((10, 2)))
    with pytest.raises(SearchError, match="told 9 values"):
        method.tell(method.ask(), np.zeros((9, 2)))


def test_the_default_budget_is_the_papers():
    assert PAPER_POINTS == {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}
    assert len(MAP(4).ask()) == 60
    # Beyond the paper: six for each of (9 + 1)(9 + 2) / 2 = 55 parameters.
    assert default_points(9) == 330


def test_a_grid_counts_its_own_points():
    method = MAP(2, 30, design="grid", anchors=False)
    assert method.points == len(method.ask()) == 25


def test_a_budget_below_the_anchors_is_refused():
    with pytest.raises(SearchError, match="too few"):
        MAP(8, 5)
