import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from mapmerge_core.errors import SearchError, SettingError
from mapmerge_core.search.domains import best_sum
from mapmerge_core.search.fronts import find_front, non_dominated, reference_directions
from mapmerge_core.search.spaces import Box
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates


def predict_all(surrogates, C):
    return SpaceSurrogates.in_box(surrogates, 0, 1).predict(C)


def brute_non_dominated(values, signs):
    """The definition, row by row."""
    goodness = np.asarray(values) * signs
    return [not any((other >= row).all() and (other > row).any() for other in goodness) for row in goodness]


def hypervolume(points, reference):
    """Area that maximised pairs dominate above a reference point, by slices."""
    area, right = 0.0, reference[0]
    for x, y in sorted(map(tuple, points)):
        best = max(b for a, b in points if a >= x)
        area += (x - right) * (best - reference[1])
        right = x
        assert best >= y
    return area


def accuracies(n_tasks, n_points=None, high=1.0, seed=0):
    """Sigmoid surrogates in the likeness of merging: each task wants its vector and suffers the others."""
    rng = np.random.default_rng(seed)
    C = rng.uniform(0, high, (n_points or 3 * QuadraticSurrogate.n_parameters(n_tasks), n_tasks))
    surrogates = []
    for task in range(n_tasks):
        pull = -rng.uniform(0.2, 1.5, n_tasks)
        pull[task] = 5
        bend = -np.diag(rng.uniform(0.5, 3, n_tasks))
        z = 0.5 + C @ pull + np.einsum("ni,ij,nj->n", C, bend, C)
        y = np.clip(expit(z) + 0.01 * rng.normal(size=len(C)), 0, 1)
        surrogates.append(QuadraticSurrogate(link="sigmoid").fit(C, y))
    return surrogates


class TestNonDominated:
    @pytest.mark.parametrize("n_metrics", [1, 2, 3, 5])
    def test_is_the_definition(self, n_metrics):
        rng = np.random.default_rng(n_metrics)
        values = np.round(rng.uniform(size=(120, n_metrics)), 1)  # rounded: ties and equal rows
        maximize = [bool(k % 2) for k in range(n_metrics)]
        signs = np.where(maximize, 1, -1)
        assert non_dominated(values, maximize).tolist() == brute_non_dominated(values, signs)

    @pytest.mark.parametrize("decimals", [1, 9])
    def test_is_the_definition_for_many_rows(self, decimals):
        values = np.random.default_rng(0).normal(size=(700, 4)).round(decimals)
        assert non_dominated(values, [True] * 4).tolist() == brute_non_dominated(values, np.ones(4))

    def test_equal_rows_both_stay(self):
        assert non_dominated([[1, 2], [1, 2], [0, 2]], [True, True]).tolist() == [True, True, False]

    def test_no_rows(self):
        assert non_dominated(np.empty((0, 2)), [True, True]).shape == (0,)

    def test_what_cannot_be_compared(self):
        with pytest.raises(SearchError, match="finite"):
            non_dominated([[0.1, np.nan]], [True, True])
        with pytest.raises(SearchError, match="3 directions"):
            non_dominated([[0.1, 0.2]], [True] * 3)


class TestKnownFronts:
    def test_two_hills_trade_off_along_the_segment_between_them(self, peak):
        tops = np.array([[0.2, 0.3], [0.8, 0.6]])
        front = find_front([peak(tops[0]), peak(tops[1])], 0, 1)
        along = (front.x - tops[0]) @ (tops[1] - tops[0]) / ((tops[1] - tops[0]) @ (tops[1] - tops[0]))
        off = front.x - tops[0] - along[:, None] * (tops[1] - tops[0])
        assert np.linalg.norm(off, axis=1).max() < 0.01
        assert np.median(np.linalg.norm(off, axis=1)) < 0.001
        assert along.min() == pytest.approx(0, abs=0.01)
        assert along.max() == pytest.approx(1, abs=0.01)
        assert np.diff(np.sort(along)).max() < 0.05
        assert len(front) > 100

    def test_three_hills_trade_off_inside_their_triangle(self, peak):
        tops = np.array([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]])
        front = find_front([peak(top) for top in tops], 0, 1)
        shares = np.linalg.solve(np.vstack([tops.T, np.ones(3)]), np.vstack([front.x.T, np.ones(len(front))]))
        assert shares.min() > -0.06
        assert np.quantile(shares.min(axis=0), 0.1) > -1e-3
        assert (shares.max(axis=1) > 0.97).all()

    @pytest.mark.parametrize("seed", range(2))
    def test_covers_at_least_what_a_fine_grid_does(self, seed):
        surrogates = accuracies(2, seed=seed)
        axis = np.linspace(0, 1, 60)
        grid = predict_all(surrogates, np.array([(x, y) for x in axis for y in axis]))
        grid = grid[non_dominated(grid, [True, True])]
        front = find_front(surrogates, 0, 1, seed=seed)
        assert (
            hypervolume(front.predicted, (0, 0)) > hypervolume(grid, (0, 0)) - 5e-4
        )  # 200 steps of a staircase against 480

    def test_metrics_that_go_down_are_minimised(self, peak):
        up, down = peak([0.3, 0.3]), QuadraticSurrogate()
        C = np.random.default_rng(0).uniform(size=(20, 2))
        down.fit(C, ((C - 0.7) ** 2).sum(axis=1))
        front = find_front([up, down], 0, 1, maximize=[True, False])
        assert front.predicted[:, 1].min() == pytest.approx(0, abs=1e-6)
        assert front.predicted[:, 0].max() == pytest.approx(1, abs=1e-6)
        assert np.abs(front.x[:, 0] - front.x[:, 1]).max() < 0.06


class TestEveryFront:
    @pytest.fixture(scope="class", params=[(1, 1.0), (2, 1.0), (3, 1.0), (8, 0.6)], ids=lambda p: f"{p[0]} tasks")
    @classmethod
    def searched(cls, request):
        n_tasks, high = request.param
        surrogates = accuracies(n_tasks, high=high)
        front = find_front(surrogates, 0, high)
        return surrogates, high, front

    def test_stays_inside_the_box(self, searched):
        _, high, front = searched
        assert front.x.min() >= 0
        assert front.x.max() <= high

    def test_holds_what_the_surrogates_predict_there(self, searched):
        surrogates, _, front = searched
        np.testing.assert_allclose(front.predicted, predict_all(surrogates, front.x))
        for k, surrogate in enumerate(surrogates):
            lower, upper = surrogate.predict_interval(front.x)
            np.testing.assert_allclose(front.lower[:, k], lower)
            np.testing.assert_allclose(front.upper[:, k], upper)

    def test_no_row_dominates_another_and_none_is_there_twice(self, searched):
        surrogates, _, front = searched
        assert all(brute_non_dominated(front.predicted, np.ones(len(surrogates))))
        assert len(np.unique(front.predicted.round(9), axis=0)) == len(front)

    def test_is_sorted_by_the_first_metric(self, searched):
        _, _, front = searched
        assert (np.diff(front.predicted[:, 0]) >= 0).all()

    def test_its_ends_beat_twenty_thousand_random_points(self, searched):
        surrogates, high, front = searched
        random = np.random.default_rng(1).uniform(0, high, (20_000, len(surrogates)))
        predicted = predict_all(surrogates, random)
        assert (front.predicted.max(axis=0) >= predicted.max(axis=0) - 1e-3).all()
        assert front.predicted.mean(axis=1).max() >= predicted.mean(axis=1).max() - 1e-3

    def test_random_points_hardly_ever_dominate_it(self, searched):
        surrogates, high, front = searched
        random = predict_all(surrogates, np.random.default_rng(2).uniform(0, high, (5_000, len(surrogates))))
        clear = random - 1e-3  # better by more than a tenth of a point
        beaten = [(clear > row).all(axis=1).any() for row in front.predicted]
        assert np.mean(beaten) < 0.01

    def test_is_neither_meagre_nor_endless(self, searched):
        surrogates, _, front = searched
        if len(surrogates) == 1:
            assert front.is_single_point
        else:
            assert 100 <= len(front) <= 400
            assert not front.is_single_point


class TestSearch:
    def test_same_seed_same_front_and_other_seed_another(self):
        surrogates = accuracies(2)
        first, again, other = (find_front(surrogates, 0, 1, seed=s, generations=5) for s in (5, 5, 6))
        np.testing.assert_array_equal(first.x, again.x)
        assert not np.array_equal(first.x, other.x)

    def test_the_number_of_threads_does_not_matter(self):
        surrogates = accuracies(4)
        fronts = []
        for n_threads in (1, 2):
            with threadpool_limits(n_threads):
                fronts.append(find_front(surrogates, 0, 1, generations=3))
        np.testing.assert_array_equal(fronts[0].x, fronts[1].x)

    def test_a_metric_that_hardly_varies_has_a_front_as_any_other(self, peak):
        tops = [[0.2, 0.3], [0.8, 0.6]]
        front = find_front([peak(tops[0]), peak(tops[1])], 0, 1, generations=5)
        C = np.random.default_rng(0).uniform(size=(30, 2))
        tiny = QuadraticSurrogate().fit(C, 5 - 1e-9 * ((C - tops[1]) ** 2).sum(axis=1))
        faint = find_front([peak(tops[0]), tiny], 0, 1, generations=5)
        assert len(faint) > 0.5 * len(front)
        np.testing.assert_allclose(faint.x.max(axis=0), front.x.max(axis=0), atol=0.02)

    @pytest.mark.parametrize("top", [[0.4, 0.6], [1.0, 1.0], [1.5, 0.5]])
    def test_tasks_that_agree_leave_a_single_point(self, peak, top):
        front = find_front([peak(top), peak(top, height=0.7)], 0, 1)
        assert front.is_single_point
        np.testing.assert_allclose(front.x[0], np.clip(top, 0, 1), atol=1e-3)

    def test_more_vectors_than_tasks_and_a_box_with_ends_of_its_own(self, peak):
        low, high = np.array([0.0, -0.5, 0.2]), np.array([1.0, 0.0, 0.4])
        front = find_front([peak([0.2, 0.3, 0.3]), peak([0.9, 0.3, 0.3])], low, high)
        assert (front.x >= low).all()
        assert (front.x <= high).all()
        np.testing.assert_allclose(front.x[:, 1], 0, atol=0.02)
        assert np.ptp(front.x[:, 0]) == pytest.approx(0.7, abs=0.02)

    def test_a_weighted_sum_is_maximised_as_by_another_optimiser(self):
        surrogates, weights = accuracies(3), np.array([0.2, 0.5, 0.3])
        start = np.full(3, 0.5)
        found = best_sum(SpaceSurrogates(Box("abc", 0, [1, 1, 0.7]), surrogates), weights, start)
        value = lambda c: float(predict_all(surrogates, c[None])[0] @ weights)  # noqa: E731
        options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000}
        box = [(0, 1), (0, 1), (0, 0.7)]
        other = minimize(lambda c: -value(c), start, method="Nelder-Mead", bounds=box, options=options)
        assert value(found) == pytest.approx(-other.fun, abs=1e-8)
        assert found[2] <= 0.7

    def test_points_to_include_compete(self):
        surrogates = accuracies(2)
        best = find_front(surrogates, 0, 1)
        helped = find_front(surrogates, 0, 1, generations=0, include=best.x)
        assert hypervolume(helped.predicted, (0, 0)) >= hypervolume(best.predicted, (0, 0)) - 1e-4

    def test_flat_surrogates_do_not_crash_it(self):
        C = np.random.default_rng(0).uniform(size=(20, 2))
        flat = QuadraticSurrogate(link="sigmoid").fit(C, np.full(20, 0.5))
        assert len(find_front([flat, flat], 0, 1, generations=5)) >= 1

    @pytest.mark.parametrize("n_metrics", range(1, 17))
    def test_directions_are_about_a_hundred_shares(self, n_metrics):
        directions = reference_directions(n_metrics)
        np.testing.assert_allclose(directions.sum(axis=1), 1)
        assert directions.shape[1] == n_metrics
        assert len(np.unique(directions.round(9), axis=0)) == len(directions)
        assert len(directions) <= 260


class TestRefusals:
    def test_boxes_that_are_empty_or_do_not_fit(self, peak):
        s = [peak([0.5, 0.5])]
        for low, high in [(1, 0), (0, 0), (0, np.nan), ([0, 0.5], [1, 0.5])]:
            with pytest.raises(SearchError, match="lowest coefficient must be below the highest"):
                find_front(s, low, high)
        with pytest.raises(SearchError, match="each of 2"):
            find_front(s, [0, 0, 0], 1)

    def test_surrogates_that_do_not_belong_together(self, peak):
        with pytest.raises(SearchError, match="same coefficients"):
            find_front([peak([0.5, 0.5]), peak([0.5, 0.5, 0.5])], 0, 1)
        with pytest.raises(SearchError, match="same coefficients"):
            find_front([], 0, 1)
        with pytest.raises(SearchError, match="as many directions"):
            find_front([peak([0.5, 0.5])], 0, 1, maximize=[True, False])

    def test_a_negative_seed(self, peak):
        with pytest.raises(SettingError, match="seed -1"):
            find_front([peak([0.5, 0.5])], 0, 1, seed=-1)

    @pytest.mark.parametrize("include", [[[0.5, 1.2]], [[0.5, np.nan]], [[0.5]], [0.5, 0.5]])
    def test_points_to_include_that_do_not_fit(self, peak, include):
        with pytest.raises(SearchError, match="Points to include"):
            find_front([peak([0.5, 0.5])], 0, 1, include=include)
