"""Eight models, 30 sampled preferences, against AdaMerging and task arithmetic (Table 3 and Figure 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.paper.table import Tables, mean_std
from benchmarks.pareto_merging.experiment import (
    ADAMERGING,
    ARITHMETIC,
    BALANCED,
    EQUAL,
    PARETO,
    by_model,
    cost_line,
    equal,
    experiment,
    first,
    metrics_text,
    model_rows,
    n_single,
    scatter,
    single_lines,
    single_rows,
    split_by,
    weighted,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench

N_SAMPLED = 30
RANDOM = ("Pareto Merging, random preference 1", "Pareto Merging, random preference 2")
SINGLES = (ARITHMETIC, ADAMERGING, BALANCED)


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """The training, its models, and the single ones."""
    return bench.worth(n_tasks) + (N_SAMPLED + 1) * n_tasks + n_single(bench, n_tasks)


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """The models for preferences drawn uniformly from the simplex and for the equal one; single models."""
    n = len(names)
    gammas = np.random.default_rng(seed).dirichlet(np.ones(n), N_SAMPLED)
    learned = bench.pareto(bench.study(names), seed)
    found = model_rows(names, seed, PARETO, bench.values(learned, gammas), gammas, [learned])
    found += model_rows(names, seed, EQUAL, bench.values(learned, equal(n)), equal(n), [learned])
    return found + single_rows(bench, names, seed)


def summary(frame: pd.DataFrame) -> Tables:
    """For each set of tasks the paper's table, and by how much the sampled models suit their preferences."""
    tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        by_method = split_by(part)
        sampled = by_method[PARETO]
        lines = single_lines(by_method, SINGLES)
        lines += [
            {"method": title} | metrics_text(sampled[sampled["model"] == number]) for number, title in enumerate(RANDOM)
        ]
        lines.append({"method": EQUAL} | metrics_text(by_method[EQUAL]))
        tables += [
            (f"{tasks}: test accuracies in percent.", pd.DataFrame(lines)),
            ("The random preferences of the first seed, in percent.", _weights(sampled)),
            (
                (
                    f"Means over the {N_SAMPLED} sampled preferences: the preference-weighted accuracy, of "
                    "single models for the same preferences."
                ),
                pd.DataFrame(
                    [{"method": PARETO, "weighted": mean_std(weighted(sampled), 100)} | cost_line(sampled)]
                    + [
                        {"method": m, "weighted": mean_std(_by_theirs(by_method[m], sampled), 100)}
                        | cost_line(by_method[m])
                        for m in (EQUAL, *SINGLES)
                        if m in by_method
                    ]
                ),
            ),
        ]
    return tables


def _weights(sampled: pd.DataFrame) -> pd.DataFrame:
    own = sampled[sampled["seed"] == sampled["seed"].iloc[0]]
    lines = []
    for number, title in enumerate(RANDOM):
        weights = own[own["model"] == number].set_index("task")["weight"]
        lines.append({"preference": title} | {task: f"{100 * share:.1f}" for task, share in weights.items()})
    return pd.DataFrame(lines)


def _by_theirs(single: pd.DataFrame, sampled: pd.DataFrame) -> pd.Series[float]:
    """The weighted sums of one model's metrics with the sampled models' preferences, mean for each seed."""
    joined = sampled.drop(columns="metric").merge(single[["seed", "task", "metric"]], on=["seed", "task"])
    return weighted(joined)


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """As Figure 5: the models in the planes of two tasks each."""
    part = frame[frame["tasks"] == frame["tasks"].iloc[0]]
    table, names = by_model(part), list(dict.fromkeys(part["task"]))
    # An odd number's last task is drawn with the one before it once more.
    starts = [min(k, len(names) - 2) for k in range(0, len(names), 2)]
    pairs = [(names[k], names[k + 1]) for k in starts]
    figure.set_size_inches(max(3.4 * len(pairs), 9), 4.4)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, pair in zip(panels, pairs, strict=True):
        scatter(axes, table, pair, (PARETO, EQUAL, ADAMERGING, BALANCED, ARITHMETIC))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def notes(bench: Bench) -> list[str]:
    """What the paper has."""
    del bench
    return [
        (
            "The paper's averages (eight other tasks, CLIP ViT-B/32): task arithmetic 69.1, AdaMerging 80.1, "
            "Pareto Merging with two random preferences 83.2 and 84.7, with equal preference 84.8."
        ),
        (
            "Individual and pre-trained models are in the CSV. 'AdaMerging' minimises entropies alone, as "
            "its paper has it; balanced, what Pareto Merging minimises."
        ),
    ]


TABLE = experiment(
    title="Table 3 and Figure 5: eight models, 30 sampled preferences",
    sets=first(8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
