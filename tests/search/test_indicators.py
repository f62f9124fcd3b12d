from itertools import product
from time import process_time

import numpy as np
import pytest
from pymoo.indicators.gd import GD
from pymoo.indicators.igd import IGD

from mapmerge_core.errors import MapMergeError, SearchError
from mapmerge_core.search.indicators import (
    generational_distance,
    hypervolume,
    inverted_generational_distance,
    preference_sums,
    preference_win_rate,
    r2,
    sample_preferences,
    win_rate,
)

UP = [True, True]


class TestWinRate:
    def test_counts_every_pair_of_every_metric_strictly(self):
        ours, theirs = [[0.9, 0.2], [0.5, 0.5]], [[0.8, 0.2], [0.4, 0.6]]
        # First metric: .9 > .8, .9 > .4, .5 > .4; second: .5 > .2, and a tie at .2.
        assert win_rate(ours, theirs, UP) == 4 / 8
        # A loss goes down: .2 < .6 and .5 < .6 win, .2 ties.
        assert win_rate(ours, theirs, [True, False]) == 5 / 8
        # The other way around: .6 > .2 and .6 > .5, and in the first metric .8 > .5 alone.
        assert win_rate(theirs, ours, UP) == 3 / 8

    def test_a_front_against_itself_misses_one_half_by_its_ties(self):
        front = np.column_stack([np.linspace(0, 1, 20), np.linspace(1, 0, 20)])
        assert win_rate(front, front, UP) == pytest.approx((1 - 1 / 20) / 2)
        assert win_rate(np.ones((5, 2)), np.ones((5, 2)), UP) == 0

    def test_samples_a_hundred_of_each_without_replacement(self):
        # Row i of theirs is i; ours beats exactly those sampled below its own constant value.
        theirs = np.arange(400.0)[:, None]
        rates = [win_rate([[199.5]], theirs, [True], seed) for seed in range(40)]
        assert all(round(100 * rate) == pytest.approx(100 * rate) for rate in rates)
        assert len(set(rates)) > 3
        assert np.mean(rates) == pytest.approx(0.5, abs=0.03)
        assert win_rate([[199.5]], theirs, [True], 3) == rates[3]
        # Of 100 rows all are taken, so nothing is left to chance.
        assert {win_rate([[24.5]], theirs[:100], [True], seed) for seed in range(5)} == {0.25}
        assert {win_rate(theirs[:100], [[24.5]] * 100, [True], seed) for seed in range(5)} == {0.75}

    def test_fewer_rows_of_ours_are_taken_equally_often(self):
        theirs = np.full((10, 1), 0.5)
        # Two rows five times each; of three rows, the one that wins three or four times of ten.
        assert {win_rate([[1.0], [0.0]], theirs, [True], seed) for seed in range(9)} == {0.5}
        assert {win_rate([[1.0], [0.0], [0.0]], theirs, [True], seed) for seed in range(30)} == {0.3, 0.4}


class TestHypervolume:
    def test_of_two_metrics_by_hand(self):
        # 0.8 x 0.2 and on top of it 0.3 x 0.4 (a step of the staircase); the third is dominated.
        front = [[0.8, 0.2], [0.3, 0.6], [0.2, 0.1]]
        assert hypervolume(front, [0, 0], UP) == pytest.approx(0.8 * 0.2 + 0.3 * 0.4)

    def test_directions_turn_metrics_around(self):
        # Accuracy up from 0.1, loss down from 3: 0.4 x 2 and 0.2 x 0.5 more.
        assert hypervolume([[0.5, 1.0], [0.7, 2.5]], [0.1, 3.0], [True, False]) == pytest.approx(0.8 + 0.1)

    def test_rows_that_do_not_beat_the_reference_add_nothing(self):
        alone = hypervolume([[0.6, 0.6]], [0.5, 0.5], UP)
        assert alone == pytest.approx(0.01)
        assert hypervolume([[0.6, 0.6], [0.9, 0.4], [0.5, 0.9]], [0.5, 0.5], UP) == pytest.approx(alone)
        assert hypervolume([[0.9, 0.4]], [0.5, 0.5], UP) == 0

    def test_eight_metrics_by_inclusion_and_exclusion(self):
        rng = np.random.default_rng(0)
        rows, reference = rng.uniform(0.3, 1, (4, 8)), np.full(8, 0.2)
        total = 0.0
        for chosen in product([False, True], repeat=4):
            if any(chosen):
                common = np.prod(rows[list(chosen)].min(axis=0) - reference)
                total += common if sum(chosen) % 2 else -common
        assert hypervolume(rows, reference, [True] * 8) == pytest.approx(total)

    def test_eight_metrics_of_25_rows_take_well_under_a_second(self):
        rng = np.random.default_rng(0)
        rows = np.abs(rng.normal(size=(25, 8)))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        hypervolume(rows[:2], np.zeros(8), [True] * 8)
        start = process_time()
        assert hypervolume(rows, np.zeros(8), [True] * 8) > 0
        assert process_time() - start < 0.5

    @pytest.mark.parametrize("reference", [[0.0], [0.0, np.nan], 0.0])
    def test_reference_that_does_not_fit(self, reference):
        with pytest.raises(SearchError, match="reference point is 2 finite metrics"):
            hypervolume([[1, 1]], reference, UP)


class TestDistances:
    def test_by_hand(self):
        front, reference = [[0, 0], [3, 4]], [[0, 0], [0, 4], [3, 4.0]]
        front_off = [[0, 1], [3, 4]]
        # Distances 1 and 0 of two rows; back: 1 to (0, 0), 3 to (0, 4) from either end, 0.
        assert generational_distance(front_off, reference, 1) == pytest.approx(1 / 2)
        assert generational_distance(front_off, reference, 2) == pytest.approx(1 / 2)
        assert inverted_generational_distance(front_off, reference, 1) == pytest.approx((1 + 3) / 3)
        assert inverted_generational_distance(front_off, reference, 2) == pytest.approx(np.sqrt(1 + 9) / 3)
        assert generational_distance(front, reference) == 0
        assert inverted_generational_distance(front, reference) == pytest.approx(3 / 3)

    def test_are_pymoos_for_one_and_the_formula_for_two(self):
        rng = np.random.default_rng(0)
        front, reference = rng.uniform(size=(30, 3)), rng.uniform(size=(50, 3))
        near = [min(np.sqrt(((row - other) ** 2).sum()) for other in reference) for row in front]
        far = [min(np.sqrt(((row - other) ** 2).sum()) for other in front) for row in reference]
        assert generational_distance(front, reference, 1) == pytest.approx(GD(reference)(front))
        assert generational_distance(front, reference, 1) == pytest.approx(sum(near) / 30)
        assert generational_distance(front, reference) == pytest.approx(sum(d**2 for d in near) ** 0.5 / 30)
        assert inverted_generational_distance(front, reference, 1) == pytest.approx(IGD(reference)(front))
        assert inverted_generational_distance(front, reference, 1) == pytest.approx(sum(far) / 50)
        assert inverted_generational_distance(front, reference) == pytest.approx(sum(d**2 for d in far) ** 0.5 / 50)

    @pytest.mark.parametrize("distance", [generational_distance, inverted_generational_distance])
    def test_refusals(self, distance):
        with pytest.raises(SearchError, match="1 or 2, not 3"):
            distance([[0, 0]], [[0, 0]], 3)
        with pytest.raises(SearchError, match=r"2 columns .* \(1, 3\)"):
            distance([[0, 0]], [[0, 0, 0]])
        with pytest.raises(SearchError, match="finite"):
            distance([[0, 0]], [[0, np.nan]])
        with pytest.raises(SearchError, match="at least one"):
            distance([[0, 0]], np.empty((0, 2)))
        with pytest.raises(SearchError, match="shape"):
            distance([0, 0], [[0, 0]])


class TestPreferences:
    def test_samples_are_shares_and_seeded(self):
        weights = sample_preferences(3, seed=7)
        assert weights.shape == (20, 3)
        assert (weights > 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        np.testing.assert_array_equal(weights, sample_preferences(3, 20, seed=7))
        assert (weights != sample_preferences(3, seed=8)).any()

    def test_are_uniform_numbers_over_their_sum_not_uniform_on_the_simplex(self):
        # Of two uniform numbers u / (u + v) < t has probability t / (2 (1 - t)) for t below one half.
        first = sample_preferences(2, 20_000)[:, 0]
        assert np.mean(first < 0.25) == pytest.approx(0.25 / 1.5, abs=0.01)
        assert first.mean() == pytest.approx(0.5, abs=0.01)

    @pytest.mark.parametrize("arguments", [(0,), (2, 0), (2, 5, -1)])
    def test_what_can_not_be_sampled(self, arguments):
        with pytest.raises(MapMergeError):
            sample_preferences(*arguments)

    def test_sums_by_hand(self):
        preferences = [[0.25, 0.75], [0.5, 0.5]]
        # One model for both preferences, then one for each; the second metric is a loss.
        np.testing.assert_allclose(preference_sums([0.8, 0.4], preferences, UP), [0.5, 0.6])
        np.testing.assert_allclose(preference_sums([[0.8, 0.4], [0.6, 0.2]], preferences, [True, False]), [-0.1, 0.2])
        # Only proportions count.
        np.testing.assert_allclose(preference_sums([0.8, 0.4], [[1, 3], [2, 2]], UP), [0.5, 0.6])

    def test_sums_that_make_no_sense(self):
        with pytest.raises(SearchError, match="3 preferences choose"):
            preference_sums(np.ones((2, 2)), np.ones((3, 2)), UP)
        with pytest.raises(SearchError, match="Every weight is zero"):
            preference_sums([1, 1], [[0, 0]], UP)
        with pytest.raises(SearchError, match="2 columns"):
            preference_sums([1, 1, 1], [[1, 1]], UP)
        with pytest.raises(SearchError, match="finite"):
            preference_sums([1, np.nan], [[1, 1]], UP)

    def test_win_rate_and_its_error(self):
        baseline = np.zeros(20)
        sums = np.where(np.arange(20) < 15, 1.0, -1.0)
        rate, error = preference_win_rate(sums, baseline)
        assert rate == 0.75
        assert error == pytest.approx(np.std([1] * 15 + [0] * 5, ddof=1) / np.sqrt(20))
        assert preference_win_rate(baseline, baseline) == (0, 0)  # ties are no wins
        assert preference_win_rate(baseline + 1, baseline) == (1, 0)
        assert np.isnan(preference_win_rate([1], [0])[1])

    @pytest.mark.parametrize("pair", [([], []), ([1], [1, 2]), ([[1]], [[1]]), ([np.nan], [1])])
    def test_win_rate_of_what_does_not_fit(self, pair):
        with pytest.raises(SearchError):
            preference_win_rate(*pair)


class TestR2:
    def test_by_hand(self):
        # Errors 0, 1, 0: one squared; about the mean 2 of y: 1 + 0 + 1.
        assert r2([1, 2, 3], [1, 3, 3]) == pytest.approx(1 - 1 / 2)
        assert r2([1, 2, 3], [3, 2, 1]) == pytest.approx(1 - 8 / 2)

    def test_refusals(self):
        with pytest.raises(SearchError, match="at least two points"):
            r2([1], [1])
        with pytest.raises(SearchError, match=r"\(2,\) and \(3,\)"):
            r2([1, 2], [1, 2, 3])
        with pytest.raises(SearchError, match="finite"):
            r2([1, np.nan], [1, 2])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.empty((0, 2)), "at least one"),
        ([[1, 2, 3]], r"2 columns .* \(1, 3\)"),
        ([1, 2], r"shape \(2,\)"),
        ([[1, np.inf]], "finite"),
    ],
)
def test_fronts_that_can_not_be_compared(values, words):
    for compare in (
        lambda: win_rate(values, [[1, 1]], UP),
        lambda: win_rate([[1, 1]], values, UP),
        lambda: hypervolume(values, [0, 0], UP),
    ):
        with pytest.raises(SearchError, match=words):
            compare()


def test_negative_seed():
    with pytest.raises(MapMergeError, match="seed -1 can't be used"):
        win_rate([[1, 1]], [[1, 1]], UP, seed=-1)
