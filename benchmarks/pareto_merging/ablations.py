"""Rank, β_cos, β_norm and balance, on two models with 11 preferences (Appendix 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.paper.table import COLOURS, Tables
from benchmarks.pareto_merging.experiment import (
    FRONT,
    PRETRAINED,
    Experiment,
    by_model,
    check_number,
    cost_line,
    first,
    front_line,
    model_rows,
    n_single,
    single_rows,
    split_by,
)
from mapmerge_core.search.preference_grid import preference_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.pareto_merging.lab import Lab

N_PREFERENCES = 11


def settings(lab: Lab, n_tasks: int) -> dict[str, list[float]]:
    """The values of each setting, in order; the usual one is among them."""
    usual = lab.training(n_tasks)
    values: dict[str, set[float]] = {
        "rank": {4, 8, 16, 32, usual.rank},
        "beta_cos": {0.0, 0.1, 0.5, usual.beta_cos},
        "beta_norm": {0.0, 1.0, 5.0, usual.beta_norm},
        "balance": {0.0, 1.0, usual.balance},
    }
    return {name: sorted(each) for name, each in values.items()}


def n_evaluations(lab: Lab, n_tasks: int) -> int:
    """A training and a front for each value, and the single models."""
    n_runs = sum(map(len, settings(lab, n_tasks).values()))
    return lab.worth(n_tasks, n_runs) + n_runs * N_PREFERENCES * n_tasks + n_single(lab, n_tasks)


def rows(lab: Lab, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """The front of each value, all else as usual."""
    check_number(names, 2, "An ablation")
    grid = preference_grid(2, N_PREFERENCES)
    found = []
    for name, values in settings(lab, 2).items():
        for value in values:
            usual = value == getattr(lab.training(2), name)
            changes: dict[str, Any] = {} if usual else {name: value}
            learned = lab.pareto(names, seed, **changes)
            found += model_rows(
                names,
                seed,
                f"{name} {value:g}",
                lab.measure(learned, grid),
                grid,
                [learned],
                setting=name,
                usual=usual,
            )
    return found + single_rows(lab, names, seed)


def summary(frame: pd.DataFrame) -> Tables:
    """For each setting a line for each value."""
    tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        pretrained = part[part["method"] == PRETRAINED]
        for name, own in split_by(part, "setting").items():
            lines = []
            for method, each in split_by(own).items():
                value = method.removeprefix(name).strip() + (" (usual)" if each["usual"].all() else "")
                lines.append({name: value} | front_line(each, pretrained) | cost_line(each))
            tables.append((f"{tasks}: {name}.", pd.DataFrame(lines)))
    return tables


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """A panel for each setting, a line through the front of each value; the first pair of tasks and seed."""
    frame = frame[(frame["tasks"] == frame["tasks"].iloc[0]) & (frame["seed"] == frame["seed"].iloc[0])]
    names = list(dict.fromkeys(frame["task"]))
    parts = split_by(frame, "setting")
    figure.set_size_inches(10, 8)
    for axes, (name, part) in zip(figure.subplots(2, 2).flat, parts.items(), strict=True):
        for colour, (method, own) in zip(COLOURS, split_by(part).items(), strict=False):
            table = 100 * by_model(own)
            axes.plot(table[names[0]], table[names[1]], color=colour, marker="o", ms=4, lw=1, label=method)
        axes.set(title=name, xlabel=f"{names[0]}, %", ylabel=f"{names[1]}, %")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)


def notes(lab: Lab) -> list[str]:
    """What the paper finds."""
    del lab
    return [
        FRONT,
        (
            "The paper (RESISC45 and GTSRB, figures only): more rank is better in general; more β_cos makes "
            "models more diverse, and too much of it worse; without β_norm both ends are worse, and much of "
            "it makes models alike. Balance isn't in the paper, which has 0."
        ),
    ]


EXPERIMENT = Experiment(
    title="Ablations: rank, β_cos, β_norm and balance (Appendix 4)",
    sets=first(2),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
