import pickle

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_score
from sklearn.utils import estimator_checks
from threadpoolctl import threadpool_info, threadpool_limits

from mapmerge_core.errors import RegistryError, SearchError
from mapmerge_core.search.designs import make_design
from mapmerge_core.search.spaces import Box
from mapmerge_core.search.surrogates.features import quadratic_features
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates, fit_surrogates

LINKS = ["identity", "sigmoid", "softplus"]


def measured(n, N, seed=0, noise=0.02):
    """Accuracies of a truth that is no quadratic, with noise, as from a validation split."""
    rng = np.random.default_rng(seed)
    C = rng.uniform(0, 1, (n, N))
    z = 1.0 + C @ rng.normal(size=N) - 1.5 * (C**2) @ rng.uniform(0, 1, N) + 0.5 * np.sin(3 * C[:, 0] * C[:, -1])
    return C, np.clip(expit(z) + noise * rng.normal(size=n), 0, 1)


def plain_design_matrix(C):
    """Independent of the package: 1, c, then every product, straight from Appendix G.1."""
    n = C.shape[1]
    pairs = [(i, j) for i in range(n) for j in range(i, n)]
    return np.column_stack([np.ones(len(C)), C, *[C[:, i] * C[:, j] for i, j in pairs]]), pairs


def fit_all(C, Y, links, loss="squared"):
    box = Box([f"c{i}" for i in range(C.shape[1])])
    return fit_surrogates(box, C, Y, links, loss).surrogates


class TestFit:
    @pytest.mark.parametrize("link", LINKS)
    def test_recovers_the_quadratic_it_was_given(self, fitted, link):
        A, b, e = np.array([[-2.0, 0.5], [0.5, -1.0]]), np.array([1.0, 0.4]), 0.3
        surrogate = fitted(A, b, e, link=link)
        np.testing.assert_allclose(surrogate.A_, A, atol=1e-5)
        np.testing.assert_allclose(surrogate.b_, b, atol=1e-5)
        assert surrogate.e_ == pytest.approx(e, abs=1e-5)
        assert surrogate.loo_r2_ == pytest.approx(1)

    def test_identity_is_numpys_least_squares(self):
        C, y = measured(60, 4)
        X, pairs = plain_design_matrix(C)
        w = np.linalg.lstsq(X, y, rcond=None)[0]
        surrogate = QuadraticSurrogate().fit(C, y)
        np.testing.assert_allclose(surrogate.predict(C), X @ w, rtol=1e-11)
        assert surrogate.e_ == pytest.approx(w[0], rel=1e-9)
        np.testing.assert_allclose(surrogate.b_, w[1:5], rtol=1e-8)
        np.testing.assert_array_equal(surrogate.A_, surrogate.A_.T)
        for (i, j), coefficient in zip(pairs, w[5:], strict=True):
            half = 0.5 if i == j else 1.0
            assert half * surrogate.A_[i, j] == pytest.approx(coefficient, rel=1e-8)

    @pytest.mark.parametrize("link", LINKS)
    def test_predicts_link_of_e_plus_bc_plus_half_cac(self, link):
        C, y = measured(40, 3)
        s = QuadraticSurrogate(link=link).fit(C, y)
        z = np.array([s.e_ + s.b_ @ c + 0.5 * c @ s.A_ @ c for c in C])
        expected = {"identity": z, "sigmoid": 1 / (1 + np.exp(-z)), "softplus": np.log(1 + np.exp(z))}[link]
        np.testing.assert_allclose(s.predict(C), expected, rtol=1e-12)

    @pytest.mark.parametrize("link", ["sigmoid", "softplus"])
    def test_no_other_optimiser_finds_a_smaller_error(self, link):
        C, y = measured(40, 2)
        s = QuadraticSurrogate(link=link, ridge=0.0).fit(C, y)
        value = expit if link == "sigmoid" else (lambda z: np.logaddexp(0, z))
        X, _ = plain_design_matrix(C)
        loss = lambda w: np.sum((value(X @ w) - y) ** 2)  # noqa: E731
        found = min(
            (minimize(loss, np.random.default_rng(k).normal(size=6), method="BFGS") for k in range(4)),
            key=lambda r: r.fun,
        )
        assert np.sum((s.predict(C) - y) ** 2) == pytest.approx(found.fun, rel=1e-4)

    def test_bounds_scale_the_sigmoid(self):
        C, y = measured(30, 2)
        plain = QuadraticSurrogate(link="sigmoid").fit(C, y)
        scaled = QuadraticSurrogate(link="sigmoid", bounds=(-100, 300)).fit(C, 400 * y - 100)
        np.testing.assert_allclose(scaled.predict(C), 400 * plain.predict(C) - 100, rtol=1e-6)

    def test_softplus_stays_above_its_bound_for_perplexities(self):
        C, y = measured(40, 2)
        perplexity = 1 + 30 * (1 - y)
        s = QuadraticSurrogate(link="softplus", bounds=(1, np.inf)).fit(C, perplexity)
        assert s.score(C, perplexity) > 0.9
        assert s.predict(make_design("grid", 400, 2, low=-3, high=3, anchors=False)).min() >= 1

    @pytest.mark.parametrize("link", LINKS)
    def test_the_units_of_the_coefficients_do_not_matter(self, link):
        C, y = measured(40, 3)
        s = QuadraticSurrogate(link=link, ridge=0.01).fit(C, y)
        shrunk = QuadraticSurrogate(link=link, ridge=0.01).fit(0.6 * C - 0.1, y)
        np.testing.assert_allclose(shrunk.predict(0.6 * C - 0.1), s.predict(C), atol=1e-6)

    def test_ridge_draws_predictions_to_one_value_and_fades_with_points(self):
        C, y = measured(200, 3)
        spread = {
            (n, ridge): np.ptp(QuadraticSurrogate("sigmoid", ridge=ridge).fit(C[:n], y[:n]).predict(C))
            for n in (20, 200)
            for ridge in (0.003, 1.0, 100.0)
        }
        assert spread[20, 100.0] < spread[20, 1.0] < spread[20, 0.003]
        assert spread[200, 1.0] > spread[20, 1.0]

    @pytest.mark.parametrize(("n", "N"), [(6, 2), (20, 2), (30, 4), (60, 8)])
    @pytest.mark.parametrize("link", ["sigmoid", "softplus"])
    def test_metrics_on_their_bounds_leave_everything_finite(self, n, N, link):
        C = make_design("sobol", n, N, anchors=False)
        for y in (np.ones(n), np.zeros(n), (C[:, 0] > 0.5).astype(float)):
            s = QuadraticSurrogate(link=link).fit(C, y)
            lower, upper = s.predict_interval(C)
            for values in (s.A_, s.b_, s.e_, s.predict(C), s.gradient(C), lower):
                assert np.isfinite(values).all()
            assert (lower <= s.predict(C)).all()
            assert (s.predict(C) <= upper).all()
            assert np.mean((s.predict(C) - y) ** 2) < (0.005 if y.std() == 0 else 0.05)

    def test_saturated_accuracies_are_predicted_near_their_bound(self):
        C = np.random.default_rng(0).uniform(0, 1, (40, 2))
        y = np.where(C.sum(axis=1) > 1, 1.0, expit(6 * (C.sum(axis=1) - 0.6)))
        s = QuadraticSurrogate(link="sigmoid").fit(C, y)
        assert s.predict(C)[C.sum(axis=1) > 1.3].min() > 0.97
        assert s.score(C, y) > 0.97


class TestRefusals:
    def test_too_few_points_says_how_many_are_needed(self):
        C, y = measured(44, 8)
        with pytest.raises(SearchError, match=r"at least 45 points.*44.*1 more"):
            QuadraticSurrogate().fit(C, y)

    @pytest.mark.parametrize(
        ("N", "parameters"), [(1, 3), (2, 6), (3, 10), (4, 15), (5, 21), (6, 28), (7, 36), (8, 45)]
    )
    def test_counts_parameters_as_the_paper_does(self, N, parameters):
        assert QuadraticSurrogate.n_parameters(N) == parameters
        assert quadratic_features(np.ones((1, N))).shape == (1, parameters)

    @pytest.mark.parametrize("link", LINKS)
    @pytest.mark.parametrize("flaw", ["repeated", "two levels", "never varied", "on a line"])
    def test_points_that_settle_nothing_are_refused(self, link, flaw):
        C = np.random.default_rng(0).uniform(0, 1, (20, 2))
        if flaw == "repeated":
            C[:] = C[np.arange(20) % 5]
        elif flaw == "two levels":
            C = np.round(C)
        elif flaw == "never varied":
            C[:, 1] = 0.3
        else:
            C[:, 1] = 1 - C[:, 0]
        with pytest.raises(SearchError, match="settle only"):
            QuadraticSurrogate(link=link).fit(C, np.full(20, 0.5))

    @pytest.mark.parametrize(("link", "bad"), [("sigmoid", 1.2), ("sigmoid", -0.1), ("softplus", -0.1)])
    def test_metrics_outside_the_bounds(self, link, bad):
        C, y = measured(20, 2)
        y[3] = bad
        with pytest.raises(SearchError, match=f"{bad:g} is outside"):
            QuadraticSurrogate(link=link).fit(C, y)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite(self, bad):
        C, y = measured(20, 2)
        y[3] = bad
        with pytest.raises(SearchError, match="finite"):
            QuadraticSurrogate().fit(C, y)
        C[3, 1], y[3] = bad, 0.5
        with pytest.raises(SearchError, match="finite"):
            QuadraticSurrogate().fit(C, y)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"loss": "cubic"}, "no loss called 'cubic': choose squared, absolute or huber"),
            ({"link": "sigmoid", "bounds": (0, np.inf)}, "two finite bounds"),
            ({"link": "sigmoid", "bounds": (1, 0)}, "bounds 1 and 0 are empty"),
            ({"link": "softplus", "bounds": (-np.inf, np.inf)}, "needs a finite bound"),
            ({"ridge": -1.0}, "ridge"),
            ({"ridge": np.nan}, "ridge"),
        ],
    )
    def test_options_that_make_no_sense(self, options, words):
        with pytest.raises(SearchError, match=words):
            QuadraticSurrogate(**options).fit(*measured(20, 2))

    def test_a_link_that_there_is_not(self):
        with pytest.raises(RegistryError, match="no link 'probit': choose one of identity, sigmoid, softplus"):
            QuadraticSurrogate(link="probit").fit(*measured(20, 2))

    def test_shapes_that_do_not_match(self):
        C, y = measured(20, 2)
        with pytest.raises(SearchError, match="as many metrics"):
            QuadraticSurrogate().fit(C, y[:-1])
        with pytest.raises(SearchError, match="n x N"):
            QuadraticSurrogate().fit(C[:, 0], y)
        s = QuadraticSurrogate().fit(C, y)
        for method in (s.predict, s.gradient, s.predict_interval):
            with pytest.raises(SearchError, match="fitted to 2 coefficients"):
                method(np.zeros((4, 3)))
        with pytest.raises(SearchError, match="level"):
            s.predict_interval(C, level=1.0)


class TestLeaveOneOut:
    @staticmethod
    def refitted(C, y, **options):
        n = len(y)
        kept = [np.delete(np.arange(n), i) for i in range(n)]
        return np.array([QuadraticSurrogate(**options).fit(C[k], y[k]).predict(C[[i]])[0] for i, k in enumerate(kept)])

    def test_identity_equals_refitting_without_each_point(self):
        C, y = measured(25, 3)
        s = QuadraticSurrogate().fit(C, y)
        without = self.refitted(C, y)
        np.testing.assert_allclose(s.loo_predictions_, without, rtol=1e-9)
        assert s.loo_r2_ == pytest.approx(r2_score(y, without))

    def test_sigmoid_is_close_to_refitting_without_each_point(self):
        C, y = measured(40, 3)
        s = QuadraticSurrogate(link="sigmoid").fit(C, y)
        without = self.refitted(C, y, link="sigmoid")
        assert np.abs(s.loo_predictions_ - without).max() < 0.2 * np.abs(y - without).max()
        assert s.loo_r2_ == pytest.approx(r2_score(y, without), abs=0.02)
        assert s.loo_r2_ < s.score(C, y)

    def test_foretells_new_points_better_than_the_fit_itself_does(self):
        leave_one_out, inside = [], []
        for seed in range(8):
            C, y = measured(580, 8, seed)
            s = QuadraticSurrogate(link="sigmoid").fit(C[:80], y[:80])
            new = s.score(C[80:], y[80:])
            leave_one_out.append(abs(s.loo_r2_ - new))
            inside.append(abs(s.score(C[:80], y[:80]) - new))
        assert np.median(leave_one_out) < 0.6 * np.median(inside)

    def test_nothing_can_be_left_out_of_as_few_points_as_parameters(self):
        s = QuadraticSurrogate().fit(*measured(6, 2))
        assert np.isnan(s.loo_r2_)


class TestIntervals:
    @staticmethod
    def coverage(link, noise, level, n=24):
        """Share of new noisy measurements inside the interval, over fresh data sets."""
        inside = []
        for seed in range(150):
            rng = np.random.default_rng(seed)
            C, new = rng.uniform(0, 1, (n, 2)), rng.uniform(0, 1, (40, 2))
            truth = lambda c: 0.4 + c @ [1.2, 0.5] - c[:, 0] ** 2 + 0.6 * c[:, 0] * c[:, 1]  # noqa: E731
            value = expit if link == "sigmoid" else (lambda z: z)
            y, y_new = (value(truth(c)) + noise * rng.normal(size=len(c)) for c in (C, new))
            s = QuadraticSurrogate(link=link).fit(C, np.clip(y, 0, 1) if link == "sigmoid" else y)
            lower, upper = s.predict_interval(new, level)
            inside.append((lower <= y_new) & (y_new <= upper))
        return np.mean(inside)

    @pytest.mark.parametrize("link", ["identity", "sigmoid"])
    @pytest.mark.parametrize("level", [0.5, 0.9])
    def test_cover_new_measurements_as_often_as_they_say(self, link, level):
        assert self.coverage(link, 0.02, level) == pytest.approx(level, abs=0.025)

    def test_identity_matches_the_textbook(self):
        from scipy.stats import t

        C, y = measured(30, 2)
        X, _ = plain_design_matrix(C)
        w, squares, *_ = np.linalg.lstsq(X, y, rcond=None)
        x = plain_design_matrix(np.array([[0.2, 0.9]]))[0][0]
        half = t.ppf(0.975, 24) * np.sqrt(squares[0] / 24 * (1 + x @ np.linalg.inv(X.T @ X) @ x))
        s = QuadraticSurrogate().fit(C, y)
        assert s.dof_ == pytest.approx(24)
        lower, upper = s.predict_interval([[0.2, 0.9]], level=0.95)
        np.testing.assert_allclose([lower[0], upper[0]], [x @ w - half, x @ w + half], rtol=1e-8)

    def test_stay_inside_the_bounds_and_grow_away_from_the_points(self):
        C, y = measured(30, 2)
        s = QuadraticSurrogate(link="sigmoid").fit(C, y)
        far = np.random.default_rng(0).uniform(-4, 5, (500, 2))
        lower, upper = s.predict_interval(far)
        assert lower.min() >= 0
        assert upper.max() <= 1
        assert (lower <= s.predict(far)).all()
        assert (s.predict(far) <= upper).all()
        plain = QuadraticSurrogate().fit(C, y)
        widths = np.diff(plain.predict_interval([[0.5, 0.5], [1.0, 1.0], [3.0, 3.0]]), axis=0)[0]
        assert widths[0] < widths[1] < widths[2]

    @pytest.mark.parametrize(
        ("link", "ends"), [("identity", (-np.inf, np.inf)), ("sigmoid", (0, 1)), ("softplus", (0, np.inf))]
    )
    def test_with_as_many_parameters_as_points_anything_is_possible(self, link, ends):
        C, y = measured(6, 2)
        lower, upper = QuadraticSurrogate(link=link).fit(C, y).predict_interval(C)
        assert (lower == ends[0]).all()
        assert (upper == ends[1]).all()


class TestPrediction:
    @pytest.mark.parametrize("link", LINKS)
    def test_gradient_is_that_of_the_prediction(self, link):
        s = QuadraticSurrogate(link=link).fit(*measured(40, 3))
        for c in make_design("sobol", 5, 3, anchors=False):
            numerical = approx_fprime(c, lambda x: s.predict(x[None])[0], 1e-7)
            np.testing.assert_allclose(s.gradient(c[None])[0], numerical, atol=1e-5)

    def test_all_at_once_is_each_alone_whatever_the_kind(self):
        C, y = measured(40, 3)
        surrogates = [QuadraticSurrogate(link=link).fit(C, y) for link in LINKS]
        each = np.column_stack([s.predict(C) for s in surrogates])
        np.testing.assert_allclose(SpaceSurrogates.in_box(surrogates, 0, 1).predict(C), each, rtol=1e-10)

    def test_all_gradients_at_once_are_each_alone_whatever_the_kind(self):
        C, y = measured(40, 3)
        bounds = {"identity": None, "sigmoid": (-1, 2), "softplus": None}
        surrogates = [QuadraticSurrogate(link=link, bounds=bounds[link]).fit(C, y) for link in [*LINKS, *LINKS]]
        each = np.stack([s.gradient(C) for s in surrogates], axis=1)
        for models in (surrogates, surrogates[:1]):
            metrics, gradients = SpaceSurrogates.in_box(models, 0, 1).predict_with_gradients(C)
            np.testing.assert_allclose(metrics, np.column_stack([s.predict(C) for s in models]), rtol=1e-12)
            np.testing.assert_allclose(gradients, each[:, : len(models)], rtol=1e-10, atol=1e-12)


class TestAllFits:
    @pytest.mark.parametrize("loss", ["squared", "huber"])
    def test_equal_each_fitted_alone(self, loss):
        C, y = measured(60, 3)
        Y = np.column_stack([y, 1 - y, y**2, 3 + 2 * y])
        links = [("identity", None), ("sigmoid", None), ("sigmoid", (-1, 2)), ("softplus", None)]
        new = np.random.default_rng(1).uniform(0, 1, (50, 3))
        for (link, bounds), metric, together in zip(links, Y.T, fit_all(C, Y, links, loss), strict=True):
            alone = QuadraticSurrogate(link, bounds, loss=loss).fit(C, metric)
            assert together.get_params() == alone.get_params()
            assert together.n_features_in_ == 3
            for name in ("A_", "b_", "e_", "dof_", "sigma_", "loo_predictions_", "loo_r2_"):
                np.testing.assert_allclose(getattr(together, name), getattr(alone, name), rtol=1e-10)
            np.testing.assert_allclose(together.predict_interval(new), alone.predict_interval(new), rtol=1e-10)

    def test_refuse_what_each_alone_does(self):
        C, y = measured(20, 2)
        with pytest.raises(SearchError, match="outside its bounds"):
            fit_all(C, np.column_stack([y, 2 + y]), [("identity", None), ("sigmoid", None)])
        with pytest.raises(SearchError, match="at least 6 points"):
            fit_all(C[:5], y[:5, None], [("identity", None)])
        with pytest.raises(SearchError, match="need values of shape"):
            fit_all(C, y[:-1, None], [("identity", None)])


@pytest.mark.parametrize("link", LINKS)
def test_a_fit_does_not_depend_on_the_number_of_threads(link):
    C, y = measured(250, 8)
    fits = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            fits.append(QuadraticSurrogate(link).fit(C, y))
            assert all(pool["num_threads"] == n_threads for pool in threadpool_info() if pool["user_api"] == "blas")
    for name in ("A_", "b_", "loo_predictions_"):
        np.testing.assert_array_equal(getattr(fits[0], name), getattr(fits[1], name))


class TestEstimator:
    @pytest.mark.parametrize(
        "check",
        [
            "check_parameters_default_constructible",
            "check_no_attributes_set_in_init",
            "check_get_params_invariance",
            "check_set_params",
            "check_estimators_unfitted",
            "check_estimator_cloneable",
            "check_estimator_repr",
        ],
    )
    def test_keeps_scikit_learns_promises(self, check):
        getattr(estimator_checks, check)("QuadraticSurrogate", QuadraticSurrogate(link="sigmoid"))

    def test_clones_to_the_same_fit(self):
        C, y = measured(30, 2)
        s = QuadraticSurrogate(link="sigmoid", bounds=(-1, 2), ridge=0.02, loss="huber").fit(C, y)
        twin = clone(s)
        assert twin.get_params() == {"link": "sigmoid", "bounds": (-1, 2), "ridge": 0.02, "loss": "huber"}
        assert not hasattr(twin, "A_")
        np.testing.assert_array_equal(twin.fit(C, y).predict(C), s.predict(C))
        assert s.n_features_in_ == 2

    def test_pickles(self):
        C, y = measured(30, 2)
        s = QuadraticSurrogate(link="sigmoid").fit(C, y)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(s)).predict(C), s.predict(C))

    def test_score_is_r_squared_and_cross_validates(self):
        C, y = measured(60, 2)
        s = QuadraticSurrogate(link="sigmoid").fit(C, y)
        assert s.score(C, y) == pytest.approx(r2_score(y, s.predict(C)))
        assert cross_val_score(s, C, y, cv=5).mean() > 0.7

    def test_unfitted_says_so(self):
        with pytest.raises(NotFittedError):
            QuadraticSurrogate().predict([[0.1, 0.2]])

    def test_refitting_forgets_the_first_fit(self):
        C, y = measured(30, 2)
        s = QuadraticSurrogate().fit(*measured(40, 3)).fit(C, y)
        np.testing.assert_array_equal(s.predict(C), QuadraticSurrogate().fit(C, y).predict(C))
        np.testing.assert_array_equal(C, measured(30, 2)[0])


def test_an_upper_bound_alone_is_a_lower_one_mirrored():
    rng = np.random.default_rng(0)
    C = rng.uniform(0, 1, (40, 2))
    losses = np.logaddexp(0, C @ [2.0, -1.0] - 1 + 3 * (C[:, 0] - 0.4) ** 2) + rng.normal(0, 0.001, 40).clip(-0.01)
    below = QuadraticSurrogate(link="softplus", bounds=(0, np.inf)).fit(C, losses)
    above = QuadraticSurrogate(link="softplus", bounds=(-np.inf, 1)).fit(C, 1 - losses)
    grid = rng.uniform(-1, 2, (50, 2))
    np.testing.assert_allclose(above.predict(grid), 1 - below.predict(grid), atol=1e-6)
    assert above.predict(grid).max() < 1
    np.testing.assert_allclose(above.gradient(grid), -below.gradient(grid), atol=1e-5)
    low, high = above.predict_interval(grid)
    assert (high <= 1).all()
    assert (low < high).all()


def noisy(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points of a quadratic, some measured with much noise: C, exact values, measured ones, their errors."""
    rng = np.random.default_rng(seed)
    C = rng.uniform(0, 1, (n, 3))
    exact = 0.5 + 0.3 * C[:, 0] - 0.2 * C[:, 1] ** 2 + 0.1 * C[:, 0] * C[:, 2]
    errors = np.where(rng.uniform(size=n) < share, 0.05, 0.002)
    return C, exact, exact + errors * rng.standard_normal(n), errors


def test_errors_weigh_as_in_weighted_least_squares() -> None:
    C, _, y, errors = noisy(60, 0.5, 0)
    fitted = QuadraticSurrogate().fit(C, y, errors)
    # The reference: weights by the variance that an unweighted fit leaves, and the normal equations.
    features = np.column_stack([np.ones(60), C, *(C[:, i] * C[:, j] for i in range(3) for j in range(i, 3))])
    rest = y - features @ np.linalg.lstsq(features, y, rcond=None)[0]
    variance = rest @ rest / 50
    own = max(variance - (errors**2).mean(), 0.5 * variance)
    W = np.diag(own / (own + errors**2))
    weights = np.linalg.solve(features.T @ W @ features, features.T @ W @ y)
    np.testing.assert_allclose(fitted.predict(C), features @ weights, atol=1e-9)
    rest = y - features @ weights
    assert fitted.sigma_ == pytest.approx(np.sqrt(rest @ W @ rest / 50))


@pytest.mark.parametrize("link", ["identity", "sigmoid"])
@pytest.mark.parametrize("loss", ["squared", "huber", "absolute"])
def test_telling_errors_predicts_better(link: str, loss: str) -> None:
    told, untold = [], []
    for seed in range(10):
        C, exact, y, errors = noisy(60, 0.5, seed)
        for found, said in ((told, errors), (untold, None)):
            fitted = QuadraticSurrogate(link, loss=loss).fit(C, y, said)
            found.append(np.sqrt(np.mean((fitted.predict(C) - exact) ** 2)))
    assert np.mean(told) < 0.85 * np.mean(untold)


@pytest.mark.parametrize("link", ["identity", "sigmoid", "softplus"])
@pytest.mark.parametrize("loss", ["squared", "huber", "absolute"])
def test_errors_that_are_all_alike_leave_the_fit_as_it_is(link: str, loss: str) -> None:
    C, _, y, _ = noisy(40, 0.5, 1)
    plain = QuadraticSurrogate(link, loss=loss).fit(C, y)
    told = QuadraticSurrogate(link, loss=loss).fit(C, y, np.full(40, 0.05))
    np.testing.assert_allclose(told.predict(C), plain.predict(C), atol=1e-6)
    assert told.loo_r2_ == pytest.approx(plain.loo_r2_, abs=1e-4)
    assert told.sigma_ < plain.sigma_, "the metrics' own errors aren't the model's"


def test_exact_metrics_are_fitted_as_ever() -> None:
    C, _, y, _ = noisy(40, 0.5, 1)
    plain, told = (QuadraticSurrogate("sigmoid").fit(C, y), QuadraticSurrogate("sigmoid").fit(C, y, np.zeros(40)))
    np.testing.assert_array_equal(plain.predict(C), told.predict(C))
    assert plain.sigma_ == told.sigma_


def test_intervals_are_those_of_exact_metrics() -> None:
    inside = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        C = rng.uniform(0, 1, (80, 2))
        exact = 0.5 + 0.3 * C[:, 0] - 0.2 * C[:, 1] ** 2 + 0.01 * rng.standard_normal(80)
        errors = np.full(40, 0.03)
        y = exact[:40] + errors * rng.standard_normal(40)
        low, high = QuadraticSurrogate().fit(C[:40], y, errors).predict_interval(C[40:])
        inside.append(((low <= exact[40:]) & (exact[40:] <= high)).mean())
    assert 0.75 < np.mean(inside) < 0.99


@pytest.mark.parametrize("errors", [[0.1], [-0.1] * 20, [np.nan] * 20])
def test_errors_that_are_none_are_refused(errors: list[float]) -> None:
    C, _, y, _ = noisy(20, 0.5, 1)
    with pytest.raises(SearchError, match="Standard errors must be finite and at least 0"):
        QuadraticSurrogate().fit(C, y, errors)
