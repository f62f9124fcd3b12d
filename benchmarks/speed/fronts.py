"""Finding the front of the surrogates, against NSGA-III as pymoo has it."""

from __future__ import annotations

import cProfile
import pstats
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem
from pymoo.optimize import minimize

from benchmarks.evenly import evenly
from benchmarks.speed.fitting import N_TASKS, fit, study
from benchmarks.speed.row import Measured, Row, medians, ratio
from mapmerge_core.search.fronts import Front, find_front, non_dominated, reference_directions
from mapmerge_core.search.indicators import hypervolume

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.surrogates.spaces import SpaceSurrogates

GENERATIONS = 150
"""Of the peer, as in the paper's code."""
SEEDS = range(3)
UP = [True] * N_TASKS


@cache
def surrogates() -> SpaceSurrogates:
    """What both search."""
    return fit("sigmoid")


def ours(seed: int = 0) -> Front:
    """Our front."""
    return find_front(surrogates(), seed=seed)


def theirs(seed: int = 0) -> Array:
    """The metrics that no others of NSGA-III's last population dominate."""
    models, directions = surrogates(), reference_directions(N_TASKS)

    class Surrogates(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=N_TASKS, n_obj=N_TASKS, xl=0.0, xu=1.0)

        def _evaluate(self, x: Array, out: dict[str, Any], *_: object, **__: object) -> None:
            out["F"] = -models.predict(x)

    result = minimize(Surrogates(), NSGA3(directions), ("n_gen", GENERATIONS), seed=seed)
    metrics = -result.pop.get("F")
    return np.asarray(metrics[non_dominated(metrics, UP)])


def measure_time(_: str) -> Measured:
    """A front's milliseconds, beside NSGA-III's."""
    seconds = medians(ours, theirs)
    note = f"{GENERATIONS} generations of {len(reference_directions(N_TASKS))}; the same evaluation of them all"
    return ratio(1000 * seconds[0], 1000 * seconds[1], "ms", note=note)


def measure_volume(_: str) -> Measured:
    """The hypervolume above the study's worst accuracies, for as many rows as NSGA-III's front has."""
    worst = study()[1].min(axis=0)
    volumes = []
    for seed in SEEDS:
        front, peers = ours(seed), theirs(seed)
        taken = evenly(len(front), len(peers))
        volumes.append([hypervolume(rows, worst, UP) for rows in (front.predicted[taken], peers)])
    each = ", ".join(f"{mine / other:.3f}" for mine, other in volumes)
    note = f"means of {len(SEEDS)} seeds, whose ratios are {each}; the last front has {len(front)} rows, "
    note += f"of which {len(taken)}, evenly spread, are compared with its {len(peers)}"
    ours_mean, peers_mean = np.mean(volumes, axis=0).tolist()
    return ratio(ours_mean, peers_mean, "", note=note)


def show_profile(_: str) -> None:
    """Where the time of a front goes."""
    ours()
    with cProfile.Profile() as profile:
        ours()
    pstats.Stats(profile, stream=sys.stderr).sort_stats("cumtime").print_stats(40)


ROWS = (
    Row(
        "front_time",
        f"the front of {N_TASKS} tasks",
        "pymoo's NSGA-III",
        target=1 / 3,
        at_most=True,
        measure=measure_time,
        profile=show_profile,
    ),
    Row(
        "front_hypervolume",
        f"the front of {N_TASKS} tasks: hypervolume",
        "pymoo's NSGA-III",
        target=1.0,
        at_most=False,
        measure=measure_volume,
    ),
)
