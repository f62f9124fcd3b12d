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
    PARETO,
    PRETRAINED,
    STEERED,
    Experiment,
    adamergings,
    cost_line,
    first,
    individual_rows,
    metrics_text,
    model_rows,
    own_value,
    split_by,
    steered_lines,
    steered_rows,
)
from benchmarks.pareto_merging.lab import Recipe
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.studies.runs.baselines import make_baseline, measure_baseline, offered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.pareto_merging.lab import Lab

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


def n_evaluations(lab: Lab, n_tasks: int) -> int:
    """The trainings and their models, and the baselines."""
    models = 4 * (1 + n_tasks) + 4 + 2
    return lab.worth(n_tasks, 8) + n_tasks * (models + BASELINES)


def rows(lab: Lab, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Every baseline and all kinds of Pareto Merging, measured on the test split."""
    n, study = len(names), lab.study(names)
    found = individual_rows(lab, names, seed)
    found += model_rows(names, seed, PRETRAINED, lab.bench.measure(study, np.zeros((1, n)), "test"))
    # AdaMerging is trained below, with as many steps as Pareto Merging.
    kinds = [kind for kind in offered(study.spec) if not kind.name.startswith("adamerging")]
    for number, kind in enumerate(kinds):
        store, evaluator = lab.bench.store, lab.bench.evaluator(study)
        made = make_baseline(store, study, kind.name, evaluator)
        measured = measure_baseline(store, made.id, evaluator)
        found += model_rows(names, seed, kind.title, np.array([[measured[name] for name in names]]))
        lab.bench.counter.show(n * BASELINES * (number + 1) // len(kinds))
    lab.bench.counter.advance(n * BASELINES)
    for trimmed, suffix in ((False, ""), (True, "++")):
        for method, learned in adamergings(lab, names, seed, trimmed=trimmed).items():
            title = method.replace(ADAMERGING, ADAMERGING + suffix)
            found += model_rows(names, seed, title, own_value(lab, learned)[None], learned=[learned])
        learned = lab.pareto(names, seed, trimmed=trimmed)
        found += steered_rows(lab, names, seed, PARETO + suffix, learned)
    learned = lab.learn(Recipe(names, Training(steps=lab.steps), seed))
    found += steered_rows(lab, names, seed, PAPERS_WAY, learned)
    learned = lab.pareto(names, seed, data_free=True)
    return found + steered_rows(lab, names, seed, DATA_FREE, learned)


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


def notes(lab: Lab) -> list[str]:
    """How the methods were made, and the paper's tasks."""
    del lab
    return [
        STEERED,
        (
            "AdaMerging is layer-wise, with Pareto Merging's steps and images. As its paper has it, it "
            "minimises entropies alone; balanced, what Pareto Merging minimises. '++' stands for task "
            "vectors that TIES trimmed to 20 %. All other baselines are the product's, in their default "
            "settings."
        ),
        (
            f"'{PAPERS_WAY}' has its β_norm = {Training().beta_norm:g}, no balance, and preferences drawn "
            "uniformly. Data-free, no image is used: the objectives are the weights' distances from each "
            "task's own aim."
        ),
        (
            "The paper's averages are over eight other tasks (CLIP ViT-B/32); that of priority is from its "
            "reviews, where equal preference has 84.9. Its traditional multi-task learning (88.9) needs "
            "labels and isn't redone."
        ),
    ]


EXPERIMENT = Experiment(
    title="Table 4: eight models, Pareto Merging against every baseline",
    sets=first(8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
