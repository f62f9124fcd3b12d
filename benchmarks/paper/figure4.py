"""Figure 4: how well the surrogates predict, by the number of points that they are fitted to (Appendix B)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.paper.table import COLOURS, Table, Tables, first_sets, mean_std
from mapmerge_core.search.indicators import r2
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench

COUNTS = (10, 15, 20, 30, 40, 50, 60, 85, 100, 140, 200, 250, 300, 400, 500)


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """Direct search's points."""
    return bench.direct_budget(n_tasks) * n_tasks


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """R² on the second half of direct search's points, of surrogates fitted to more and more of the first."""
    study, n = bench.study(names), len(names)
    C = bench.design(study, bench.direct_budget(n), seed)
    Y = bench.measure(study, C)
    half = len(C) // 2
    results = []
    for points in COUNTS:
        if points > half or bench.inside(study, C[:points]).sum() < QuadraticSurrogate.n_parameters(n):
            continue
        surrogates = bench.fit(study, C[:points], Y[:points])
        predicted = surrogates.predict(C[half:])
        scores = [r2(y, guess) for y, guess in zip(Y[half:].T, predicted.T, strict=True)]
        results.append(
            {
                "N": n,
                "tasks": " + ".join(names),
                "seed": seed,
                "points": points,
                "held out": len(C) - half,
                "R2": np.mean(scores),
                "worst R2": np.min(scores),
            }
        )
    return results


def summary(frame: pd.DataFrame) -> Tables:
    """A line for each set of tasks, a column for each number of points."""
    lines = []
    for (n, tasks), part in frame.groupby(["N", "tasks"], sort=False):
        cells = {
            str(points): mean_std(part.loc[part["points"] == points, "R2"], digits=3)
            for points in sorted(frame["points"].unique())
        }
        lines.append({"N": n, "seeds": part["seed"].nunique()} | cells | {"tasks": tasks})
    return [("Mean R² over tasks; mean ± standard deviation over seeds.", pd.DataFrame(lines))]


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """As in the paper: two and three tasks on the left, more on the right."""
    for axes, few in zip(figure.subplots(1, 2), (True, False), strict=True):
        chosen = frame[(frame["N"] <= 3) == few]
        for colour, ((n, tasks), part) in zip(COLOURS, chosen.groupby(["N", "tasks"], sort=False), strict=False):
            groups = part.groupby("points")["R2"]
            mean, error = groups.mean(), groups.std().fillna(0)
            alike = chosen.loc[chosen["N"] == n, "tasks"].nunique()
            axes.plot(mean.index, mean, color=colour, marker="o", label=tasks if alike > 1 else f"{n} tasks")
            axes.fill_between(mean.index, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="points fitted", ylabel="out-of-sample R², mean over tasks", ylim=(0.5, 1.0))
        axes.grid(alpha=0.3)
        if not chosen.empty:
            axes.legend(frameon=False)


def notes(bench: Bench) -> list[str]:
    """What the figures rest on."""
    return [
        (
            "Held out are direct search's points from the middle of its budget on, uniform in the same "
            "box; the surrogates are fitted to the first of the others, on the validation split."
        ),
        (
            "Points outside the box (the single-task models from five tasks on) count, but aren't fitted: "
            "a count needs (N + 1)(N + 2) / 2 points inside."
        ),
        (
            f"The sigmoid link with its usual ridge, boxes up to {bench.models.upper(2):g} (N = 2) and "
            f"{bench.models.upper(8):g} (N = 8)."
        ),
    ]


TABLE = Table(
    title="Figure 4: the surrogates' R² by the number of points",
    sets=first_sets(2, 8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
