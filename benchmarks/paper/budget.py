"""MAP with fewer images a point: which budget gives the same front as whole validation splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.evenly import evenly
from benchmarks.paper.bench import Bench, maximize
from benchmarks.paper.table import COLOURS, Table, Tables, mean_std
from mapmerge_core.search.fronts import non_dominated
from mapmerge_core.search.indicators import inverted_generational_distance, preference_sums, sample_preferences
from mapmerge_core.tasks.subsets import nested_order, standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.models import Models
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.studies.store import Study

IMAGES = (50, 100, 200, 300, 500)
"""Images of each task that a point is measured on, beside whole splits."""
ROWS = 40
"""Rows of a predicted front that are measured, on whole splits."""
SAME = 1.1
"""Fronts whose IGD is at most so many times that of whole splits count as the same."""


def sets(models: Models) -> list[tuple[str, ...]]:
    """Two, four and eight tasks, as far as there are so many."""
    return [models.first(n) for n in (2, 4, 8) if n <= len(models.names)]


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """The design's points, and the rows of each budget's front."""
    return n_tasks * (bench.budget(n_tasks) + (len(IMAGES) + 1) * ROWS)


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Each budget's front, measured on whole splits, against the best of all that was measured.

    Subsets are made of what was measured on whole splits, in an order that the seed draws.
    """
    study, n = bench.study(names), len(names)
    C = bench.design(study, bench.budget(n), seed)
    Y = bench.measure(study, C)
    answers = _answers(bench, study, C, seed)
    n_images = answers[0].shape[1]
    measured: dict[int, Array] = {}
    for budget in (*(images for images in IMAGES if images < n_images), n_images):
        values, errors = Y, np.zeros_like(Y)
        if budget < n_images:
            seen = [[row[:budget] for row in of_task] for of_task in answers]
            values = np.array([[row.mean(dtype=np.float64) for row in of_task] for of_task in seen]).T
            errors = np.array([[standard_error(row, n_images) for row in of_task] for of_task in seen]).T
        surrogates = bench.fit(study, C, values, errors)
        front = bench.front(study, C, surrogates, seed)
        measured[budget] = bench.measure(study, front.x[evenly(len(front), ROWS)])
    every = np.vstack([Y, *measured.values()])
    best = every[non_dominated(every, maximize(study))]
    preferences = sample_preferences(n, seed=seed)
    return [
        {
            "tasks": " + ".join(names),
            "N": n,
            "seed": seed,
            "points": len(C),
            "images": images,
            "whole": images == n_images,
            "IGD": inverted_generational_distance(found, best, 1),
            "preferred": _preferred(found, preferences, maximize(study)),
        }
        for images, found in measured.items()
    ]


def _answers(bench: Bench, study: Study, C: Array, seed: int) -> list[NDArray[Any]]:
    """For each task which images (points x images) were right, in an order that the seed draws."""
    evaluator = bench.evaluator(study)
    merge = bench.store.merges.all(study.id)[0]
    rows = {(row.objective, row.x.tobytes()): row for row in bench.store.evaluations.rows(merge.id)}
    answers = []
    for objective in study.config.objectives:
        task = evaluator.tasks[objective.task]
        table = np.array([rows[objective.key, x.tobytes()].values for x in merge.space.points(C)])
        order = nested_order(evaluator.family.strata(task, "val"), table.shape[1], seed)
        answers.append(table[:, order])
    return answers


def _preferred(values: Array, preferences: Array, upwards: list[bool]) -> float:
    """The preference-weighted sum of the best row for each preference, mean over preferences."""
    sums = [preference_sums(row, preferences, upwards) for row in values]
    return float(np.max(sums, axis=0).mean())


def summary(frame: pd.DataFrame) -> Tables:
    """A line for each set of tasks and budget, beside whole splits."""
    lines = []
    for (n, images), part in frame.groupby(["N", "images"], sort=False):
        whole = frame[(frame["N"] == n) & frame["whole"]].set_index("seed")
        ratio = part["IGD"].mean() / whole["IGD"].mean()
        lost = whole["preferred"].loc[part["seed"]].to_numpy() - part["preferred"].to_numpy()
        lines.append(
            {
                "tasks": n,
                "points": part["points"].iloc[0],
                "images": f"{images} (all)" if part["whole"].all() else images,
                "IGD": mean_std(part["IGD"], 100),
                "IGD beside all": f"{ratio:.2f}",
                "the same front": "yes" if ratio <= SAME else "no",
                "preferred": mean_std(part["preferred"], 100),
                "lost": mean_std(pd.Series(lost), 100),
            }
        )
    return [("Fronts by the images of each task that a point is measured on.", pd.DataFrame(lines))]


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """IGD beside that of whole splits, by images, a line for each number of tasks."""
    axes = figure.subplots()
    for colour, (n, part) in zip(COLOURS, frame.groupby("N", sort=False), strict=False):
        means = part.groupby("images")["IGD"].mean()
        axes.plot(means.index, means / means.iloc[-1], color=colour, marker="o", label=f"{n} tasks")
    axes.axhline(SAME, color="black", lw=0.8, ls="--", label="10 % more")
    axes.set(xscale="log", xlabel="images of each task a point", ylabel="IGD beside whole splits")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def notes(bench: Bench) -> list[str]:
    """What the columns are."""
    del bench
    return [
        (
            "Surrogates are fitted to all points at a budget of images (stratified, nested, weighted by "
            f"standard errors); {ROWS} models of the front that they predict are measured on whole "
            "validation splits. IGD is the mean distance of the best models that any budget found to the "
            "nearest of these, in points of accuracy."
        ),
        (
            "'preferred' is the preference-weighted accuracy of the best of them for each of 20 preferences, "
            "'lost' how far it is below whole splits'. ± is the standard deviation over seeds."
        ),
    ]


TABLE = Table(
    title="MAP by the images a point is measured on",
    sets=sets,
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
