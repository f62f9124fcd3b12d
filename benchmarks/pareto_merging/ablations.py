"""Rank, β_cos, β_norm and balance, on two models with 11 preferences (Appendix 4); balance on eight."""

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
from benchmarks.pareto_merging.preferences import preference_grid
from benchmarks.pareto_merging.scalarisations import dots, steered_tables
from benchmarks.pareto_merging.structures import sets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench

N_PREFERENCES = 11


def settings(bench: Bench, n_tasks: int) -> dict[str, list[float]]:
    """The values of each setting, in order, the usual one included; with more than two tasks of balance."""
    usual = bench.training(n_tasks)
    values: dict[str, set[float]] = {
        "rank": {4, 8, 16, 32, usual.rank},
        "beta_cos": {0.0, 0.1, 0.5, usual.beta_cos},
        "beta_norm": {0.0, usual.beta_norm, round(10 * usual.beta_norm, 6)},
        "balance": {0.0, 0.5, 1.0, usual.balance},
    }
    return {name: sorted(each) for name, each in values.items() if n_tasks == 2 or name == "balance"}


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """A training and its models for each value, and with two tasks the single models."""
    n_runs = sum(map(len, settings(bench, n_tasks).values()))
    models = N_PREFERENCES if n_tasks == 2 else 1 + n_tasks
    single = n_single(bench, n_tasks) if n_tasks == 2 else 0
    return bench.worth(n_tasks, n_runs) + n_runs * models * n_tasks + single


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """The models of each value: the front of two tasks; of more, equal preference and priorities."""
    n = len(names)
    found: list[dict[str, Any]] = []
    for name, values in settings(bench, n).items():
        for value in values:
            usual = value == getattr(bench.training(n), name)
            changes: dict[str, Any] = {} if usual else {name: value}
            learned, method = bench.pareto(bench.study(names), seed, **changes), f"{name} {value:g}"
            said = {"setting": name, "usual": usual}
            if n > 2:
                found += [row | said for row in steered_rows(bench, names, seed, method, learned)]
            else:
                grid = preference_grid(2)
                found += model_rows(
                    names, seed, method, bench.values(learned, grid), grid, [learned], preference="grid", **said
                )
    return found if n > 2 else found + single_rows(bench, names, seed)


def summary(frame: pd.DataFrame) -> Tables:
    """For each setting a line for each value; of more than two tasks, the accuracies by balance."""
    tables: Tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        if part["N"].iloc[0] > 2:
            tables += steered_tables(part, "setting", {})
            continue
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
    pairs = frame[frame["N"] == 2]
    if pairs.empty:
        dots(frame, figure.subplots())
    else:
        _fronts(pairs, figure)


def _fronts(frame: pd.DataFrame, figure: Figure) -> None:
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


def notes(bench: Bench) -> list[str]:
    """What the paper finds."""
    del bench
    return [
        FRONT,
        STEERED,
        (
            "The paper (RESISC45 and GTSRB, figures only): more rank is better in general; more β_cos makes "
            "models more diverse, and too much of it worse; without β_norm both ends are worse, and much of "
            "it makes models alike. Balance isn't in the paper, which has 0."
        ),
    ]


TABLE = experiment(
    title="Ablations: rank, β_cos, β_norm and balance (Appendix 4)",
    sets=sets,
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
