"""What a preference adds: A G Bᵀ against LoRAs, singular values and outer products (reviews, Appendix 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.paper.table import COLOURS, Tables
from benchmarks.pareto_merging.experiment import (
    FRONT,
    PRETRAINED,
    STEERED,
    by_model,
    cost_line,
    experiment,
    front_line,
    model_rows,
    n_single,
    single_rows,
    split_by,
    steered_rows,
)
from benchmarks.pareto_merging.personalisations import STRUCTURES
from benchmarks.pareto_merging.preferences import preference_grid
from benchmarks.pareto_merging.scalarisations import dots, steered_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench
    from benchmarks.paper.models import Models

N_PREFERENCES = 11
TITLES = {name: title for name, (title, _) in STRUCTURES.items()}
PAPER = {
    "equal": {TITLES["tensor"]: 84.9, TITLES["loras"]: 84.5, TITLES["singular"]: 84.1},
    "priority": {TITLES["tensor"]: 85.5, TITLES["loras"]: 85.2, TITLES["singular"]: 84.4},
}


def sets(models: Models) -> list[tuple[str, ...]]:
    """Two tasks with 11 preferences, and eight (or all) with equal preference and priorities."""
    n = min(8, len(models.names))
    return [models.first(k) for k in sorted({2, n})]


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """A training for each structure, its models, and with two tasks the single models."""
    models = N_PREFERENCES if n_tasks == 2 else 1 + n_tasks
    single = n_single(bench, n_tasks) if n_tasks == 2 else 0
    return len(STRUCTURES) * (bench.worth(n_tasks) + models * n_tasks) + single


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Each structure's front with two tasks; with more its models for equal preference and priorities."""
    found = []
    for structure, title in TITLES.items():
        learned = bench.pareto(bench.study(names), seed, structure=structure)
        if len(names) > 2:
            found += steered_rows(bench, names, seed, title, learned)
        else:
            grid = preference_grid(2)
            found += model_rows(names, seed, title, bench.values(learned, grid), grid, [learned], preference="grid")
    return found if len(names) > 2 else found + single_rows(bench, names, seed)


def summary(frame: pd.DataFrame) -> Tables:
    """With two tasks a line for each structure's front, with more the accuracies and costs."""
    tables: Tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        own = {method: each for method, each in split_by(part).items() if method in TITLES.values()}
        if part["N"].iloc[0] > 2:
            tables += steered_tables(part, "structure", PAPER)
            lines = [{"structure": title} | cost_line(each) for title, each in own.items()]
            tables.append((f"{tasks}: what the structures cost.", pd.DataFrame(lines)))
        else:
            pretrained = part[part["method"] == PRETRAINED]
            lines = [
                {"structure": title} | front_line(each, pretrained) | cost_line(each) for title, each in own.items()
            ]
            tables.append((f"{tasks}: {N_PREFERENCES} preferences.", pd.DataFrame(lines)))
    return tables


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """The fronts of two tasks and the weighted accuracies of more, those that there are."""
    drawn = [(frame[frame["N"] == 2], _fronts), (frame[frame["N"] > 2], dots)]
    drawn = [(part, how) for part, how in drawn if len(part)]
    figure.set_size_inches(8 * len(drawn), 5)
    for axes, (part, how) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        how(part, axes)


def _fronts(part: pd.DataFrame, axes: Axes) -> None:
    """A line through each structure's models, for the first pair of tasks and seed."""
    part = part[(part["tasks"] == part["tasks"].iloc[0]) & (part["preference"] == "grid")]
    part = part[part["seed"] == part["seed"].iloc[0]]
    names = list(dict.fromkeys(part["task"]))
    for colour, (title, own) in zip(COLOURS, split_by(part).items(), strict=False):
        table = 100 * by_model(own)
        axes.plot(table[names[0]], table[names[1]], color=colour, marker="o", ms=4, lw=1, label=title)
    axes.set(xlabel=f"{names[0]}, %", ylabel=f"{names[1]}, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def notes(bench: Bench) -> list[str]:
    """What the structures are, and the paper's."""
    return [
        FRONT,
        STEERED,
        (
            "Sum of LoRAs: Σ γ_k A_k B_kᵀ. Singular values: A diag(σ, s γ) Bᵀ with r + K columns. Outer "
            "products: (A γ)(B γ)ᵀ, and (Σ γ_k A_k)(Σ γ_k B_k)ᵀ with rank r; the formulas of Appendix 5 are "
            f"lost in its stored text, and these are our reading. r = {bench.training(2).rank}."
        ),
        (
            "The paper's averages are from its reviews (eight other tasks, CLIP ViT-B/32; 0.61 million extra "
            "parameters, LoRAs 4.71 million). It shows both outer products as worse, in a figure."
        ),
    ]


TABLE = experiment(
    title="Structures: what a preference adds (reviews and Appendix 5)",
    sets=sets,
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
