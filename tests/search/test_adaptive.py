"""Angular bins, their scores and what is drawn from them, against cases worked by hand."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chisquare, kstest

from mapmerge_core.search.adaptive import (
    AngularBins,
    bin_probabilities,
    bins_per_angle,
    draw_bin,
    draw_points,
    score_bins,
)
from mapmerge_core.search.spaces import Box


def ray(degrees, radius):
    return [radius * np.cos(np.radians(degrees)), radius * np.sin(np.radians(degrees))]


def test_two_coefficients_are_binned_by_their_angle_alone():
    bins = AngularBins(2, 4)  # 0, 22.5, 45 and 67.5 degrees
    C = [ray(10, 0.01), ray(10, 0.9), ray(22.4, 0.5), ray(22.6, 0.5), [0.3, 0.3], ray(67, 0.7), ray(68, 0.7)]
    np.testing.assert_array_equal(bins.locate(np.array(C, dtype=float))[:, 0], [0, 0, 0, 1, 2, 2, 3])


def test_points_on_an_axis_belong_to_the_first_and_the_last_bin():
    np.testing.assert_array_equal(
        AngularBins(2, 4).locate(np.array([[1, 0], [0.2, 0], [0, 1], [0, 0.2]], dtype=float))[:, 0], [0, 0, 3, 3]
    )


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("high", [0.6, 1.0])
def test_no_one_hot_point_is_lost(n, high):
    """e_i has i - 1 right angles, and then angles of 0."""
    bins = AngularBins(n, 3)
    box = Box([f"c{i}" for i in range(n)], 0, high)
    expected = [[2] * i + [0] * (n - 1 - i) for i in range(n)]
    np.testing.assert_array_equal(bins.locate(box.to_unit(high * np.eye(n))), expected)


def test_three_coefficients_have_two_angles():
    # (1, 1, 1): atan(√2) = 54.7 and 45 degrees; (1, .1, .05): 6.4 and 26.6; (.1, .9, .8): 85.3 and 41.6.
    C = [[1, 1, 1], [1, 0.1, 0.05], [0.1, 0.9, 0.8], [0, 0, 1]]
    np.testing.assert_array_equal(AngularBins(3, 3).locate(np.array(C, dtype=float)), [[1, 1], [0, 0], [2, 1], [2, 2]])


def test_bins_start_from_the_low_corner_of_the_box_which_has_none():
    bins, box = AngularBins(2, 3), Box("ab", -1.0, 1.0)
    C = [[-1, -1], [0, 0], [1, -1], [-1, 1], [-0.5, -0.9], [1, 1]]
    np.testing.assert_array_equal(bins.locate(box.to_unit(np.array(C)))[:, 0], [-1, 1, 0, 2, 0, 1])
    np.testing.assert_array_equal(AngularBins(3, 2).locate(np.zeros((1, 3))), [[-1, -1]])


def test_there_are_about_as_many_joint_bins_as_parameters():
    assert {n: bins_per_angle(n) for n in (2, 3, 4, 5, 8, 30)} == {2: 6, 3: 3, 4: 2, 5: 2, 8: 2, 30: 2}
    assert [AngularBins(n, bins_per_angle(n)).count for n in (2, 3, 4, 8)] == [6, 9, 8, 128]


@pytest.mark.parametrize(("n", "per_angle", "cell"), [(2, 3, [0]), (2, 3, [1]), (3, 2, [1, 0]), (4, 2, [1, 1, 0])])
def test_points_are_uniform_in_the_volume_of_bin_and_box(n, per_angle, cell):
    bins = AngularBins(n, per_angle)
    rng = np.random.default_rng(0)
    drawn = np.vstack([bins.draw(cell, 1, rng) for _ in range(800)])
    assert (bins.locate(drawn) == cell).all()
    box = rng.uniform(0, 1, (60_000, n))
    rejected = box[(bins.locate(box) == cell).all(axis=1)]
    for i in range(n):
        assert kstest(drawn[:, i], rejected[:, i]).pvalue > 1e-3
    assert kstest(drawn.prod(axis=1), rejected.prod(axis=1)).pvalue > 1e-3


def test_a_bins_score_is_its_mean_error_and_half_the_deviation_of_its_bootstrap():
    cells = np.array([[0], [0], [0], [3], [1]])
    scored, scores = score_bins(np.array([0.4, 0.4, 0.4, 7.0, 0.01]), cells, np.random.default_rng(0))
    np.testing.assert_array_equal(scored, [[0], [1], [3]])
    np.testing.assert_allclose(scores, [0.4, 0.01, 7.0])  # without spread, and single points, deviate by 0


def test_the_bootstrap_drops_a_fifth_of_the_points():
    # One of five left out: means (Σx - x_i) / 4, whose deviation is that of x over 4.
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    scores = [score_bins(x, np.zeros((5, 1), int), np.random.default_rng(s))[1][0] for s in range(400)]
    assert np.mean(scores) - x.mean() == pytest.approx(0.5 * x.std() / 4, rel=0.04)
    assert np.std(scores) > 0


def test_small_bins_drop_one_point_and_keep_one():
    # One of two left out: k of 30 means are 2 and the others 0, a deviation of 2 √(p (1 - p)).
    _, (score,) = score_bins(np.array([0.0, 2.0]), np.zeros((2, 1), int), np.random.default_rng(3))
    shares = np.arange(31) / 30
    assert np.isclose(score - 1, np.sqrt(shares * (1 - shares))).any()
    assert 0.4 < score - 1 <= 0.5


def test_points_without_a_bin_or_a_known_error_are_not_scored():
    cells = np.array([[-1], [0], [0], [2]])
    scored, scores = score_bins(np.array([9.0, 0.5, np.nan, np.nan]), cells, np.random.default_rng(0))
    np.testing.assert_array_equal(scored, [[0]])
    np.testing.assert_allclose(scores, [0.5])


def elsewhere(probabilities, n_bins):
    """The probability of each bin without a score."""
    return (1 - probabilities.sum()) / (n_bins - len(probabilities))


def test_probabilities_are_a_softmax_of_standardised_scores_and_empty_bins_are_likeliest():
    # Mean 2, deviation √(2/3): -1.2247, 0 and 1.2247; two bins of five are empty and count as the largest.
    z = np.sqrt(1.5)
    expected = softmax([-z, 0, z, z, z])
    for unit in (1.0, 1e-3, 1e6):
        probabilities = bin_probabilities(unit * np.array([1.0, 2.0, 3.0]), 5)
        np.testing.assert_allclose(probabilities, expected[:3])
        assert elsewhere(probabilities, 5) == pytest.approx(expected[3])


@pytest.mark.parametrize("score", [0.2, 0.0])
def test_bins_are_alike_where_all_score_the_same_and_where_none_does(score):
    alike = bin_probabilities(np.full(2, score), 9)
    np.testing.assert_allclose([*alike, elsewhere(alike, 9)], 1 / 9)
    assert elsewhere(bin_probabilities(np.empty(0), 9), 9) == pytest.approx(1 / 9)


@pytest.mark.parametrize("scored", [[[0], [1], [4]], [[0], [1], [2], [3], [4]]])
def test_bins_are_drawn_in_proportion_to_their_probability(scored):
    probabilities = bin_probabilities(np.arange(len(scored)) / 100, 5)
    rng = np.random.default_rng(1)
    drawn = [draw_bin(AngularBins(2, 5), np.array(scored), probabilities, rng)[0] for _ in range(4000)]
    expected = np.full(5, np.nan if len(scored) == 5 else elsewhere(probabilities, 5))
    expected[np.ravel(scored)] = probabilities
    assert chisquare(np.bincount(drawn, minlength=5), 4000 * expected).pvalue > 1e-3


def test_points_come_from_the_bins_drawn_and_stay_in_the_box():
    bins = AngularBins(3, 2)
    every = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    scores = np.array([0.0, 1e9, 0.0, 0.0])
    drawn = draw_points(bins, every, scores, 200, np.zeros((1, 3)), np.random.default_rng(0))
    assert drawn.shape == (200, 3)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    shares = [(bins.locate(drawn) == cell).all(axis=1).mean() for cell in every]
    np.testing.assert_allclose(shares, bin_probabilities(scores, 4), atol=0.1)


def test_points_keep_away_from_those_before_them():
    bins = AngularBins(2, 1)
    crowd = 0.5 * np.random.default_rng(5).random((200, 2))
    for seed in range(20):
        drawn = draw_points(bins, np.array([[0]]), np.ones(1), 1, crowd, np.random.default_rng(seed))
        assert drawn.max() > 0.5  # a uniform point would lie in the crowd's quarter every fourth time


def test_no_point_is_asked_again():
    class Repeating(AngularBins):
        def draw(self, *_):
            return np.vstack([known, [[0.5, 0.5001]]])

    known = np.array([[0.5, 0.5], [0.1, 0.9]])
    drawn = draw_points(Repeating(2, 1), np.array([[0]]), np.ones(1), 1, known, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn, [[0.5, 0.5001]])


def test_many_task_vectors_never_list_all_bins():
    bins = AngularBins(60, 2)
    assert bins.count == 2**59
    anchors = np.vstack([np.zeros(60), np.eye(60)])
    scored, scores = score_bins(np.linspace(1, 2, 61), bins.locate(anchors), np.random.default_rng(0))
    assert len(scored) == 60
    drawn = draw_points(bins, scored, scores, 3, anchors, np.random.default_rng(0))
    assert drawn.shape == (3, 60)
    assert np.isfinite(drawn).all()
    assert ((drawn >= 0) & (drawn <= 1)).all()


def test_one_dimension_is_a_single_bin_whose_gaps_are_filled():
    bins = AngularBins(1, bins_per_angle(1))
    assert bins.count == 1
    np.testing.assert_array_equal(bins.locate(np.array([[0.2], [1.0]], dtype=float)), np.empty((2, 0)))
    scored, scores = score_bins(
        np.array([0.3, np.nan, 0.1]),
        bins.locate(np.array([[0.2], [0.5], [1.0]], dtype=float)),
        np.random.default_rng(0),
    )
    assert scores.shape == (1,)
    drawn = draw_points(bins, scored, scores, 3, np.array([[0.0], [1.0]]), np.random.default_rng(0))
    np.testing.assert_allclose(np.sort(drawn[:, 0]), [0.25, 0.5, 0.75], atol=0.05)
