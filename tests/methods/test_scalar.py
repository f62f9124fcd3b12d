"""Scalar search: one coefficient for all models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mapmerge_core.errors import MapMergeError, SearchError
from mapmerge_core.methods.base import ObjectiveInfo
from mapmerge_core.methods.scalar import ScalarSearch
from mapmerge_core.search.spaces import Box, Product, Simplex
from tests.methods.making import make_method, play


def test_it_tries_the_tenths_from_end_to_end_as_they_are_typed():
    batch = make_method(ScalarSearch, 3).ask()
    assert batch.objectives == (0, 1, 2)
    tenths = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert batch.X.tolist() == [[tenth] * 3 for tenth in tenths]


def test_other_ends_and_budgets():
    np.testing.assert_allclose(make_method(ScalarSearch, 1, 4, low=-0.5, high=1).ask().X, [[-0.5], [0], [0.5], [1]])
    uneven = ScalarSearch(Box("ab", [0, 1], [1, 3]), [ObjectiveInfo("a")], {"points": 3})
    np.testing.assert_allclose(uneven.ask().X, [[0, 1], [0.5, 2], [1, 3]])


def test_the_best_mean_wins_and_losses_count_downwards():
    accuracy = ObjectiveInfo("accuracy")
    objectives = [accuracy, replace(accuracy, name="loss", maximize=False, bounds=(0, np.inf), link="softplus")]
    values = np.array([[0.5, 0.4], [0.9, 1.0], [0.7, 0.5], [0.6, 0.2]])  # differences .1, -.1, .2, .4
    method = make_method(ScalarSearch, 2, 4, objectives=objectives)
    with pytest.raises(SearchError, match="isn't complete yet"):
        _ = method.chosen
    play(method, lambda _: values)
    np.testing.assert_array_equal(method.chosen.x, [1, 1])
    np.testing.assert_array_equal(method.chosen.values, [0.6, 0.2])
    assert method.chosen.feasible


def test_the_first_of_equals_wins():
    method = make_method(ScalarSearch, 2)
    play(method, lambda X: np.round(1 - np.abs(X - 0.45), 1))
    np.testing.assert_array_equal(method.chosen.x, [0.4, 0.4])


@pytest.mark.parametrize("space", [Simplex("abc"), Product([Simplex("ab"), Box(["scale"])])])
def test_weights_that_sum_to_1_are_refused(space):
    with pytest.raises(SearchError, match="coefficients that can all be one number: choose another method"):
        ScalarSearch(space, [ObjectiveInfo("a")])


def test_one_coefficient_to_try_is_refused():
    with pytest.raises(MapMergeError, match="at least 2"):
        make_method(ScalarSearch, 2, 1)
