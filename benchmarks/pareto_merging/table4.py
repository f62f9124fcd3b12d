"""Eight models: equal and priority preferences against every baseline (Table 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.paper.table import COLOURS, Tables
from benchmarks.pareto_merging.experiment import (
    ADAMERGING,
    ARITHMETIC,
    INDIVIDUAL,
    LAMBDA,
    PARETO,
    PRETRAINED,
    STEERED,
    adamergings,
    cost_line,
    experiment,
    first,
    individual_rows,
    metrics_text,
    model_rows,
    own_value,
    split_by,
    steered_lines,
    steered_rows,
)
from mapmerge_core.registries import MERGES
from mapmerge_core.settings import to_dict
from mapmerge_core.studies.analysis.comparing import baselines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench

PAPERS_WAY, DATA_FREE = f"{PARETO}, the paper's settings", f"{PARETO}, data-free"
BASELINES = 100
"""Roughly how many evaluations of a task take as long as all baselines but AdaMerging."""
PAPER = {
    INDIVIDUAL: 90.5,
    "Model soup": 65.8,
    "Fisher merging": 68.3,
    "RegMean": 71.8,
    ARITHMETIC: 69.1,
    "TIES": 72.4,
    ADAMERGING: 80.1,
    f"{ADAMERGING}++": 81.1,
    f"{PARETO}, equal": 84.8,
    f"{PARETO}++, equal": 85.2,
    f"{PARETO}, priority": 85.5,
}


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """The trainings and their models, and the baselines."""
    models = 4 * (1 + n_tasks) + 4 + 2
    return bench.worth(n_tasks, 8) + n_tasks * (models + BASELINES)


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Every baseline and all kinds of Pareto Merging, measured on the test split."""
    n, study = len(names), bench.study(names)
    found = individual_rows(bench, names, seed)
    found += model_rows(names, seed, PRETRAINED, bench.measure(study, np.zeros((1, n)), "test"))
    # AdaMerging is trained below, with as many steps as Pareto Merging.
    merges = [merge for merge in baselines(study.config) if merge.name not in ("adamerging", "task_arithmetic")]
    found += model_rows(names, seed, ARITHMETIC, bench.measure(study, np.full((1, n), LAMBDA), "test"))
    for number, merge in enumerate(merges):
        stored = bench.store.merges.add(study.id, merge.name, to_dict(merge.settings))
        for title, x in merge.baselines(study.config.model_names):
            found += model_rows(names, seed, title, bench.measure(study, x[None], "test", merge=stored))
        bench.counter.show(n * BASELINES * (number + 1) // len(merges))
    bench.counter.advance(n * BASELINES)
    for trimmed, suffix in ((False, ""), (True, "++")):
        for method, learned in adamergings(bench, study, seed, trimmed=trimmed).items():
            title = method.replace(ADAMERGING, ADAMERGING + suffix)
            found += model_rows(names, seed, title, own_value(bench, learned)[None], learned=[learned])
        learned = bench.pareto(study, seed, trimmed=trimmed)
        found += steered_rows(bench, names, seed, PARETO + suffix, learned)
    learned = bench.learn(study, "pareto_merging", {"steps": bench.steps, "seed": seed})
    found += steered_rows(bench, names, seed, PAPERS_WAY, learned)
    learned = bench.pareto(study, seed, data_free=True)
    return found + steered_rows(bench, names, seed, DATA_FREE, learned)


def summary(frame: pd.DataFrame) -> Tables:
    """For each set of tasks a line for each method, and what those that learn took."""
    tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        by_method = split_by(part)
        lines: list[dict[str, str]] = []
        for method, own in by_method.items():
            if method.startswith(PARETO):
                cells = {f"{method}, {how}": line for how, line in steered_lines(own).items()}
            else:
                cells = {method: metrics_text(own)}
            lines += [
                {"method": title} | {"weighted": "-"} | line | {"paper's average": str(PAPER.get(title, "-"))}
                for title, line in cells.items()
            ]
        shown = pd.DataFrame(lines)
        last = ["average", "weighted", "paper's average"]
        shown = shown[[column for column in shown if column not in last] + last]
        learned = {method: own for method, own in by_method.items() if own["runs"].iloc[0]}
        tables += [
            (f"{tasks}: test accuracies in percent.", shown),
            (
                "What learning took.",
                pd.DataFrame([{"method": method} | cost_line(own) for method, own in learned.items()]),
            ),
        ]
    return tables


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """The averages over tasks, as bars, for the first set of tasks."""
    part = frame[frame["tasks"] == frame["tasks"].iloc[0]]
    one_model = part[part["preference"] != "priority"]
    averages = {m: own["metric"].mean() * 100 for m, own in split_by(one_model).items()}
    colours = [COLOURS[0] if method.startswith(PARETO) else COLOURS[-1] for method in averages]
    axes = figure.subplots()
    axes.barh(list(averages), list(averages.values()), color=colours)
    axes.invert_yaxis()
    axes.set(xlabel="mean test accuracy over tasks, % (Pareto Merging: equal preference)")
    axes.grid(alpha=0.3, axis="x")


def notes(bench: Bench) -> list[str]:
    """How the methods were made, and the paper's tasks."""
    del bench
    return [
        STEERED,
        (
            "AdaMerging is layer-wise, with Pareto Merging's steps and images. As its paper has it, it "
            "minimises entropies alone; balanced, what Pareto Merging minimises. '++' stands for task "
            "vectors that TIES trimmed to 20 %. All other baselines are the product's, in their default "
            "settings."
        ),
        (
            f"'{PAPERS_WAY}' has its β_norm = {MERGES['pareto_merging']().settings.beta_norm:g}, no balance, and "
            "preferences drawn uniformly. Data-free, no image is used: the objectives are the weights' distances "
            "from each task's own aim."
        ),
        (
            "The paper's averages are over eight other tasks (CLIP ViT-B/32); that of priority is from its "
            "reviews, where equal preference has 84.9. Its traditional multi-task learning (88.9) needs "
            "labels and isn't redone."
        ),
    ]


TABLE = experiment(
    title="Table 4: eight models, Pareto Merging against every baseline",
    sets=first(8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
