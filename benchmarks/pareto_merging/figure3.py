"""Two models, 11 preferences: against AdaMerging and task arithmetic + preference (Figure 3 and Table 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.paper.table import Tables, mean_std
from benchmarks.pareto_merging.experiment import (
    ADA_PREFERENCE,
    ADAMERGING,
    ARITHMETIC,
    BALANCED,
    FRONT,
    FRONTS,
    INDIVIDUAL,
    LAMBDA,
    PARETO,
    PRETRAINED,
    STYLES,
    TA_PREFERENCE,
    by_model,
    check_number,
    cost_line,
    experiment,
    first,
    front_line,
    model_rows,
    n_single,
    own_value,
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
PAPER_TIMES = {PARETO: "9 min (reviews: 0.28 GPU hours)", ADA_PREFERENCE: "reviews: 1.65 GPU hours"}
N_PREFERENCES = 11


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """The trainings, three fronts and the single models."""
    runs = 1 + N_PREFERENCES
    return bench.worth(n_tasks, 1) * runs + 3 * N_PREFERENCES * n_tasks + n_single(bench, n_tasks)


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """All three fronts and the single models, measured on the test split.

    Task arithmetic + preference is θ_pre + K λ Σ γ_k V_k with λ = 0.3: the formula of the paper's Table 1 is
    lost in its stored text; this is what minimises the γ-weighted sum of section 3.2's data-free objectives,
    and for equal preference it is task arithmetic.
    """
    check_number(names, 2, "Figure 3")
    grid = preference_grid(2)
    learned = bench.pareto(bench.study(names), seed)
    found = model_rows(names, seed, PARETO, bench.values(learned, grid), grid, [learned])
    runs = [bench.adamerging(bench.study(names), seed, gamma) for gamma in grid]
    values = np.array([own_value(bench, run) for run in runs])
    found += model_rows(names, seed, ADA_PREFERENCE, values, grid, runs)
    values = bench.measure(bench.study(names), len(names) * LAMBDA * grid, "test")
    found += model_rows(names, seed, TA_PREFERENCE, values, grid)
    return found + single_rows(bench, names, seed)


def summary(frame: pd.DataFrame) -> Tables:
    """For each pair of tasks the accuracies by preference, the single models, and Table 2."""
    tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        by_method = split_by(part)
        tables += [
            (f"{tasks}: test accuracies in percent for each preference.", _by_preference(part)),
            (f"{tasks}: models without a preference.", pd.DataFrame(single_lines(by_method, SINGLES))),
            (
                f"{tasks}: the fronts, and what they took (Table 2, whose stored text has lost most times).",
                pd.DataFrame(
                    {"method": method}
                    | front_line(by_method[method], by_method[PRETRAINED])
                    | cost_line(by_method[method])
                    | {"paper": PAPER_TIMES.get(method, "-")}
                    for method in FRONTS
                ),
            ),
        ]
    return tables


def _by_preference(part: pd.DataFrame) -> pd.DataFrame:
    names = list(dict.fromkeys(part["task"]))
    front = part[part["method"].isin(FRONTS)]
    lines: list[dict[str, str]] = []
    for model in sorted(front["model"].unique()):
        own = front[front["model"] == model]
        weights = own.groupby("task")["weight"].first()
        line = {f"γ {names[0]}": f"{weights[names[0]]:.1f}"}
        for method in FRONTS:
            for task in names:
                chosen = own[(own["method"] == method) & (own["task"] == task)]
                line[f"{method}: {task}"] = mean_std(chosen["metric"], 100)
        lines.append(line)
    return pd.DataFrame(lines)


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """As Figure 3: (a) all methods, (b) without task arithmetic; the first pair of tasks and seed."""
    part = frame[frame["tasks"] == frame["tasks"].iloc[0]]
    table, names = by_model(part), list(dict.fromkeys(part["task"]))
    left, right = figure.subplots(1, 2)
    scatter(left, table, names, list(STYLES))
    scatter(right, table, names, [m for m in STYLES if m not in (TA_PREFERENCE, INDIVIDUAL)])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def notes(bench: Bench) -> list[str]:
    """What the figures rest on."""
    del bench
    return [
        FRONT,
        (
            "AdaMerging + preference is a layer-wise run for each preference, minimising Σ γ_k f_k with the "
            "same f, steps, images and code as Pareto Merging; λ within [0, 1]. 'AdaMerging' minimises "
            "entropies alone, as its paper has it; balanced, what Pareto Merging minimises."
        ),
        (
            "Task arithmetic + preference is θ_pre + K · 0.3 · Σ γ_k V_k, the minimum of the γ-weighted "
            "data-free objectives; the formula of the paper's Table 1 is lost."
        ),
        "Making a model for a preference takes milliseconds and isn't in the training time.",
        (
            "The paper's (RESISC45 and GTSRB, CLIP ViT-B/32) is a figure: its Pareto Merging is better than "
            "AdaMerging + preference, and far better than task arithmetic + preference."
        ),
    ]


TABLE = experiment(
    title="Figure 3 and Table 2: two models, 11 preferences",
    sets=first(2),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
