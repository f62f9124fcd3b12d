"""Bayesian MAP: rounds of adaptive sampling (ICLR 2025), Algorithms 3 and 4, Appendices D and G.3."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import SearchError
from mapmerge_core.methods.base import Batch, check_told
from mapmerge_core.search.adaptive import (
    AngularBins,
    bins_per_angle,
    draw_points,
    make_posterior,
    score_bins,
)
from mapmerge_core.search.designs import MOST_POINTS, anchors_outside, make_design
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate, fit_all, predict_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from mapmerge_core.search.surrogates.fitting import LossName
    from mapmerge_core.search.links import LinkName


class BayesianMAP:
    """Samples where the surrogates are worst: an initial design, then a batch a round, on every task each.

    After every round each task's surrogate is fitted to all points so far, the last ones included. One
    posterior, over angular bins (``search/adaptive.py`` says which), serves all tasks: a point's error is the
    mean over tasks of the surrogate's squared error as a share of the variance of that task's values, so that
    metrics of different units count alike.

    The squared error itself says little of so few points: a surrogate passes through as many as it has
    parameters. That of the surrogate fitted without the point is large wherever a point is far from the
    others. Their geometric mean is used, the error times the leave-one-out error
    (``QuadraticSurrogate.loo_predictions_``): for least squares this is the squared standardised residual
    e² / (1 - h), which under a right model has the same mean at every point, however few. Where it is
    undefined the point is left out of the scores; in the first round of an identity link that is every point,
    and all bins are then alike.

    Simulated on Gaussian processes fitted to 48 measured points of each of seven pairs of the demo zoo (50
    seeds, 12 points; mean IGD x 1000 to the process's own front with its standard error over seeds): MAP 4.06
    ± .25; this method 2.86 ± .09, with leave-one-out errors alone 3.06 ± .10, with 16 candidates a point
    instead of 64 2.99 ± .10, with 8 bins instead of 6 2.84 ± .09.

    Points outside the box, as the single-task models are where it ends below 1, are asked but neither fitted
    nor scored: the front can't reach them.

    Args:
        n_vectors: Number of task vectors N, at least two; the paper recommends the method up to four.
        points: Rows to evaluate in all, anchors included; by default two for each of a surrogate's
            (N + 1)(N + 2) / 2 parameters, which are the paper's 12 for N = 2.
        initial: Rows of the initial design, uniform; by default as many as a surrogate has parameters (the
            paper's 6 for N = 2), besides the anchors outside the box.
        batch: Rows of every further round, the last of which may be shorter; by default one half of the
            parameters, rounded up (the paper's 3 for N = 2).
        bins: Bins for each of the N - 1 angles; by default as ``bins_per_angle`` has it.
        seed: Seed. What round r asks depends on it, r and the values told, and on nothing else.
        low: Lower corner of the box.
        high: Upper corner of the box.
        anchors: Whether the origin and the unit vectors come first.
        links: The surrogate's link and the metric's bounds, for each of K tasks.
        loss: The surrogates' loss.

    Raises:
        SearchError: for a budget that surrogates can't be fitted to, and for a box, bins or a seed that can't
            be sampled.
    """

    def __init__(
        self,
        n_vectors: int,
        points: int | None = None,
        *,
        links: Sequence[tuple[LinkName, tuple[float, float] | None]],
        initial: int | None = None,
        batch: int | None = None,
        bins: int | None = None,
        seed: int = 0,
        low: float = 0.0,
        high: float = 1.0,
        anchors: bool = True,
        loss: LossName = "squared",
    ) -> None:
        self._bins = AngularBins(
            n_vectors, bins_per_angle(n_vectors) if bins is None else bins, low=low, high=high
        )
        n_parameters = QuadraticSurrogate.n_parameters(n_vectors)
        outside = anchors_outside(n_vectors, low, high) if anchors else 0
        needed = n_parameters + outside
        self._points = 2 * n_parameters if points is None else points
        initial = needed if initial is None else initial
        self._batch = (n_parameters + 1) // 2 if batch is None else batch
        if self._points < needed or initial < needed:
            besides = f" besides the {outside} anchors outside the box" if outside else ""
            raise SearchError(
                f"{min(self._points, initial)} points are too few for Bayesian MAP: the surrogates of "
                f"{n_vectors} task vectors need {n_parameters}{besides}, so start with at least {needed}."
            )
        if self._points > MOST_POINTS:
            raise SearchError(f"Bayesian MAP takes at most {MOST_POINTS:,} points, not {self._points:,}.")
        if initial > self._points:
            raise SearchError(f"{initial} first points are more than the budget of {self._points}.")
        if self._batch < 1:
            raise SearchError(f"A round needs at least one point, not {self._batch}.")
        if not links:
            raise SearchError("Bayesian MAP needs at least one task to measure.")
        self._links, self._loss, self._seed = tuple(links), loss, seed
        design = make_design("uniform", initial, n_vectors, low=low, high=high, seed=seed, anchors=anchors)
        self._C, self._Y = np.empty((0, n_vectors)), np.empty((0, len(links)))
        self._round = 0
        self._surrogates: tuple[QuadraticSurrogate, ...] = ()
        self._waiting: Batch | None = Batch(design, tuple(range(len(links))))

    @property
    def n_evaluations(self) -> int:
        """Points times tasks."""
        return self._points * len(self._links)

    @property
    def surrogates(self) -> tuple[QuadraticSurrogate, ...]:
        """One for each task, fitted to all that was told inside the box; none before the first values."""
        return self._surrogates

    def ask(self) -> Batch | None:
        """The next round's coefficients on every task, and None once the budget is spent."""
        return self._waiting

    def tell(self, batch: Batch, values: ArrayLike) -> None:
        """Takes a round's values (``m x K``), fits the surrogates to all so far, and draws the next round.

        Raises:
            SearchError: where the batch isn't the one that was asked for, or a surrogate can't be fitted to
                the values. The method is then as it was.
        """
        told = check_told(self._waiting, batch, values)
        C, Y = np.vstack([self._C, batch.C]), np.vstack([self._Y, told])
        inside = self._bins.contain(C)
        surrogates = fit_all(C[inside], Y[inside], self._links, self._loss)
        self._C, self._Y, self._surrogates = C, Y, surrogates
        self._round += 1
        self._waiting = self._next_round(C[inside], Y[inside], min(self._batch, self._points - len(C)))

    def _next_round(self, C: np.ndarray, Y: np.ndarray, n_points: int) -> Batch | None:
        if n_points == 0:
            return None
        rng = np.random.default_rng([self._seed, self._round])
        variance = Y.var(axis=0)
        fitted = predict_all(self._surrogates, C)
        left_out = np.column_stack([surrogate.loo_predictions_ for surrogate in self._surrogates])
        squared = np.abs((Y - fitted) * (Y - left_out))
        errors = (squared / np.where(variance > 0, variance, 1.0)).mean(axis=1)
        scored, scores = score_bins(errors, self._bins.locate(C), rng)
        posterior = make_posterior(self._bins, scored, scores)
        return Batch(draw_points(posterior, n_points, self._C, rng), tuple(range(len(self._links))))
