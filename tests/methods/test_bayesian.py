"""Bayesian MAP asks in rounds, and each round knows all that was told before it."""

import numpy as np
import pytest

from mapmerge_core.errors import MapMergeError, SearchError
from mapmerge_core.methods import bayesian
from mapmerge_core.methods.base import Batch
from mapmerge_core.methods.bayesian import BayesianMAP
from mapmerge_core.methods.map import MAP
from tests.methods.making import make_method, objectives_of

ACCURACIES = [("sigmoid", (0.0, 1.0))] * 2
PLAIN = [("identity", (-np.inf, np.inf))] * 2


def bayesian_map(n, points=None, *, links=tuple(ACCURACIES), **options):
    return make_method(BayesianMAP, n, points, objectives=objectives_of(links), **options)


def truth(C):
    """Two accuracies with a trade-off and more bends than a quadratic has, ``n x 2``."""
    x, y = np.asarray(C)[:, 0], np.asarray(C)[:, -1]
    bump = 0.1 * np.sin(5 * x * y)
    return np.column_stack([0.5 + 0.4 * np.tanh(3 * x - y) + bump / 2, 0.5 + 0.35 * np.tanh(2 * y - x) - bump])


def play(method, values=truth):
    """Tells a method the values of all that it asks, and returns the batches' coefficients."""
    asked = []
    while (batch := method.ask()) is not None:
        asked.append(batch.X)
        method.tell(batch, values(batch.X))
    return asked


def features(C):
    x, y = np.asarray(C).T
    return np.column_stack([np.ones_like(x), x, y, x * x, x * y, y * y])


def test_two_task_vectors_take_the_papers_6_and_twice_3_points():
    method = bayesian_map(2, links=ACCURACIES)
    assert method.n_evaluations == 24
    assert [len(C) for C in play(method)] == [6, 3, 3]


@pytest.mark.parametrize(
    ("n", "options", "rounds"),
    [
        (2, {"points": 11}, [6, 3, 2]),
        (2, {"points": 6}, [6]),
        (2, {"points": 14, "initial": 8, "batch": 4}, [8, 4, 2]),
        (1, {}, [3, 2, 1]),
        (3, {}, [10, 5, 5]),
        (4, {}, [15, 8, 7]),
        (2, {"high": 0.6}, [8, 3, 1]),  # two single-task models outside the box aren't fitted
        (2, {"high": 0.6, "anchors": False}, [6, 3, 3]),
        (2, {"low": 0.1}, [9, 3]),
        (8, {"points": 60}, [45, 15]),
    ],
)
def test_exactly_the_budget_is_asked(n, options, rounds):
    method = bayesian_map(n, links=ACCURACIES, **options)
    assert method.n_evaluations == 2 * sum(rounds)
    assert [len(C) for C in play(method)] == rounds


@pytest.mark.parametrize(
    ("n", "options", "words"),
    [
        (2, {"points": 5}, "5 points are too few .* at least 6"),
        (2, {"initial": 4}, "4 points are too few .* at least 6"),
        (4, {"points": 14}, "need 15, so start with at least 15"),
        (2, {"points": 7, "high": 0.6}, "besides the 2 anchors outside the box, so start with at least 8"),
        (2, {"points": 8, "initial": 9}, "9 first points are more than the budget of 8"),
        (2, {"points": 100_001}, "choose 100000 or fewer"),
        (2, {"batch": 0}, "at least 1"),
        (2, {"bins": 0}, "at least 1"),
        (2, {"links": []}, "at least one objective"),
        (2, {"seed": -1}, "seed"),
        (2, {"low": 1.0}, "below the highest"),
    ],
)
def test_what_cannot_be_sampled_or_fitted_is_refused_at_once(n, options, words):
    with pytest.raises(MapMergeError, match=words):
        bayesian_map(n, **{"links": ACCURACIES, **options})


def test_the_first_round_is_the_start_of_plain_maps_design():
    np.testing.assert_array_equal(
        bayesian_map(2, links=ACCURACIES, seed=4).ask().X, make_method(MAP, 2, 12, seed=4).ask().X[:6]
    )


def test_every_round_measures_every_task():
    method = bayesian_map(2, links=[*ACCURACIES, ("identity", (-np.inf, np.inf))])
    while (batch := method.ask()) is not None:
        assert batch.objectives == (0, 1, 2)
        method.tell(batch, np.column_stack([truth(batch.X), batch.X.sum(axis=1)]))
    assert len(method.surrogates) == 3


def test_asks_the_same_until_told_and_a_fresh_one_told_the_same_goes_on_alike():
    asked = play(bayesian_map(2, 18, links=ACCURACIES, seed=7))
    method = bayesian_map(2, 18, links=ACCURACIES, seed=7)
    for C in asked:
        np.testing.assert_array_equal(method.ask().X, C)
        np.testing.assert_array_equal(method.ask().X, C)
        method.tell(Batch(C.copy(), (0, 1)), truth(C).tolist())
    assert method.ask() is None
    other = play(bayesian_map(2, 18, links=ACCURACIES, seed=8))
    assert all(not np.array_equal(C, D) for C, D in zip(asked, other, strict=True))


def test_rounds_differ_and_no_point_is_asked_twice():
    C = np.vstack(play(bayesian_map(2, 60, batch=1, links=ACCURACIES)))
    assert len(np.unique(C, axis=0)) == 60
    assert np.abs(C[6:, None] - C[None, :6]).max(axis=2).min() > 0


@pytest.mark.parametrize("box", [(0.0, 1.0), (0.0, 0.6), (-0.4, 0.8), (0.2, 1.5)])
def test_new_points_stay_inside_the_box(box):
    low, high = box
    asked = play(bayesian_map(2, 40, links=ACCURACIES, low=low, high=high))
    new = np.vstack(asked[1:])
    assert new.min() >= low
    assert new.max() <= high
    # They see the whole of it, not a part: all four quarters.
    assert len(np.unique(new > (low + high) / 2, axis=0)) == 4


def test_the_values_of_the_newest_points_steer_the_next_round():
    method, misled = bayesian_map(2, links=ACCURACIES), bayesian_map(2, links=ACCURACIES)
    for told in (method, misled):
        told.tell(told.ask(), truth(told.ask().X))
    batch = method.ask()
    method.tell(batch, truth(batch.X))
    misled.tell(batch, 1 - truth(batch.X))
    assert not np.array_equal(method.ask().X, misled.ask().X)


def scored_by(monkeypatch):
    """What ``score_bins`` is given in each round."""
    seen = []

    def score(errors, cells, rng):
        seen.append((errors, cells))
        return bayesian_score(errors, cells, rng)

    bayesian_score = bayesian.score_bins
    monkeypatch.setattr(bayesian, "score_bins", score)
    return seen


def test_scores_are_errors_with_and_without_the_point_of_all_points_so_far(monkeypatch):
    seen = scored_by(monkeypatch)
    C = np.vstack(play(bayesian_map(2, 15, links=PLAIN)))
    assert [len(errors) for errors, _ in seen] == [6, 9, 12]
    assert np.isnan(seen[0][0]).all()  # six parameters pass through any five of six points
    for (errors, _), n in zip(seen[1:], [9, 12], strict=True):
        X, Y = features(C[:n]), truth(C[:n])
        fitted = X @ np.linalg.lstsq(X, Y, rcond=None)[0]
        expected = np.zeros(n)
        for i in range(n):
            others = np.arange(n) != i
            weights = np.linalg.lstsq(X[others], Y[others], rcond=None)[0]
            expected[i] = ((Y[i] - fitted[i]) * (Y[i] - X[i] @ weights) / Y.var(axis=0)).mean()
        np.testing.assert_allclose(errors, expected, rtol=1e-6)


def test_a_sigmoid_is_scored_from_its_first_six_points_on(monkeypatch):
    seen = scored_by(monkeypatch)
    play(bayesian_map(2, links=ACCURACIES))
    assert all(np.isfinite(errors).all() and errors.min() > 0 for errors, _ in seen)


def test_the_single_task_models_are_scored_in_the_first_and_the_last_bin(monkeypatch):
    seen = scored_by(monkeypatch)
    play(bayesian_map(2, links=ACCURACIES, bins=5))
    np.testing.assert_array_equal(seen[0][1][:3, 0], [-1, 0, 4])


def test_the_last_batch_is_fitted_too():
    method = bayesian_map(2, links=PLAIN)
    assert method.surrogates is None
    C = np.vstack(play(method))
    weights = np.linalg.lstsq(features(C), truth(C), rcond=None)[0]
    grid = np.random.default_rng(0).random((20, 2))
    predicted = np.column_stack([surrogate.predict(grid) for surrogate in method.surrogates.surrogates])
    np.testing.assert_allclose(predicted, features(grid) @ weights, atol=1e-9)


def test_units_of_a_metric_do_not_matter():
    asked = play(bayesian_map(2, links=PLAIN, seed=3))
    scaled = play(bayesian_map(2, links=PLAIN, seed=3), lambda C: truth(C) * [1, 1000])
    for C, D in zip(asked, scaled, strict=True):
        np.testing.assert_allclose(C, D, atol=1e-12)


def test_single_task_models_outside_the_box_are_measured_but_steer_nothing():
    def wild(C):
        return np.where((C == 1).any(axis=1)[:, None], 0.01, truth(C))

    asked, again = (play(bayesian_map(2, links=ACCURACIES, high=0.6), values) for values in (truth, wild))
    np.testing.assert_array_equal(asked[0][:3], [[0, 0], [1, 0], [0, 1]])
    for C, D in zip(asked, again, strict=True):
        np.testing.assert_array_equal(C, D)


def test_errors_draw_points_to_where_the_surrogate_is_wrong():
    def step(C):  # no quadratic has one; it lies below the diagonal
        x, y = C.T
        return np.column_stack([0.3 + 0.2 * x + 0.4 * ((y < x) & (x + 0.3 * y > 0.7)), 0.3 + 0.2 * y])

    lower, n_new = 0, 0
    for seed in range(12):
        new = np.vstack(play(bayesian_map(2, 30, bins=2, links=ACCURACIES, seed=seed), step)[1:])
        lower += int((new[:, 1] < new[:, 0]).sum())
        n_new += len(new)
    assert lower > 0.6 * n_new


def test_metrics_that_never_change_are_sampled_evenly():
    for links in (PLAIN, ACCURACIES):
        asked = play(bayesian_map(2, 24, links=links), lambda C: np.full((len(C), 2), 0.5))
        assert sum(len(C) for C in asked) == 24


def test_other_losses_are_passed_on():
    methods = {loss: bayesian_map(2, links=ACCURACIES, loss=loss) for loss in ("squared", "huber", "absolute")}
    asked = {loss: np.vstack(play(method)) for loss, method in methods.items()}
    assert all(surrogate.loss == loss for loss, method in methods.items() for surrogate in method.surrogates.surrogates)
    assert all(len(np.unique(C, axis=0)) == 12 for C in asked.values())


def test_refuses_other_batches_and_values_and_stays_as_it_was():
    method = bayesian_map(2, links=ACCURACIES)
    batch = method.ask()
    with pytest.raises(SearchError, match="tell the batch that `ask` returned"):
        method.tell(Batch(batch.X[::-1], batch.objectives), truth(batch.X))
    with pytest.raises(SearchError, match="finite values"):
        method.tell(batch, truth(batch.X)[:5])
    with pytest.raises(SearchError, match="outside its bounds"):
        method.tell(batch, truth(batch.X) + 1)
    assert method.ask() is batch
    assert method.surrogates is None
    asked = play(method)
    for C, D in zip(asked, play(bayesian_map(2, links=ACCURACIES)), strict=True):
        np.testing.assert_array_equal(C, D)
    with pytest.raises(SearchError, match="tell the batch"):
        method.tell(batch, truth(batch.X))
