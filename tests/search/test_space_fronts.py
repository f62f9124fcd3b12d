"""Fronts of simplexes and products, against brute force, and the front of several merges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from mapmerge_core.errors import SearchError, SettingError
from mapmerge_core.search.domains import best_sum
from mapmerge_core.search.fronts import Front, find_front, join_fronts, non_dominated
from mapmerge_core.search.spaces import Box, Product, Simplex
from mapmerge_core.search.surrogates.spaces import fit_surrogates

SPACES = {
    "simplex of two": Simplex("ab"),
    "simplex of three": Simplex("abc"),
    "simplex of five": Simplex("abcde"),
    "product": Product([Simplex("abc"), Box(["scale"], 0.2, 2.0)]),
}
ACCURACY = ("sigmoid", (0.0, 1.0))


def fitted(space, n_objectives, seed=0):
    """Accuracies, each best at a point of its own and lowered away from it at paces of their own."""
    rng = np.random.default_rng(seed)
    X = np.vstack([space.anchors, space.sample(150, rng)])
    tops, paces = space.sample(n_objectives, rng), rng.uniform(0.5, 3, (n_objectives, space.n))
    z = 2 - 4 * (paces * (X[:, None] - tops) ** 2).sum(axis=2)
    return fit_surrogates(space, X, 1 / (1 + np.exp(-z)), [ACCURACY] * n_objectives)


@pytest.fixture(params=[(name, k) for name in SPACES for k in (2, 4)], ids=str, scope="module")
def searched(request):
    name, n_objectives = request.param
    surrogates = fitted(SPACES[name], n_objectives)
    return surrogates, find_front(surrogates, generations=10)


def test_every_point_lies_in_the_space_in_canonical_form(searched):
    surrogates, front = searched
    assert surrogates.space.contains(front.x).all()
    assert surrogates.space.points(front.x).tobytes() == front.x.tobytes()


def test_it_holds_what_the_surrogates_predict_there(searched):
    surrogates, front = searched
    np.testing.assert_array_equal(front.predicted, surrogates.predict(front.x))
    lower, upper = surrogates.predict_interval(front.x)
    np.testing.assert_allclose(front.lower, lower)
    np.testing.assert_allclose(front.upper, upper)
    assert (np.diff(front.predicted[:, 0]) >= 0).all()


def test_no_row_dominates_another(searched):
    _, front = searched
    # What is off by rounding alone doesn't count: the last digits come from canonical points.
    assert non_dominated(front.predicted.round(9), [True] * front.predicted.shape[1]).all()


def test_nothing_random_clearly_dominates_it(searched):
    surrogates, front = searched
    random = surrogates.predict(surrogates.space.sample(20_000, np.random.default_rng(3)))
    beaten = [(random - 5e-3 > row).all(axis=1).any() for row in front.predicted]
    assert np.mean(beaten) < 0.01


def test_it_reaches_what_brute_force_does(searched):
    surrogates, front = searched
    space = surrogates.space
    corners = space.from_unit(np.array(list(itertools.product((0.0, 1.0), repeat=space.n_free))))
    everything = np.vstack([surrogates.space.sample(20_000, np.random.default_rng(4)), corners])
    brute = surrogates.predict(everything)
    weights = np.vstack([np.eye(brute.shape[1]), np.random.default_rng(5).dirichlet(np.ones(brute.shape[1]), 50)])
    assert ((front.predicted @ weights.T).max(axis=0) >= (brute @ weights.T).max(axis=0) - 5e-3).all()


def test_a_box_searched_by_either_name_is_the_same():
    surrogates = fitted(Box("ab", 0, 0.7), 2)
    named = find_front(surrogates, generations=4)
    plain = find_front(surrogates.surrogates, 0, 0.7, generations=4)
    np.testing.assert_array_equal(named.x, plain.x)


def test_a_seed_gives_one_front():
    surrogates = fitted(Simplex("abc"), 2)
    first, again, other = (find_front(surrogates, seed=s, generations=3) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)


def test_points_to_include_compete_and_must_lie_inside():
    surrogates = fitted(Simplex("abc"), 2)
    whole = find_front(surrogates)
    helped = find_front(surrogates, generations=0, include=whole.x)
    assert len(helped) >= 0.8 * len(whole)
    for outside in ([[0.5, 0.6, 0.1]], [[1.2, -0.2, 0.0]], [[np.nan, 0.5, 0.5]], [[0.5, 0.5]]):
        with pytest.raises(SearchError, match="Points to include"):
            find_front(surrogates, include=outside)


def test_directions_and_seeds_that_can_not_be_are_refused():
    surrogates = fitted(Simplex("ab"), 2)
    with pytest.raises(SearchError, match="as many directions"):
        find_front(surrogates, maximize=[True])
    with pytest.raises(SettingError, match="seed"):
        find_front(surrogates, seed=-1)


def test_one_objective_has_a_front_of_one_point_and_fewer_models_than_objectives_are_fine():
    single = find_front(fitted(Simplex("abc"), 1))
    assert single.is_single_point
    assert len(find_front(fitted(Simplex("ab"), 5), generations=3)) > 1


def test_a_weighted_sum_on_a_simplex_is_maximised_as_by_another_optimiser():
    surrogates, weights = fitted(Simplex("abc"), 2, seed=3), np.array([0.3, 0.7])
    value = lambda x: float(surrogates.predict(np.asarray(x)[None])[0] @ weights)  # noqa: E731
    grid = Simplex("abc").grid(500)
    start = grid[np.argmax(surrogates.predict(grid) @ weights)]
    best = best_sum(surrogates, weights, start)
    sums_to_1 = {"type": "eq", "fun": lambda x: x.sum() - 1}
    options = {"ftol": 1e-14}
    other = minimize(lambda x: -value(x), start, bounds=[(0, 1)] * 3, constraints=sums_to_1, options=options)
    assert value(best) == pytest.approx(-other.fun, abs=1e-7)


class TestJoined:
    def fronts(self):
        rng = np.random.default_rng(0)
        made = []
        for key, n in (("box", 4), ("simplex", 3)):
            x, values = rng.uniform(size=(60, n)), rng.uniform(size=(60, 3)).round(1)
            made.append((key, Front(x, values, values - 0.1, values + 0.1)))
        return made

    def test_it_is_what_no_row_of_any_dominates(self):
        fronts = self.fronts()
        joint = join_fronts(fronts, [True, False, True])
        rows = [(key, tuple(x), tuple(v)) for key, f in fronts for x, v in zip(f.x, f.predicted, strict=True)]
        sign = np.array([1, -1, 1])
        kept = {
            row
            for row in rows
            if not any((np.array(o[2]) * sign >= np.array(row[2]) * sign).all() and o[2] != row[2] for o in rows)
        }
        assert {(k, tuple(x), tuple(v)) for k, x, v in zip(joint.keys, joint.x, joint.predicted, strict=True)} == kept
        assert set(joint.keys) == {"box", "simplex"}
        np.testing.assert_allclose(joint.lower, joint.predicted - 0.1)
        np.testing.assert_allclose(joint.upper, joint.predicted + 0.1)
        assert (np.diff(joint.predicted[:, 0]) >= 0).all()
        assert len(joint) == len(kept)

    def test_one_front_stays_as_it_is(self):
        front = find_front(fitted(Simplex("abc"), 3), generations=3)
        joint = join_fronts([(7, front)], [True] * 3)
        np.testing.assert_array_equal(np.array(joint.x), front.x)
        assert set(joint.keys) == {7}

    def test_a_merge_that_is_better_everywhere_is_alone(self):
        (key, front), _ = self.fronts()
        worse = Front(front.x, front.predicted - 2, front.lower - 2, front.upper - 2)
        assert set(join_fronts([("worse", worse), (key, front)], [True] * 3).keys) == {key}
