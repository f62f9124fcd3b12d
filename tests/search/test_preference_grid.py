from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mapmerge_core.errors import SearchError
from mapmerge_core.search.preference_grid import (
    PreferenceInterpolator,
    default_grid,
    preference_grid,
    priority,
)

UNIT = (0.0, 1.0)


def test_defaults_are_the_papers_numbers():
    assert [default_grid(n) for n in (2, 3, 4, 8)] == [11, 37, 30, 30]
    assert [len(preference_grid(n)) for n in (2, 3, 4, 8)] == [11, 37, 30, 30]


@pytest.mark.parametrize("n_tasks", [2, 3, 4, 8])
def test_any_number_of_preferences_are_different_ones_with_the_equal_one(n_tasks):
    for n in range(1, 45):
        grid = preference_grid(n_tasks, n, seed=3)
        assert grid.shape == (n, n_tasks)
        assert (grid >= 0).all()
        assert grid.sum(axis=1) == pytest.approx(np.ones(n))
        gaps = np.abs(grid[:, None] - grid[None]).max(axis=2) + np.eye(n)
        assert gaps.min() > 1e-6
        assert (np.abs(grid - 1 / n_tasks).max(axis=1) < 1e-12).sum() == 1


def test_two_tasks_are_a_line():
    expected = [(i / 10, 1 - i / 10) for i in range(10, -1, -1)]
    assert preference_grid(2) == pytest.approx(np.array(expected))


def test_a_persons_shares_are_in_the_line_to_the_last_bit():
    assert [row for row in preference_grid(2).tolist() if row[0] in (0.9, 0.3)] == [[0.9, 0.1], [0.3, 0.7]]


def test_an_even_number_over_two_tasks_is_a_line_and_one_that_is_drawn():
    grid = preference_grid(2, 6, seed=1)
    line = np.array([(1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1)])
    on_line = (np.abs(grid[:, None] - line[None]).max(axis=2) < 1e-12).any(axis=1)
    assert grid[on_line] == pytest.approx(line)
    assert (np.diff(grid[:, 0]) < 0).all()
    assert (grid[~on_line] != preference_grid(2, 6, seed=2)[~on_line]).any()


def test_three_tasks_are_the_equal_one_and_a_triangle():
    grid = preference_grid(3)
    triangle = sorted((i, j, 7 - i - j) for i in range(8) for j in range(8 - i))
    assert len(triangle) == 36  # the paper's Figure 4
    assert grid[0] == pytest.approx(np.full(3, 1 / 3))
    assert sorted(tuple(row) for row in np.rint(grid[1:] * 7).astype(int)) == triangle
    assert (grid[1:] * 7) == pytest.approx(np.rint(grid[1:] * 7))


def test_a_triangle_with_the_equal_one_in_it_has_it_once():
    grid = preference_grid(3, 12)  # ten preferences in thirds, the equal one among them, and two drawn ones
    assert grid[0] == pytest.approx(np.full(3, 1 / 3))
    in_thirds = np.abs(grid * 3 - np.rint(grid * 3)).max(axis=1) < 1e-9
    assert np.flatnonzero(in_thirds).tolist() == list(range(10))


def test_more_tasks_start_with_what_people_ask_for():
    grid = preference_grid(8)
    assert grid[0] == pytest.approx(np.full(8, 1 / 8))
    halves = np.full((8, 8), 0.5 / 7)
    np.fill_diagonal(halves, 0.5)
    assert grid[1:9] == pytest.approx(halves)
    assert grid[9:17] == pytest.approx(np.eye(8))
    assert ((grid[17:] > 0) & (grid[17:] < 1)).all()
    assert preference_grid(8, 12) == pytest.approx(grid[:12])


def test_the_seed_decides_what_is_drawn_and_nothing_else():
    np.testing.assert_array_equal(preference_grid(5, 20, seed=4), preference_grid(5, 20, seed=4))
    other = preference_grid(5, 20, seed=5)
    np.testing.assert_array_equal(other[:11], preference_grid(5, 20, seed=4)[:11])
    assert (other[11:] != preference_grid(5, 20, seed=4)[11:]).all()


def test_what_is_drawn_is_uniform_on_the_simplex():
    drawn = preference_grid(4, 3009)[9:]
    for column in drawn.T:  # a weight of a uniform preference over K tasks is distributed as Beta(1, K - 1)
        assert stats.kstest(column, stats.beta(1, 3).cdf).pvalue > 0.01


def test_a_priority_shares_the_rest():
    assert priority(5, 2) == pytest.approx([0.125, 0.125, 0.5, 0.125, 0.125])
    assert priority(3, 0, share=0.8) == pytest.approx([0.8, 0.1, 0.1])


@pytest.mark.parametrize(("n_tasks", "n"), [(2, 0), (3, -1), (1, 5)])
def test_no_preferences_and_single_tasks_are_refused(n_tasks, n):
    with pytest.raises(
        SearchError, match=f"one preference or more over two tasks or more, not {n} over {n_tasks}"
    ):
        preference_grid(n_tasks, n)


def test_a_negative_seed_is_refused():
    with pytest.raises(SearchError, match="A seed is a whole number from 0 up, not -1"):
        preference_grid(4, seed=-1)


# --- between measured preferences ---


@pytest.fixture
def measured():
    """Ten measured preferences over three tasks, and two metrics."""
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(3), 10), rng.uniform(size=(10, 2))


def by_hand(gammas, values, gamma):
    """The interpolation with -|γ - γ_i| and a constant, from its linear equations."""
    m = len(gammas)
    system = np.zeros((m + 1, m + 1))
    for i in range(m):
        for j in range(m):
            system[i, j] = -np.sqrt(np.sum((gammas[i] - gammas[j]) ** 2))
    system[m, :m] = system[:m, m] = 1
    weights = np.linalg.solve(system, np.vstack([values, np.zeros(values.shape[1])]))
    distances = np.array([np.sqrt(np.sum((gamma - other) ** 2)) for other in gammas])
    return weights[m] - distances @ weights[:m]


def test_between_two_tasks_metrics_lie_on_straight_lines():
    first = np.array([1.0, 0.0, 0.7, 0.45])
    values = np.array([[0.9, 0.1], [0.2, 0.8], [0.8, 0.6], [0.3, 0.7]])
    between = PreferenceInterpolator(np.column_stack([first, 1 - first]), values, [UNIT, UNIT])
    order = np.argsort(first)
    for x in np.linspace(0, 1, 23):
        expected = [np.interp(x, first[order], column[order]) for column in values.T]
        assert between.predict([x, 1 - x]) == pytest.approx(expected)


def test_measured_preferences_have_their_own_metrics(measured):
    gammas, values = measured
    between = PreferenceInterpolator(gammas, values, [UNIT, UNIT])
    for gamma, value in zip(gammas, values, strict=True):
        np.testing.assert_array_equal(between.predict(gamma), value)
        np.testing.assert_array_equal(between.predict(5 * gamma), value)
        assert between.is_measured(gamma)
        for end in between.interval(gamma):
            np.testing.assert_array_equal(end, value)
    assert not between.is_measured([1, 1, 1])


def test_other_preferences_are_those_of_the_equations(measured):
    gammas, values = measured
    between = PreferenceInterpolator(gammas, values, [(-9, 9), (-9, 9)])
    for gamma in np.random.default_rng(1).dirichlet(np.ones(3), 20):
        assert between.predict(gamma) == pytest.approx(by_hand(gammas, values, gamma))
        assert between.predict(3 * gamma) == pytest.approx(by_hand(gammas, values, gamma))


def test_no_order_of_the_tasks_is_preferred(measured):
    gammas, values = measured
    between = PreferenceInterpolator(gammas, values, [UNIT, UNIT])
    turned = PreferenceInterpolator(gammas[:, [2, 0, 1]], values, [UNIT, UNIT])
    gamma = np.array([0.2, 0.3, 0.5])
    assert turned.predict(gamma[[2, 0, 1]]) == pytest.approx(between.predict(gamma))
    assert turned.error == pytest.approx(between.error)


def test_metrics_stay_within_their_bounds(measured):
    gammas, values = measured
    between = PreferenceInterpolator(gammas, values, [(0.45, 0.5), (-np.inf, 0.3)])
    for gamma in np.random.default_rng(1).dirichlet(np.ones(3), 20):
        expected = by_hand(gammas, values, gamma)
        limited = [min(max(expected[0], 0.45), 0.5), min(expected[1], 0.3)]
        assert between.predict(gamma) == pytest.approx(limited)
        lower, upper = between.interval(gamma)
        assert lower[0] >= 0.45
        assert (upper <= [0.5, 0.3]).all()


def test_the_error_is_that_of_leaving_one_out(measured):
    gammas, values = measured
    between = PreferenceInterpolator(gammas, values, [UNIT, UNIT])
    misses = []
    for i in range(10):
        others = [j for j in range(10) if j != i]
        predicted = by_hand(gammas[others], values[others], gammas[i]).clip(0, 1)
        misses.append(np.abs(predicted - values[i]))
    # Of ten sorted misses, the 90 % quantile lies at 8.1, between the ninth and the tenth.
    ninth, tenth = np.sort(misses, axis=0)[8:]
    error = ninth + 0.1 * (tenth - ninth)
    assert between.error == pytest.approx(error)
    gamma = np.array([0.2, 0.3, 0.5])
    lower, upper = between.interval(gamma)
    assert lower == pytest.approx((by_hand(gammas, values, gamma) - error).clip(0, 1))
    assert upper == pytest.approx((by_hand(gammas, values, gamma) + error).clip(0, 1))


def test_one_measured_preference_stands_for_all():
    between = PreferenceInterpolator([[0.5, 0.5]], [[0.6, 0.4]], [UNIT, UNIT])
    assert between.predict([0.9, 0.1]) == pytest.approx([0.6, 0.4])
    assert np.isnan(between.error).all()
    assert np.isnan(between.interval([0.9, 0.1])).all()
    np.testing.assert_array_equal(between.interval([0.5, 0.5]), [[0.6, 0.4], [0.6, 0.4]])


def test_two_measured_preferences_know_no_error_yet_but_three_do():
    gammas, values = np.array([(1, 0), (0, 1), (0.5, 0.5)]), np.array([[0.2], [0.6], [0.5]])
    assert np.isnan(PreferenceInterpolator(gammas[:2], values[:2], [UNIT]).error).all()
    found = PreferenceInterpolator(gammas, values, [UNIT]).error
    # Left out: either end is taken for the middle's 0.5, the middle for the mean of the ends.
    assert found == pytest.approx([np.quantile([0.3, 0.1, 0.1], 0.9)])


@pytest.mark.parametrize(
    ("gammas", "values", "sentence"),
    [
        (np.empty((0, 2)), np.empty((0, 1)), "Nothing to interpolate between"),
        ([[0.5, 0.5]], [[0.1], [0.2]], "Nothing to interpolate between"),
        ([[0.5, 0.5], [1, 0]], [[0.1], [np.nan]], "Only finite metrics can be interpolated"),
        ([[0.5, 0.5], [np.nan, 0]], [[0.1], [0.2]], "Only finite metrics can be interpolated"),
    ],
)
def test_what_can_not_be_interpolated_is_refused(gammas, values, sentence):
    with pytest.raises(SearchError, match=sentence):
        PreferenceInterpolator(gammas, values, [UNIT])


@pytest.mark.parametrize("gamma", [[1, -0.1, 0.1], [1, np.nan, 0], [0, 0, 0], [0.5, 0.5]])
def test_what_is_no_preference_is_refused(measured, gamma):
    between = PreferenceInterpolator(*measured, [UNIT, UNIT])
    for ask in (between.predict, between.interval, between.is_measured):
        with pytest.raises(SearchError):
            ask(gamma)
