"""Eight models: whether raising a task's weight raises its accuracy, and what a learned set costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.paper.table import COLOURS, Tables, mean_std
from benchmarks.pareto_merging.experiment import PARETO, cost_line, experiment, first, model_rows
from benchmarks.pareto_merging.preferences import priority

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench

SHARES = (0.1, 0.3, 0.5, 0.8)


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """The training, and each task's models."""
    return bench.worth(n_tasks) + len(SHARES) * n_tasks


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Each task's accuracy with more and more weight on it, the rest shared by the others."""
    study = bench.study(names)
    learned = bench.pareto(study, seed)
    found = []
    for k, name in enumerate(names):
        gammas = np.array([priority(len(names), k, share) for share in SHARES])
        values = bench.values(learned, gammas, tasks=[name])
        found += model_rows(
            names,
            seed,
            PARETO,
            values,
            gammas[:, [k]],
            [learned],
            tasks=[name],
            parameters=bench.evaluator(study).vectors.n_parameters,
        )
    return found


def summary(frame: pd.DataFrame) -> Tables:
    """For each set of tasks the accuracies by weight, and the cost."""
    tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        table = part.pivot_table(index=["task", "seed"], columns="weight", values="metric", sort=False)
        gain = table[SHARES[-1]] - table[SHARES[0]]
        lines = []
        for task, own in table.groupby(level="task", sort=False):
            cells = {f"γ = {share:g}": mean_std(own[share], 100) for share in SHARES}
            lines.append({"task": task} | cells | {"gain": mean_std(gain.loc[[task]], 100)})
        raised = (gain > 0).groupby(level="seed").sum()
        cost = cost_line(part)
        share = part["extra"].iloc[0] / part["parameters"].iloc[0]
        caption = (
            f"{tasks}: each task's test accuracy in percent by its weight, the rest shared. From "
            f"{SHARES[0]:g} to {SHARES[-1]:g} it rises on {mean_std(raised.astype(float), digits=1)} of "
            f"{part['task'].nunique()} tasks."
        )
        tables += [
            (caption, pd.DataFrame(lines)),
            (
                "The cost of all models.",
                pd.DataFrame(
                    [
                        {
                            "training time": cost["training time"],
                            "extra parameters": cost["extra parameters"],
                            "model's parameters": f"{part['parameters'].iloc[0]:,}",
                            "extra, % of the model": f"{100 * share:.2f}",
                            "paper": "0.5",
                        }
                    ]
                ),
            ),
        ]
    return tables


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """A line for each task, from its accuracy at the least weight."""
    axes = figure.subplots()
    part = frame[frame["tasks"] == frame["tasks"].iloc[0]]
    means = part.groupby(["task", "weight"], sort=False)["metric"].mean() * 100
    for colour, task in zip(COLOURS, dict.fromkeys(part["task"]), strict=False):
        axes.plot(means[task].index, means[task] - means[task].iloc[0], color=colour, marker="o", label=task)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xlabel="the task's weight γ", ylabel=f"accuracy above that at γ = {SHARES[0]:g}, points")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def notes(bench: Bench) -> list[str]:
    """What was counted."""
    del bench
    return [
        "Extra parameters are r (c + d) + r² K for each of the attention's projections, q, k and v apart.",
        ("The share depends on the width: r = 16 is an eighth of the demo models' 128, and a 48th of the paper's 768."),
    ]


TABLE = experiment(
    title="Control: accuracy by weight, and the cost of a learned set",
    sets=first(8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
