"""The quadratic surrogate of one objective (MAP, Section 4.1 and Appendix G.1)."""

from __future__ import annotations

from typing import Self, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from mapmerge_core.errors import SearchError
from mapmerge_core.search.links.base import Array, Link, make_link
from mapmerge_core.search.surrogates.features import (
    PreparedPoints,
    as_points,
    inverse_of_upper,
    n_parameters,
    quadratic_features,
)
from mapmerge_core.search.surrogates.fitting import LossName, fit
from mapmerge_core.search.threads import one_thread

NONLINEAR_RIDGE = 3e-3
"""Default ridge of the sigmoid and the softplus.

Measured out of sample on merges of small networks fine-tuned on views of scikit-learn's digits (700 test
images; R² of the sigmoid, mean over tasks, for ridge 0 | 0.003 | 0.03): eight tasks 60 points .868 | .916 |
.939, 100 points .951 | .953 | .959; four tasks 20 points .934 | .961 | .944, 60 points .987 | .987 | .984;
two tasks (four pairs) 8 points .936 | .962 | .847, 30 points .994 | .994 | .977.
"""
ABSOLUTE_RIDGE = 0.1
"""The same for the absolute loss, beside which a ridge weighs less: |r| is more than r² where r < 1.

Measured out of sample on the noisy sigmoids of ``tests/search/test_surrogate.py`` (300 new points, R², mean
of four seeds, for ridge 0.003 | 0.03 | 0.1): eight tasks 60 points .887 | .916 | .917; four tasks 20 points
.713 | .833 | .862, 60 points .763 | .770 | .770; two tasks 12 points .584 | .733 | .703, 30 points .636 |
.635 | .701.
"""

LEAST_OWN = 0.5
"""The least share of the residuals' variance that is the surrogate's own, not the metrics' sampling error.

Points measured on the same images have errors in common, which residuals don't show: subtracting the whole variance
of the standard errors from that of the residuals would leave too little.
"""


class QuadraticSurrogate(RegressorMixin, BaseEstimator):
    """link(e + bᵀc + ½ cᵀAc), fitted to errors on the metric's own scale (equations 4, 5 and Appendix G.1).

    Args:
        link: ``identity`` (closed form), ``sigmoid`` (metrics in [l, u]) or ``softplus`` (metrics above l).
        bounds: The metric's (l, u): (0, 1) for a sigmoid and (0, inf) for a softplus unless given; the
            identity takes none and ignores them.
        ridge: Weight of the sum of the squared parameters, all but the constant, beside the sum of the
            errors' losses: it fades as points are added. Points are taken about the middle of their box in
            units of its half widths, and errors as a share of u - l (softplus: of y's standard deviation), so
            that the fit does not depend on units. ``None`` means 0 for the identity, whose squared loss is
            then ordinary least squares, and ``NONLINEAR_RIDGE`` (``ABSOLUTE_RIDGE`` with the absolute loss)
            for the other links, which it keeps finite where metrics sit on a bound.
        loss: What each error costs: ``squared``; ``absolute``, whose fit a minority of wild measurements
            hardly moves; or ``huber``, squared up to 1.345 ``sigma_`` and absolute beyond.

    Attributes:
        A_: The symmetric ``N x N`` matrix A.
        b_: The vector b (N,).
        e_: The constant e.
        n_features_in_: N.
        link_: The link with its bounds.
        dof_: Residual degrees of freedom: points less the trace of the hat matrix (for a robust loss, that of
            its linearisation, each point weighted by the loss's curvature).
        sigma_: Standard deviation of the errors, in the metric's units (NaN without degrees of freedom). For
            robust losses it is estimated from the median magnitude of the absolute fit's residuals: the spread of
            ordinary measurements, not of the wild ones.
        loo_predictions_: Each point (n,) as predicted from all others: exact for the squared identity, else
            one Newton step from the optimum, with ``sigma_`` as it is. The absolute loss, which has no
            curvature, is smoothed over ``sigma_`` for it, which is rougher: where points are few, the fit
            without one of them may jump farther. NaN for a point that the others can't predict.
        loo_r2_: The R² of ``loo_predictions_``; NaN if any of them is.
    """

    A_: Array
    b_: Array
    e_: float
    n_features_in_: int
    link_: Link
    dof_: float
    sigma_: float
    loo_predictions_: Array
    loo_r2_: float

    def __init__(
        self,
        link: str = "identity",
        bounds: tuple[float, float] | None = None,
        ridge: float | None = None,
        loss: LossName = "squared",
    ) -> None:
        self.link = link
        self.bounds = bounds
        self.ridge = ridge
        self.loss = loss

    n_parameters = staticmethod(n_parameters)

    @one_thread()
    def fit(self, C: ArrayLike, y: ArrayLike, errors: ArrayLike | None = None) -> Self:
        """Learn A, b and e from `n x N` coefficients and their metrics (n,).

        Args:
            C: Coefficients.
            y: Metrics.
            errors: The metrics' standard errors (n,), 0 where they are exact; all are by default.
                An unweighted fit shows the variance τ² of what no quadratic explains; each squared error then
                counts by τ² / (τ² + its own variance), and ``sigma_`` and intervals are those of exact metrics.

        Raises:
            SearchError: Too few points, points that leave the quadratic undetermined, shapes that don't
                match, values that are not finite, metrics outside the bounds, or an unknown loss.
        """
        return self.fit_prepared(PreparedPoints.prepare(C), y, errors)

    def fit_prepared(self, points: PreparedPoints, y: ArrayLike, errors: ArrayLike | None = None) -> Self:
        """Fit metrics (n,) at points that several surrogates share, as `fit` does.

        Raises:
            SearchError: As for `fit`, where it isn't about the points.
        """
        values, n_points = np.asarray(y, dtype=np.float64), len(points.features)
        if values.shape != (n_points,):
            raise SearchError(f"{n_points} points need as many metrics, not an array of shape {values.shape}.")
        if not np.isfinite(values).all():
            raise SearchError("Metrics must be finite: there is a NaN or an infinity among them.")
        deviations = np.zeros(n_points) if errors is None else np.asarray(errors, dtype=np.float64)
        if deviations.shape != values.shape or not (np.isfinite(deviations) & (deviations >= 0)).all():
            raise SearchError("Standard errors must be finite and at least 0, one for each metric.")
        noise = deviations**2
        link = make_link(self.link, self.bounds)
        if self.loss not in get_args(LossName):
            raise SearchError(f"There is no loss called {self.loss!r}: choose squared, absolute or huber.")
        link.check_values(values)
        self.n_features_in_ = len(points.centre)
        self.link_ = link
        self._centre, self._half_width = points.centre, points.half_width
        self._learn(points, values)
        if noise.any() and np.isfinite(self.sigma_) and self.sigma_ > 0:
            own = max(self.sigma_**2 - noise.mean(), LEAST_OWN * self.sigma_**2)
            shares = own / (own + noise)
            # The ridge weighs as ever beside weights whose mean is 1.
            self._learn(points, values, np.sqrt(shares / shares.mean()))
            of_exact = float(np.sqrt(shares.mean()))
            self.sigma_ *= of_exact
            self._inverse_root /= of_exact
        return self

    def predict(self, C: ArrayLike) -> Array:
        """Return the metrics (n,) at `n x N` coefficients.

        Raises:
            SearchError: C has another width than the points fitted, or is not finite.
        """
        points = self._check_points(C)
        return self.link_.value(self._quadratic(points))

    def gradient(self, C: ArrayLike) -> Array:
        """Return the derivatives (`n x N`) of the predicted metric by the coefficients."""
        points = self._check_points(C)
        slope = self.link_.slope(self._quadratic(points))
        return np.asarray(slope[:, None] * (self.b_ + points @ self.A_))

    def predict_interval(self, C: ArrayLike, level: float = 0.9) -> tuple[Array, Array]:
        """Return the ends, (n,) each, between which a new measurement falls with probability ``level``.

        Linearised about the fit: Student's t with ``dof_`` degrees of freedom, the residual variance and that
        of the fitted parameters (for robust losses Huber's asymptotic one); cut off at the metric's bounds.
        With as many parameters as points nothing is left to judge the noise by: the interval is then all that
        the bounds allow.

        Raises:
            SearchError: ``level`` is not between 0 and 1, or C does not fit.
        """
        points = self._check_points(C)
        if not 0 < level < 1:
            raise SearchError(f"An interval's level lies between 0 and 1, not at {level:g}.")
        if not np.isfinite(self.sigma_):
            return np.full(len(points), self.link_.low), np.full(len(points), self.link_.high)
        z = self._quadratic(points)
        rows = quadratic_features((points - self._centre) / self._half_width) @ self._inverse_root
        spread = np.einsum("np,np->n", rows, rows)
        quantile = stdtrit(self.dof_, (1 + level) / 2)
        reach = quantile * self.sigma_ * np.sqrt(1 + self.link_.slope(z) ** 2 * spread)
        middle = self.link_.value(z)
        return np.maximum(middle - reach, self.link_.low), np.minimum(middle + reach, self.link_.high)

    def _ridge(self) -> float:
        if self.ridge is None:
            default = ABSOLUTE_RIDGE if self.loss == "absolute" else NONLINEAR_RIDGE
            return 0.0 if self.link_.is_linear else default
        if not (np.isfinite(self.ridge) and self.ridge >= 0):
            raise SearchError(f"A ridge is zero or more, not {self.ridge:g}.")
        return self.ridge

    def _check_points(self, C: ArrayLike) -> Array:
        check_is_fitted(self)
        return as_points(C, self.n_features_in_)

    def _quadratic(self, points: Array) -> Array:
        return np.asarray(self.e_ + points @ self.b_ + 0.5 * np.einsum("ni,ni->n", points @ self.A_, points))

    def _set_coefficients(self, weights: Array) -> None:
        """Turn weights of the features of (c - centre) / half width into A, b and e of c itself."""
        n = self.n_features_in_
        rows, columns = np.triu_indices(n)
        upper = np.zeros((n, n))
        upper[rows, columns] = weights[1 + n :]
        scaled = np.triu(upper, 1) + upper.T
        self.A_ = scaled / np.outer(self._half_width, self._half_width)
        slope = weights[1 : 1 + n] / self._half_width
        self.b_ = slope - self.A_ @ self._centre
        self.e_ = float(weights[0] - slope @ self._centre + 0.5 * self._centre @ self.A_ @ self._centre)

    def _learn(self, points: PreparedPoints, values: Array, roots: Array | None = None) -> None:
        """Fit A, b and e; set the residual variance, the covariance and the leave-one-out predictions.

        ``roots`` are what each error is multiplied by (n,). The covariance comes from a QR of the Jacobian.
        """
        fitted = fit(self.link_, points, values, self._ridge(), self.loss, roots)
        self._set_coefficients(fitted.weights)
        features = points.features
        z = features @ fitted.weights
        slope = fitted.roots * self.link_.slope(z)
        n, p = features.shape
        is_plain = self.link_.is_linear and self.loss == "squared" and not fitted.penalty.any()
        if is_plain and (fitted.roots == 1).all():
            self._inverse_root, spread = points.inverse_root, points.leverage
        else:
            # The floor keeps the factor invertible where every metric sits on a bound and all slopes vanish,
            # or where a robust loss gives too few points any curvature.
            rows = (np.sqrt(fitted.curvature) * slope)[:, None] * features
            stacked = np.vstack([rows, fitted.penalty, 1e-9 * np.eye(p)])
            self._inverse_root = inverse_of_upper(np.asarray(np.linalg.qr(stacked, mode="r")))
            spread = np.sum((features @ self._inverse_root) ** 2, axis=1)
        leverage = np.minimum(fitted.curvature * slope**2 * spread, 1.0)
        left = np.where(1 - leverage > 1e-9, 1 - leverage, np.nan)
        with np.errstate(invalid="ignore"):  # NaN, where a point can't be left out, stays NaN
            self.loo_predictions_ = self.link_.value(z - slope * spread * fitted.pull / left)
        self.loo_r2_ = _r2(values, self.loo_predictions_)

        self.dof_ = float(n - leverage.sum())
        enough = n > p and self.dof_ > 1e-6
        self.sigma_ = float(np.sqrt(fitted.pull @ fitted.pull / self.dof_)) if enough else float("nan")
        if self.loss != "squared" and enough:
            # Huber's covariance (Robust Statistics, 1981, equation 7.6.4): what the pulls spread, over the
            # mean curvature once more; the noise of a new measurement is that of the uncorrupted ones.
            self._inverse_root *= self.sigma_ / fitted.scale / np.sqrt(fitted.curvature.mean())
            self.sigma_ = fitted.scale


def _r2(values: Array, predictions: Array) -> float:
    """Return the R² of predictions as scikit-learn defines it, without its checks; NaN if any of them is."""
    squares, total = ((values - predictions) ** 2).sum(), ((values - values.mean()) ** 2).sum()
    if total == 0:
        return float("nan") if np.isnan(squares) else float(squares == 0)
    return float(1 - squares / total)
