"""Three models, 36 preferences, against AdaMerging (Figure 4)."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.paper.table import Tables, mean_std
from benchmarks.pareto_merging.experiment import (
    ADAMERGING,
    ARITHMETIC,
    BALANCED,
    EQUAL,
    FRONT,
    INDIVIDUAL,
    PARETO,
    PRETRAINED,
    by_model,
    check_number,
    cost_line,
    experiment,
    first,
    front_line,
    metrics_text,
    model_rows,
    n_single,
    scatter,
    single_lines,
    single_rows,
    split_by,
)
from benchmarks.pareto_merging.preferences import preference_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench

SINGLES = (ADAMERGING, BALANCED, ARITHMETIC, PRETRAINED, INDIVIDUAL)
N_PREFERENCES = 36


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """The training, the front and the single models."""
    return bench.worth(n_tasks) + (N_PREFERENCES + 1) * n_tasks + n_single(bench, n_tasks)


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """The models for a triangular lattice of preferences and the equal one, and the single models."""
    check_number(names, 3, "Figure 4")
    grid = preference_grid(3)
    learned = bench.pareto(bench.study(names), seed)
    found = model_rows(names, seed, PARETO, bench.values(learned, grid), grid, [learned])
    return found + single_rows(bench, names, seed)


def summary(frame: pd.DataFrame) -> Tables:
    """For each set of tasks the front, the single models, and who dominates whom."""
    tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        by_method = split_by(part)
        ours = by_method[PARETO]
        # The first model of the grid is the equal preference's.
        lines = [{"method": EQUAL} | metrics_text(ours[ours["model"] == 0])]
        lines += single_lines(by_method, SINGLES)
        tables += [
            (f"{tasks}: test accuracies of single models in percent.", pd.DataFrame(lines)),
            (f"{tasks}: the learned set.", pd.DataFrame([front_line(ours, by_method[PRETRAINED]) | cost_line(ours)])),
            (
                (
                    f"{tasks}: how many of Pareto Merging's {N_PREFERENCES + 1} models are better than "
                    "another method's on every task, and how many are worse on every task."
                ),
                pd.DataFrame(
                    _against(ours, by_method[m], m) for m in (ADAMERGING, BALANCED, ARITHMETIC) if m in by_method
                ),
            ),
        ]
    return tables


def _against(ours: pd.DataFrame, theirs: pd.DataFrame, method: str) -> dict[str, str]:
    single = by_model(theirs).droplevel(["method", "model"])
    better, worse = [], []
    for seed, table in by_model(ours).groupby(level="seed"):
        apart = table.to_numpy() - single.loc[[seed]].to_numpy()
        better.append((apart > 0).all(axis=1).sum())
        worse.append((apart < 0).all(axis=1).sum())
    return {
        "against": method,
        "better on all": mean_std(pd.Series(better, dtype=float), digits=1),
        "worse on all": mean_std(pd.Series(worse, dtype=float), digits=1),
    }


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """The front from three sides, for the first set of tasks and seed."""
    figure.set_size_inches(12, 4.5)
    part = frame[frame["tasks"] == frame["tasks"].iloc[0]]
    table, names = by_model(part), list(dict.fromkeys(part["task"]))
    panels = figure.subplots(1, 3)
    for axes, pair in zip(panels, combinations(names, 2), strict=True):
        scatter(axes, table, pair, (PARETO, ADAMERGING, BALANCED, ARITHMETIC))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def notes(bench: Bench) -> list[str]:
    """What the paper has."""
    del bench
    return [
        FRONT,
        (
            "The paper's (RESISC45, GTSRB and SVHN, CLIP ViT-B/32) is a figure: models in the middle of its "
            "front dominate AdaMerging's, and those at its borders aren't dominated by it."
        ),
    ]


TABLE = experiment(
    title="Figure 4: three models, 36 preferences",
    sets=first(3),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
