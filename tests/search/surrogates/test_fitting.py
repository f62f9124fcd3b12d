"""The absolute and the Huber loss of QuadraticSurrogate; the squared one is in test_quadratic.py."""

import numpy as np
import pytest
from scipy.optimize import linprog, minimize
from scipy.special import expit
from sklearn.metrics import r2_score

from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from tests.search.surrogates.test_quadratic import LINKS, measured, plain_design_matrix

ROBUST = ["absolute", "huber"]
VALUE = {"identity": lambda z: z, "sigmoid": expit, "softplus": lambda z: np.logaddexp(0, z)}


def corrupted(y, row=4):
    """A measurement gone wrong: far off, yet inside the bounds."""
    worse = y.copy()
    worse[row] = 1 - y[row] if abs(1 - 2 * y[row]) > 0.3 else 0.0
    return worse


def least_absolute(X, y):
    """The least sum of absolute errors, by a linear programme in the weights and one bound for each error."""
    n, p = X.shape
    rows = np.block([[X, -np.eye(n)], [-X, -np.eye(n)]])
    cost = np.concatenate([np.zeros(p), np.ones(n)])
    bounds = [(None, None)] * p + [(0, None)] * n
    return linprog(cost, rows, np.concatenate([y, -y]), bounds=bounds, method="highs").fun


def huber(errors, width):
    """The textbook's loss, doubled: squared near zero, then a line with the same slope."""
    sizes = np.abs(errors)
    return np.where(sizes <= width, sizes**2, 2 * width * sizes - width**2).sum()


class TestAbsolute:
    @pytest.mark.parametrize(("n", "N"), [(7, 2), (30, 2), (60, 4), (60, 8)])
    def test_identity_reaches_the_linear_programmes_minimum(self, n, N):
        C, y = measured(n, N)
        y = corrupted(y)
        s = QuadraticSurrogate(loss="absolute").fit(C, y)
        best = least_absolute(plain_design_matrix(C)[0], y)
        assert np.abs(y - s.predict(C)).sum() == pytest.approx(best, rel=1e-5)
        assert s.sigma_ > 0

    def test_scale_is_the_median_of_the_residuals_that_are_not_interpolated(self):
        C, y = measured(40, 2)
        s = QuadraticSurrogate(loss="absolute").fit(C, y)
        sizes = np.sort(np.abs(y - s.predict(C)))
        assert (sizes[:6] < 1e-6).all()
        assert s.sigma_ == pytest.approx(np.median(sizes[6:]) / 0.6745)

    @pytest.mark.parametrize("link", ["sigmoid", "softplus"])
    def test_no_other_optimiser_finds_a_smaller_sum(self, link):
        C, y = measured(30, 2)
        s = QuadraticSurrogate(link, ridge=0.05, loss="absolute").fit(C, y)
        low, high = C.min(axis=0), C.max(axis=0)
        X, _ = plain_design_matrix((2 * C - low - high) / (high - low))
        X[:, [3, 5]] /= 2  # the ridge is on e, b and A, and a square comes with half of A's entry
        unit = 1.0 if link == "sigmoid" else y.std()

        def cost(w):
            return np.abs(y - VALUE[link](X @ w)).sum() / unit + 0.05 * w[1:] @ w[1:]

        ours = np.linalg.lstsq(X, s.e_ + C @ s.b_ + 0.5 * np.einsum("ni,ij,nj->n", C, s.A_, C), rcond=None)[0]
        rng = np.random.default_rng(0)
        starts = [np.zeros(6), ours, *(ours + 0.1 * rng.normal(size=(4, 6)))]
        options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-12, "adaptive": True}
        found = min(minimize(cost, start, method="Nelder-Mead", options=options).fun for start in starts)
        assert cost(ours) <= found * (1 + 1e-5)


class TestHuber:
    @pytest.mark.parametrize("link", LINKS)
    def test_no_other_optimiser_finds_a_smaller_sum(self, link):
        C, y = measured(40, 2)
        y = corrupted(y)
        s = QuadraticSurrogate(link, ridge=0.0, loss="huber").fit(C, y)
        X, _ = plain_design_matrix(C)

        def cost(w):
            return huber(y - VALUE[link](X @ w), 1.345 * s.sigma_)

        starts = np.random.default_rng(0).normal(size=(6, 6))
        found = min(minimize(cost, start, method="BFGS").fun for start in starts)
        assert huber(y - s.predict(C), 1.345 * s.sigma_) == pytest.approx(found, rel=1e-5)

    def test_scale_is_that_of_the_absolute_fit(self):
        C, y = measured(40, 3)
        scales = [QuadraticSurrogate(loss=loss).fit(C, y).sigma_ for loss in ROBUST]
        assert scales[0] == scales[1]

    def test_ridge_weighs_as_much_as_beside_the_squared_loss(self):
        rng = np.random.default_rng(1)
        C = rng.uniform(size=(40, 2))
        y = 0.5 + 0.2 * C[:, 0] + rng.choice([-0.01, 0.01], 40)  # every error is within the squared part
        fits = [QuadraticSurrogate(ridge=0.5, loss=loss).fit(C, y) for loss in ("squared", "huber")]
        assert np.abs(y - fits[1].predict(C)).max() > 0.012
        np.testing.assert_allclose(fits[1].predict(C), fits[0].predict(C), atol=3e-3)


class TestRobustness:
    @pytest.mark.parametrize("link", LINKS)
    @pytest.mark.parametrize("loss", ROBUST)
    def test_a_wild_measurement_hardly_moves_the_fit(self, link, loss):
        C, y = measured(40, 2)
        moves = {}
        for each in ("squared", loss):
            before, after = (QuadraticSurrogate(link, loss=each).fit(C, v).predict(C) for v in (y, corrupted(y)))
            moves[each] = np.abs(after - before).max()
        assert moves["squared"] > 0.1
        assert moves[loss] < 0.25 * moves["squared"]

    @pytest.mark.parametrize("loss", ROBUST)
    @pytest.mark.parametrize("link", LINKS)
    def test_a_quadratic_is_recovered_whatever_a_few_points_say(self, link, loss):
        C, _ = measured(40, 2)
        z = 0.3 + C @ [1.0, 0.4] - C[:, 0] ** 2 + 0.5 * C[:, 0] * C[:, 1]
        y = VALUE[link](z).copy()
        y[:5] = 0.0
        s = QuadraticSurrogate(link, ridge=0.0, loss=loss).fit(C, y)
        np.testing.assert_allclose(s.predict(C), VALUE[link](z), atol=1e-5)
        np.testing.assert_allclose(s.A_, [[-2, 0.5], [0.5, 0]], atol=1e-3)
        assert s.sigma_ < 1e-5

    @pytest.mark.parametrize("loss", ROBUST)
    def test_the_units_of_the_metric_do_not_matter(self, loss):
        C, y = measured(40, 3)
        for link, bounds in (("identity", None), ("sigmoid", (-100, 300))):
            s = QuadraticSurrogate(link, loss=loss).fit(C, y)
            scaled = QuadraticSurrogate(link, bounds, loss=loss).fit(C, 400 * y - 100)
            np.testing.assert_allclose(scaled.predict(C), 400 * s.predict(C) - 100, atol=4e-2)
            assert scaled.sigma_ == pytest.approx(400 * s.sigma_, rel=1e-3)

    @pytest.mark.parametrize("loss", ROBUST)
    @pytest.mark.parametrize("link", LINKS)
    @pytest.mark.parametrize(("n", "N"), [(6, 2), (7, 2), (20, 2)])
    def test_saturated_or_constant_metrics_leave_everything_finite(self, link, loss, n, N):
        C = np.random.default_rng(0).uniform(size=(n, N))
        for y in (np.ones(n), np.zeros(n), (C[:, 0] > 0.5).astype(float)):
            s = QuadraticSurrogate(link, loss=loss).fit(C, y)
            lower, upper = s.predict_interval(C)
            for values in (s.A_, s.b_, s.e_, s.predict(C), s.gradient(C)):
                assert np.isfinite(values).all()
            assert (lower <= s.predict(C)).all()
            assert (s.predict(C) <= upper).all()
            assert np.isfinite(s.sigma_) == (n > 6)


class TestLeaveOneOut:
    @staticmethod
    def refitted(C, y, **options):
        kept = [np.delete(np.arange(len(y)), i) for i in range(len(y))]
        return np.array([QuadraticSurrogate(**options).fit(C[k], y[k]).predict(C[[i]])[0] for i, k in enumerate(kept)])

    @pytest.mark.parametrize("link", ["identity", "sigmoid"])
    @pytest.mark.parametrize("wild", [False, True])
    def test_huber_is_close_to_refitting_without_each_point(self, link, wild):
        C, y = measured(40, 2)
        y = corrupted(y) if wild else y
        s = QuadraticSurrogate(link, loss="huber").fit(C, y)
        without = self.refitted(C, y, link=link, loss="huber")
        assert np.median(np.abs(s.loo_predictions_ - without)) < 0.05 * np.median(np.abs(y - without))
        assert s.loo_r2_ == pytest.approx(r2_score(y, without), abs=0.03)

    @pytest.mark.parametrize("wild", [False, True])
    def test_absolute_follows_refitting_without_each_point(self, wild):
        C, y = measured(60, 2)
        y = corrupted(y) if wild else y
        s = QuadraticSurrogate("sigmoid", loss="absolute").fit(C, y)
        without = self.refitted(C, y, link="sigmoid", loss="absolute")
        assert np.median(np.abs(s.loo_predictions_ - without)) < 0.3 * np.median(np.abs(y - without))
        assert s.loo_r2_ == pytest.approx(r2_score(y, without), abs=0.08)


@pytest.mark.parametrize("loss", ROBUST)
@pytest.mark.parametrize("wild", [False, True])
def test_intervals_cover_ordinary_measurements_as_often_as_they_say(loss, wild):
    inside = []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        C, new = rng.uniform(0, 1, (30, 2)), rng.uniform(0, 1, (40, 2))
        y, y_new = (expit(1.2 * c[:, 0] - c[:, 0] * c[:, 1]) + 0.02 * rng.normal(size=len(c)) for c in (C, new))
        if wild:
            y[5] -= 0.4
        lower, upper = QuadraticSurrogate("sigmoid", loss=loss).fit(C, y).predict_interval(new, 0.9)
        inside.append((lower <= y_new) & (y_new <= upper))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.035)
