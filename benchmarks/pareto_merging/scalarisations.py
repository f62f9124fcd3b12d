"""Smooth Tchebycheff, linear and Tchebycheff scalarisation, on eight models (reviews)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.paper.table import COLOURS, Tables
from benchmarks.pareto_merging.experiment import STEERED, experiment, first, split_by, steered_lines, steered_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench

NAMES = ("smooth_tchebycheff", "tchebycheff", "linear")
PAPER = {"linear": 84.3, "tchebycheff": 82.8, "smooth_tchebycheff": 85.2}


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """The trainings and their models."""
    return len(NAMES) * (bench.worth(n_tasks) + (1 + n_tasks) * n_tasks)


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Each scalarisation's models for equal preference and priorities."""
    found = []
    for name in NAMES:
        found += steered_rows(bench, names, seed, name, bench.pareto(bench.study(names), seed, scalarisation=name))
    return found


def summary(frame: pd.DataFrame) -> Tables:
    """Equal preference, then priority: a line for each scalarisation."""
    return steered_tables(frame, "scalarisation", {"equal": PAPER})


def steered_tables(frame: pd.DataFrame, column: str, paper: dict[str, dict[str, float]]) -> Tables:
    """For each set of tasks the accuracies with equal preference, and with priority.

    Args:
        frame: Rows of `steered_rows`.
        column: What the methods are.
        paper: The paper's averages by preference and method.
    """
    tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        found = {method: steered_lines(own) for method, own in split_by(part).items()}
        for how in ("equal", "priority"):
            lines = [
                {column: method} | lines[how] | {"paper's average": str(paper.get(how, {}).get(method, "-"))}
                for method, lines in found.items()
            ]
            tables.append((f"{tasks}: test accuracies in percent, {how} preference.", pd.DataFrame(lines)))
    return tables


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """The first set of tasks."""
    dots(frame, figure.subplots())


def dots(frame: pd.DataFrame, axes: Axes) -> None:
    """Weighted accuracies of the first set of tasks, for equal preference and priority."""
    part = frame[frame["tasks"] == frame["tasks"].iloc[0]]
    methods = list(split_by(part))
    sums = part.assign(product=100 * part["metric"] * part["weight"])
    sums = sums.groupby(["method", "preference", "seed", "model"])["product"].sum()
    for colour, marker, preference in zip(COLOURS, "os", ("equal", "priority"), strict=False):
        heights = [sums[method][preference].mean() for method in methods]
        axes.plot(heights, methods, color=colour, marker=marker, ls="", label=preference)
    axes.invert_yaxis()
    axes.set(xlabel="preference-weighted test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title="preference")


def notes(bench: Bench) -> list[str]:
    """Where the paper's figures come from."""
    del bench
    return [STEERED, "The paper's averages are from its reviews (eight other tasks, CLIP ViT-B/32)."]


TABLE = experiment(
    title="Scalarisations, eight models (reviews)",
    sets=first(8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
