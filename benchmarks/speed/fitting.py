"""Fitting surrogates, against SciPy's curve_fit."""

from __future__ import annotations

import cProfile
import pstats
import sys
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import curve_fit
from scipy.special import expit

from benchmarks.speed.row import Measured, Row, medians, times_faster
from mapmerge_core.search.designs import make_design
from mapmerge_core.search.spaces import Box
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates, fit_surrogates

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array

N_TASKS, N_POINTS, N_SAMPLES = 8, 250, 4000
ROUNDS = 15
SPACE = Box([f"c{n}" for n in range(1, N_TASKS + 1)])


@cache
def study(seed: int = 0) -> tuple[Array, Array]:
    """A made-up study: every task is best near its own vector, and the others' harm it a little.

    Accuracies are those of a sigmoid of a quadratic, bent by a sine that no quadratic follows, and counted on
    ``N_SAMPLES`` samples.

    Returns:
        Coefficients in [0, 1] and accuracies, both ``N_POINTS x N_TASKS``.
    """
    rng = np.random.default_rng(seed)
    coefficients = make_design("uniform", N_POINTS, SPACE, seed=seed)
    accuracies = np.empty_like(coefficients)
    for task in range(N_TASKS):
        peak, steepness = rng.uniform(0.0, 0.25, N_TASKS), rng.uniform(0.2, 1.2, N_TASKS)
        peak[task], steepness[task] = rng.uniform(0.6, 0.9), rng.uniform(4.0, 7.0)
        score = 2.5 - (coefficients - peak) ** 2 @ steepness + 0.1 * np.sin(4 * coefficients.mean(axis=1))
        accuracies[:, task] = rng.binomial(N_SAMPLES, expit(score)) / N_SAMPLES
    return coefficients, accuracies


def fit(link: str) -> SpaceSurrogates:
    """All surrogates of the study, with leave-one-out errors and all that intervals need."""
    coefficients, accuracies = study()
    return fit_surrogates(SPACE, coefficients, accuracies, [(link, None)] * N_TASKS)


def fit_by_curve_fit(link: str) -> None:
    """As public code fits them: one by one, flattened parameters that set out from 1, no derivatives."""
    coefficients, accuracies = study()
    rows, columns = np.triu_indices(N_TASKS)

    def model(points: Array, *parameters: float) -> Array:
        constant, linear, products = np.split(np.array(parameters), [1, 1 + N_TASKS])
        z = constant + linear @ points + products @ (points[rows] * points[columns])
        return np.asarray(expit(z) if link == "sigmoid" else z)

    start = np.ones(QuadraticSurrogate.n_parameters(N_TASKS))
    for metric in accuracies.T:
        curve_fit(model, coefficients.T, metric, start)


def measure_time(link: str, _: str) -> Measured:
    """Milliseconds that all fits take together."""
    seconds = medians(partial(fit, link), rounds=ROUNDS)[0]
    return Measured(1000 * seconds, None, "ms", 1000 * seconds)


def measure_beside_peer(link: str, _: str) -> Measured:
    """All fits, beside curve_fit's."""
    note = "curve_fit from ones, without derivatives, and without leave-one-out errors"
    return times_faster(*medians(partial(fit, link), partial(fit_by_curve_fit, link)), note=note)


def show_profile(link: str, _: str) -> None:
    """Where the time of some fits goes."""
    fit(link)
    with cProfile.Profile() as profile:
        for _round in range(20):
            fit(link)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(20)


def _rows(link: str, most: float) -> tuple[Row, Row]:
    what = f"fitting {N_TASKS} surrogates to {N_POINTS} points, {link} link"
    profile = partial(show_profile, link)
    return (
        Row(
            f"fit_{link}",
            what,
            "a figure of its own",
            target=most,
            at_most=True,
            measure=partial(measure_time, link),
            unit="ms",
            profile=profile,
        ),
        Row(
            f"fit_{link}_peer",
            what,
            "SciPy's curve_fit",
            target=10,
            at_most=False,
            measure=partial(measure_beside_peer, link),
        ),
    )


ROWS = (*_rows("identity", 20), *_rows("sigmoid", 200))
