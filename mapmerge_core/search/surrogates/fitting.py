"""Fitting a surrogate's weights under a squared, an absolute or a Huber loss (MAP, Appendix G.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array, Link
    from mapmerge_core.search.surrogates.features import PreparedPoints

LossName = Literal["squared", "absolute", "huber"]

HUBER = 1.345
"""Where the Huber loss turns from squared to absolute, in standard deviations: 95 % as efficient as least
squares when errors are normal (Huber, Robust Statistics, 1981)."""
SMOOTHINGS = 10.0 ** -np.arange(7)
"""The absolute loss is approached through √(r² + ε²), with these ε as shares of the squared fit's error."""
EXACT = 1e-8
"""A squared fit whose errors are this share of the metrics is exact: every loss agrees with it."""
STEPS = 20
"""The most Gauss-Newton steps: good fits take five, and the others are left to Levenberg and Marquardt."""
CONVERGED = 1e-12
"""Gauss-Newton ends where a step lowers the cost by less than this share."""


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of a fit of ``p`` weights to ``n`` points.

    Attributes:
        weights: The weights of the features (p,).
        scale: Standard deviation of the errors, estimated from their median; NaN for the squared loss.
        pull: Half the derivative of the loss by each residual (n,): the residual itself when squared.
        curvature: Half the second derivative (n,), that of the absolute loss smoothed over ``scale``.
        penalty: The ridge as further rows of the features, ``(p - 1) x p``.
        roots: What each residual was multiplied by (n,), before ``pull`` was taken.
    """

    weights: Array
    scale: float
    pull: Array
    curvature: Array
    penalty: Array
    roots: Array


class _Weighted:
    """A link whose values are multiplied by ``roots`` (n,), and with them a fit's residuals."""

    is_linear = False

    def __init__(self, link: Link, roots: Array) -> None:
        self.link, self.roots = link, roots

    def value(self, z: Array) -> Array:
        return np.asarray(self.roots * self.link.value(z))

    def slope(self, z: Array) -> Array:
        return np.asarray(self.roots * self.link.slope(z))

    def inverse(self, values: Array) -> Array:
        return self.link.inverse(values / self.roots)


def fit(
    link: Link, points: PreparedPoints, values: Array, ridge: float, loss: LossName, roots: Array | None = None
) -> Fit:
    """Minimise the sum of the losses of the errors of link(z) plus ``ridge`` times the squared weights.

    Errors are divided by `Link.error_unit`, and the weight of the constant (the first feature) costs nothing. Squared
    and Huber losses equal the squared error where it is small; the absolute loss is the absolute error.

    The absolute loss is minimised by trust-region steps on √(r² + ε²) for ever smaller ε, starting at the
    squared fit; at the last one the sum of absolute errors is minimal to about a millionth. Its errors give
    the Huber loss its scale: their median magnitude without the p smallest (which such a fit makes zero),
    divided by 0.6745 (Hill and Holland, Two robust alternatives to least-squares regression, 1977).

    Args:
        link: The link with its bounds.
        points: The n points.
        values: Metrics (n,).
        ridge: Weight of the squared weights.
        loss: ``squared``, ``absolute`` or ``huber``.
        roots: What each error is multiplied by (n,), above 0; 1 if left out.
    """
    features = points.features
    n, p = features.shape
    unit = link.error_unit(values)
    size = float(np.abs(values).max()) if link.is_linear else unit
    weighted: Link | _Weighted = link
    if roots is None:
        roots = np.ones(n)
    else:
        weighted, values = _Weighted(link, roots), roots * values
    penalty = unit * np.sqrt(ridge) * np.eye(p)[1:]
    weights = _fit_squared(weighted, points, values, penalty)
    residuals = values - weighted.value(features @ weights)
    if loss == "squared":
        return Fit(weights, float("nan"), residuals, np.ones(n), penalty, roots)
    spread = float(np.sqrt(np.mean(residuals**2)))
    if spread > EXACT * size:
        for smoothing in SMOOTHINGS * spread:
            rows = np.sqrt(2 * smoothing / unit) * penalty
            weights = _fit_robust(weighted, features, values, rows, "absolute", smoothing, weights)
    residuals = values - weighted.value(features @ weights)
    smallest = max(1e-12 * size, 1e-150)
    scale = max(float(np.median(np.sort(np.abs(residuals))[min(p, n - 1) :])) / 0.6745, smallest)
    if loss == "huber":
        if spread > EXACT * size and scale > EXACT * spread:  # else most points are met exactly already
            weights = _fit_robust(weighted, features, values, penalty, loss, HUBER * scale, weights)
            residuals = values - weighted.value(features @ weights)
        width = HUBER * scale
    else:
        width, penalty = scale, np.sqrt(2 * scale / unit) * penalty
    squares = (residuals / width) ** 2
    _, first, second = _loss(loss, squares)
    curvature = np.maximum(first + 2 * squares * second, 0.0)
    return Fit(weights, scale, first * residuals, curvature, penalty, roots)


def _fit_squared(link: Link | _Weighted, points: PreparedPoints, values: Array, penalty: Array) -> Array:
    """Return the weights of the features that minimise the squared errors of link(z) and the penalty."""
    if link.is_linear and not penalty.any():
        return np.asarray(points.inverse_root @ (points.orthonormal.T @ values))
    features, zeros = points.features, np.zeros(len(penalty))
    if link.is_linear:
        return _least_squares(np.vstack([features, penalty]), np.concatenate([values, zeros]))
    weights = _gauss_newton(link, points, values, penalty)
    if weights is not None:
        return weights

    # Whole steps fail where many metrics sit on a bound. This starts from the same linear fit as they do.
    target = link.inverse(values)
    slope = link.slope(target)
    start = _least_squares(np.vstack([slope[:, None] * features, penalty]), np.concatenate([slope * target, zeros]))
    from scipy.optimize import least_squares

    # MINPACK's Levenberg-Marquardt needs at least as many rows as parameters, which n >= p grants.
    errors, jacobian = _errors(link, features, values, penalty)
    return np.asarray(least_squares(errors, start, jacobian, method="lm", max_nfev=500).x)


def _gauss_newton(link: Link | _Weighted, points: PreparedPoints, values: Array, penalty: Array) -> Array | None:
    """Return what `_fit_squared` looks for by undamped Gauss-Newton steps, or None where a step raises the cost.

    Each step solves normal equations in the orthonormal basis of the features: this is quick, and exact enough,
    as the gradient, which decides where the steps end, is not squared.
    """
    from scipy.linalg.lapack import dpotrf, dpotrs

    basis = points.orthonormal
    rows = penalty @ points.inverse_root
    ridge = rows.T @ rows

    def solve(slope: Array, right: Array) -> Array | None:
        scaled = slope[:, None] * basis
        factor, failed = dpotrf(scaled.T @ scaled + ridge)
        return None if failed else np.asarray(dpotrs(factor, right)[0])

    # Start from a linear fit to the unlinked metrics, weighted by the slope: close to the optimum already.
    target = link.inverse(values)
    slope = link.slope(target)
    weights = solve(slope, basis.T @ (slope**2 * target))
    best = float("inf")
    for _ in range(STEPS):
        if weights is None:
            return None
        z = basis @ weights
        errors = values - link.value(z)
        cost = float(errors @ errors + weights @ ridge @ weights)
        if not cost <= best * (1 + CONVERGED):
            return None
        if cost >= best * (1 - CONVERGED):
            return np.asarray(points.inverse_root @ weights)
        slope, best = link.slope(z), cost
        step = solve(slope, basis.T @ (slope * errors) - ridge @ weights)
        weights = None if step is None else weights + step
    return None


def _fit_robust(
    link: Link | _Weighted, features: Array, values: Array, penalty: Array, loss: LossName, width: float, start: Array
) -> Array:
    """Return the weights near ``start`` that minimise the losses of the errors, and the squared penalty."""
    from scipy.optimize import least_squares

    n = len(values)
    errors, jacobian = _errors(link, features, values, penalty, width)

    def losses(squares: Array) -> Array:
        table = np.vstack([squares, np.ones_like(squares), np.zeros_like(squares)])
        table[:, :n] = _loss(loss, squares[:n])
        return table

    return np.asarray(
        least_squares(
            errors, start, jacobian, method="trf", loss=losses, xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=200
        ).x
    )


def _errors(
    link: Link | _Weighted, features: Array, values: Array, penalty: Array, width: float = 1.0
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return the errors and the penalty in units of ``width``, and their Jacobian, as functions of the weights."""

    def errors(weights: Array) -> Array:
        return np.concatenate([link.value(features @ weights) - values, penalty @ weights]) / width

    def jacobian(weights: Array) -> Array:
        return np.vstack([link.slope(features @ weights)[:, None] * features, penalty]) / width

    return errors, jacobian


def _loss(loss: LossName, squares: Array) -> tuple[Array, Array, Array]:
    """Return the loss of squared errors in units of its width, and its first two derivatives by these."""
    if loss == "absolute":
        root = np.sqrt(1 + squares)
        return 2 * (root - 1), 1 / root, -0.5 / root**3
    root = np.sqrt(np.maximum(squares, 1))
    return np.where(squares > 1, 2 * root - 1, squares), 1 / root, np.where(squares > 1, -0.5 / root**3, 0.0)


def _least_squares(rows: Array, values: Array) -> Array:
    return np.asarray(np.linalg.lstsq(rows, values, rcond=None)[0])
