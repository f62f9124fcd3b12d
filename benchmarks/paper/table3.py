"""Table 3: MAP against every baseline under 20 sampled preferences (MAP, Section 5.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.paper.bench import Bench, maximize
from benchmarks.paper.table import COLOURS, Table, Tables, first_sets, mean_std
from mapmerge_core.search.indicators import preference_sums, preference_win_rate
from mapmerge_core.search.preferences import choose_by_preference
from mapmerge_core.studies.analysis import compare
from mapmerge_core.studies.analysis.comparing import N_PREFERENCES
from mapmerge_core.studies.config import Compute
from mapmerge_core.studies.runs.completing import complete

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, SINGLE = "MAP", "Single-task models"
BASELINES = 300
"""Roughly how many evaluations of a task take as long as making and measuring all of its baselines."""


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """For MAP's points, its models for the preferences, and the baselines."""
    return n_tasks * (bench.budget(n_tasks) + N_PREFERENCES + BASELINES)


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """MAP's models for the seed's preferences and every baseline, measured on the test split."""
    study, n = bench.study(names), len(names)
    C = bench.design(study, bench.budget(n), seed)
    Y = bench.measure(study, C)
    front = bench.front(study, C, bench.fit(study, C, Y), seed)
    progress = bench.counter.part(n * BASELINES)
    complete(
        bench.store, study.id, bench.get_evaluator, seed=seed, compute=Compute(device=bench.device), progress=progress
    )
    bench.counter.advance(n * BASELINES)
    comparison = compare(bench.store, study.id, seed=seed)
    directions = maximize(study)
    chosen = [choose_by_preference(front.predicted, w, maximize=directions) for w in comparison.preferences]
    models = bench.measure(study, front.x[chosen], "test")
    sums = preference_sums(models, comparison.preferences, directions)
    found = {OURS: sums, SINGLE: preference_sums(comparison.single, comparison.preferences, directions)}
    found |= {
        row.name: comparison.sums[row.key]
        for row in comparison.rows
        if row.kind == "baseline" or row.method == "scalar"
    }
    return [
        {
            "N": n,
            "tasks": " + ".join(names),
            "seed": seed,
            "MAP points": len(C),
            "method": method,
            "sum": theirs.mean(),
            "deviation": theirs.std(ddof=1),
            "win rate": np.nan if method in (OURS, SINGLE) else preference_win_rate(sums, theirs)[0],
        }
        for method, theirs in found.items()
    ]


def summary(frame: pd.DataFrame) -> Tables:
    """A column for each set of tasks: the sums, then MAP's win rates."""
    sums = _columns(frame, "sum")
    wins = _columns(frame[~frame["method"].isin([OURS, SINGLE])], "win rate")
    sets = frame.groupby(["N", "tasks"], sort=False)["seed"].nunique().rename("seeds").reset_index()
    return [
        (
            (
                "Preference-weighted sum of test accuracies in percent, mean over the 20 preferences; mean "
                "± standard deviation over seeds."
            ),
            sums,
        ),
        ("MAP's win rate: on how many percent of the preferences its sum is higher.", wins),
        ("The tasks of each column.", sets),
    ]


def _columns(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    lines: dict[str, dict[str, str]] = {method: {"method": method} for method in frame["method"].unique()}
    for (n, _), part in frame.groupby(["N", "tasks"], sort=False):
        head = str(n)
        while head in lines[frame["method"].iloc[0]]:
            head += "'"
        for method, line in lines.items():
            line[head] = mean_std(part.loc[part["method"] == method, column], 100)
    return pd.DataFrame(lines.values())


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """The sums by the number of tasks, MAP in front."""
    axes = figure.subplots()
    methods = frame["method"].unique()
    for index, method in enumerate(methods):
        groups = frame[frame["method"] == method].groupby("N")["sum"].mean() * 100
        special = method in (OURS, SINGLE)
        axes.plot(
            groups.index,
            groups,
            color=COLOURS[0] if method == OURS else COLOURS[1 + index % (len(COLOURS) - 1)],
            lw=2.5 if method == OURS else 1.2,
            ls="-" if special else ("--", ":", "-.")[index % 3],
            marker="o" if special else "s",
            ms=6 if special else 3,
            zorder=3 if method == OURS else 2,
            label=method,
        )
    axes.set(xlabel="tasks N", ylabel="preference-weighted sum, %", xticks=sorted(frame["N"].unique()))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def notes(bench: Bench) -> list[str]:
    """How the preferences and the models were chosen."""
    budgets = ", ".join(str(bench.budget(n)) for n in range(2, 9))
    return [
        (
            "For each seed 20 other preferences and another run of MAP; ± is the standard deviation over "
            f"seeds. MAP's points for 2 to 8 tasks: {budgets}."
        ),
        (
            "MAP's model for a preference is the row of its predicted front with the highest predicted "
            "sum, chosen on the validation split. Everything is measured on the test split."
        ),
        "'Single-task models' is no merged model: each task's accuracy by the model fine-tuned for it.",
        "The paper doesn't say whose standard deviation its ± is; that over preferences is in the CSV here.",
    ]


TABLE = Table(
    title="Table 3: preferences, MAP against every baseline",
    sets=first_sets(2, 8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
