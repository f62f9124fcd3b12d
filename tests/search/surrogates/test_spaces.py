"""Surrogates on spaces: Scheffé polynomials on simplexes, and objectives that were measured at other points."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from mapmerge_core.errors import SearchError
from mapmerge_core.search.spaces import Box, Product, Simplex
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.search.surrogates.spaces import fit_surrogates

PLAIN, ACCURACY = ("identity", None), ("sigmoid", (0.0, 1.0))


def scheffe(X):
    """Scheffé's quadratic canonical polynomial: x_i, and x_i x_j for i < j (1958, equation 3.2), by hand."""
    n = X.shape[1]
    return np.column_stack([X, *[X[:, i] * X[:, j] for i in range(n) for j in range(i + 1, n)]])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_quadratic_in_all_but_one_weight_is_scheffes_polynomial(n):
    space, rng = Simplex("abcde"[:n]), np.random.default_rng(n)
    X, new = space.sample(60, rng), space.sample(200, rng)
    y = np.sin(X @ np.arange(1, n + 1)) + 0.05 * rng.standard_normal(60)
    weights = np.linalg.lstsq(scheffe(X), y, rcond=None)[0]
    surrogates = fit_surrogates(space, X, y[:, None], [PLAIN])
    assert QuadraticSurrogate.n_parameters(space.n_free) == scheffe(X).shape[1]
    np.testing.assert_allclose(surrogates.predict(new)[:, 0], scheffe(new) @ weights, atol=1e-9)


def test_no_order_of_the_weights_is_preferred():
    space, rng = Simplex("abcd"), np.random.default_rng(0)
    X, order = space.sample(50, rng), [2, 0, 3, 1]
    y = X @ [1, 2, 3, 4] - 3 * X[:, 0] * X[:, 3]
    first, other = (fit_surrogates(space, rows, y[:, None], [PLAIN]) for rows in (X, X[:, order]))
    new = space.sample(50, rng)
    np.testing.assert_allclose(first.predict(new), other.predict(new[:, order]), atol=1e-9)


def test_a_product_is_a_quadratic_in_all_free_coordinates():
    space, rng = Product([Simplex("abc"), Box(["s"], 0, 2)]), np.random.default_rng(0)
    X, new = space.sample(60, rng), space.sample(30, rng)
    truth = lambda x: 1 + x[:, 0] * x[:, 3] - 0.5 * x[:, 2] ** 2 + x[:, 3] ** 2  # noqa: E731
    surrogates = fit_surrogates(space, X, truth(X)[:, None], [PLAIN])
    np.testing.assert_allclose(surrogates.predict(new)[:, 0], truth(new), atol=1e-9)
    np.testing.assert_allclose(surrogates.r2, 1)


def test_intervals_and_gradients_are_each_surrogates_own():
    space, rng = Simplex("abc"), np.random.default_rng(0)
    X = space.sample(40, rng)
    Y = np.clip(np.column_stack([X[:, 0], 1 - X[:, 1] ** 2]) + 0.02 * rng.standard_normal((40, 2)), 0, 1)
    surrogates = fit_surrogates(space, X, Y, [ACCURACY, PLAIN])
    lower, upper = surrogates.predict_interval(X[:5], 0.8)
    for k, one in enumerate(surrogates.surrogates):
        low, high = one.predict_interval(X[:5, :2], 0.8)
        np.testing.assert_array_equal([lower[:, k], upper[:, k]], [low, high])
    values, gradients = surrogates.predict_with_gradients(X[:3])
    np.testing.assert_allclose(values, surrogates.predict(X[:3]))
    for u, gradient in zip(space.free(X[:3]), gradients, strict=True):
        numerical = approx_fprime(u, lambda v: surrogates.predict([[*v, 1 - v.sum()]])[0], 1e-7)
        np.testing.assert_allclose(gradient, numerical, atol=1e-5)
    assert len(surrogates) == len(surrogates.surrogates) == 2


def test_each_objective_is_fitted_to_where_it_was_measured():
    space, rng = Box("abc"), np.random.default_rng(0)
    X = rng.uniform(size=(40, 3))
    Y = np.column_stack([X @ [1, 2, 3], np.cos(X[:, 0]), X[:, 1] * X[:, 2]])
    Y[30:, 1] = Y[:5, 2] = np.nan
    errors = np.where(np.isnan(Y), np.nan, rng.uniform(0, 0.1, Y.shape))
    together = fit_surrogates(space, X, Y, [PLAIN] * 3, errors=errors)
    for k, rows in enumerate([slice(None), slice(30), slice(5, None)]):
        alone = QuadraticSurrogate().fit(X[rows], Y[rows, k], errors[rows, k])
        np.testing.assert_allclose(together.predict(X)[:, k], alone.predict(X), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda Y: Y[:, :1], r"20 points need values of shape \(20, 2\), not \(20, 1\)"),
        (lambda Y: np.where(np.arange(20)[:, None] < 17, np.nan, Y), "at least 6 points, and there are 3: evaluate 3"),
        (lambda Y: np.full_like(Y, np.nan), "there are 0: evaluate 6 more"),
        (lambda Y: np.where([False, True], np.inf, Y), "finite"),
    ],
)
def test_values_that_no_surrogate_fits_are_refused(change, words):
    X = Simplex("abc").sample(20, np.random.default_rng(0))
    with pytest.raises(SearchError, match=words):
        fit_surrogates(Simplex("abc"), X, change(X[:, :2]), [PLAIN] * 2)


def test_points_of_another_width_are_refused():
    X = Simplex("abc").sample(20, np.random.default_rng(0))
    surrogates = fit_surrogates(Simplex("abc"), X, X[:, :1], [PLAIN])
    with pytest.raises(SearchError, match="coefficients"):
        surrogates.predict(np.zeros((4, 5)))
