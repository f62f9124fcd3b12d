"""Tasks that no model was fine-tuned for: the surest of 30 sampled models (Tables 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.paper.table import COLOURS, Tables, mean_std
from benchmarks.pareto_merging.experiment import (
    ADAMERGING,
    ARITHMETIC,
    LAMBDA,
    PARETO,
    PRETRAINED,
    adamergings,
    experiment,
    first,
    split_by,
)
from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.runs.preparing import prepare_merge
from mapmerge_core.tasks.unlabelled import entropies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.bench import Bench
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.studies.store import StoredMerge, Study

N_SAMPLED = 30
TIES, FRONT = "TIES", "MAP's front"
PAPER = (
    {ARITHMETIC: 61.7, TIES: 59.6, ADAMERGING: 70.0, f"{ADAMERGING}++": 68.7, PARETO: 72.5, f"{PARETO}++": 74.3},
    {ARITHMETIC: 51.1, TIES: 53.9, ADAMERGING: 55.5, f"{ADAMERGING}++": 58.5, PARETO: 57.7, f"{PARETO}++": 58.9},
)


def splits(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The tasks that are held out in each of the two splits: two of them, one where there are three in all.

    Raises:
        MapMergeError: There are fewer than three.
    """
    n = len(names)
    if n < 3:
        raise MapMergeError(f"Two tasks are merged and others held out: choose three or more, not {n}.")
    if n == 3:
        return [names[:1], names[2:]]
    return [(names[0], names[n // 2]), (names[n // 4], names[-1])]


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """For each split the trainings, MAP's points, and the models that are measured on the tasks held out."""
    n_held = 2 if n_tasks > 3 else 1
    n_merged = n_tasks - n_held
    measured = n_held * (3 * N_SAMPLED + 7)
    return 2 * (bench.worth(n_merged, 6) + n_merged * bench.budget(n_merged) + measured)


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Every method's accuracy on the tasks that are held out, of the test split."""
    found = []
    for number, held in enumerate(splits(names)):
        merged = tuple(name for name in names if name not in held)
        for method, values, chosen in _measured(bench, merged, held, seed):
            found += [
                {
                    "N": len(names),
                    "tasks": " + ".join(names),
                    "seed": seed,
                    "split": number,
                    "method": method,
                    "task": task,
                    "metric": values[chosen[k], k],
                    "mean": values[:, k].mean(),
                    "best": values[:, k].max(),
                    "models": len(values),
                }
                for k, task in enumerate(held)
            ]
    return found


def _measured(
    bench: Bench, merged: tuple[str, ...], held: tuple[str, ...], seed: int
) -> list[tuple[str, Array, list[int]]]:
    """Methods with the accuracies of their models (m x the tasks held out) and the model chosen for each."""
    study, n, only = bench.study(merged, held), len(merged), [0] * len(held)
    values = bench.measure(study, np.vstack([np.zeros(n), np.full(n, LAMBDA)]), "test", held)
    found = [(PRETRAINED, values[:1], only), (ARITHMETIC, values[1:], only)]
    ties = bench.store.merges.add(study.id, "ties", {})
    found.append((TIES, bench.measure(study, ties.space.default[None], "test", held, ties), only))
    for trimmed, suffix in ((False, ""), (True, "++")):
        for method, learned in adamergings(bench, study, seed, trimmed=trimmed).items():
            values = bench.values(learned, learned.default, held)
            found.append((method.replace(ADAMERGING, ADAMERGING + suffix), values, only))
        learned = bench.pareto(study, seed, trimmed=trimmed)
        gammas = np.random.default_rng(seed).dirichlet(np.ones(n), N_SAMPLED)
        chosen = _surest(bench, study, held, learned.merge, gammas)
        found.append((PARETO + suffix, bench.values(learned, gammas, held), chosen))
    C = bench.design(study, bench.budget(n), seed)
    Y = bench.measure(study, C, tasks=merged)
    front = bench.front(study, C, bench.fit(study, C, Y), seed).x
    sampled = front[np.sort(np.random.default_rng(seed).permutation(len(front))[:N_SAMPLED])]
    chosen = _surest(bench, study, held, bench.store.merges.all(study.id)[0], sampled)
    found.append((FRONT, bench.measure(study, sampled, "test", held), chosen))
    return found


def _surest(bench: Bench, study: Study, held: Sequence[str], merge: StoredMerge, X: Array) -> list[int]:
    """Return for each task held out the model whose predictions for its validation images have the least entropy."""
    evaluator = bench.evaluator(study)
    prepared = prepare_merge(bench.store, merge.id, evaluator)
    sources = {task.name: task.data for task in study.config.tasks}
    found = []
    for name in held:
        source = sources[name]
        if source is None:
            raise MapMergeError(f"'{name}' has no images of its own: choose other tasks.")
        found.append(int(entropies(evaluator, source, [(prepared, x) for x in X])[0].argmin()))
    return found


def summary(frame: pd.DataFrame) -> Tables:
    """For each split a line for each method."""
    tables = []
    for (tasks, number), part in frame.groupby(["tasks", "split"], sort=False):
        held = list(dict.fromkeys(part["task"]))
        lines = []
        for method, own in split_by(part).items():
            average = own.groupby("seed")[["metric", "mean", "best"]].mean()
            several = own["models"].max() > 1
            cells = {task: mean_std(own.loc[own["task"] == task, "metric"], 100) for task in held}
            lines.append(
                {"method": method}
                | cells
                | {
                    "average": mean_std(average["metric"], 100),
                    "mean of the sampled": mean_std(average["mean"], 100) if several else "-",
                    "best of the sampled": mean_std(average["best"], 100) if several else "-",
                    "paper's average": str(PAPER[number].get(method, "-")),
                }
            )
        merged = [name for name in str(tasks).split(" + ") if name not in held]
        caption = (
            f"Table {5 + number}: merged of {', '.join(merged)}; test accuracies in percent of the tasks held out."
        )
        tables.append((caption, pd.DataFrame(lines)))
    return tables


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """Bars, a panel for each split of the first set of tasks."""
    frame = frame[frame["tasks"] == frame["tasks"].iloc[0]]
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (_, part) in zip(panels, frame.groupby("split", sort=False), strict=True):
        averages = {method: 100 * own["metric"].mean() for method, own in split_by(part).items()}
        chosen = [method.startswith(PARETO) or method == FRONT for method in averages]
        colours = [COLOURS[0] if yes else COLOURS[-1] for yes in chosen]
        axes.barh(list(averages), list(averages.values()), color=colours)
        axes.set(xlabel=f"mean test accuracy on {' and '.join(dict.fromkeys(part['task']))}, %")
        axes.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()


def notes(bench: Bench) -> list[str]:
    """How models were chosen."""
    return [
        (
            f"{PARETO} and {PARETO}++: of {N_SAMPLED} models for preferences drawn uniformly from the "
            "simplex the one with the least mean entropy on the task's validation images, without labels. "
            f"MAP's front likewise, {N_SAMPLED} of its rows at random; MAP had "
            + (f"{bench.map_points} points." if bench.map_points else "its paper's points.")
        ),
        (
            "'Mean of the sampled' is what a model drawn at random would have, 'best' what labels would "
            "find. Balanced AdaMerging minimises what Pareto Merging minimises."
        ),
        (
            "The paper's averages are over MNIST and EuroSAT, and over RESISC45 and SVHN (CLIP ViT-B/32), "
            "with six other tasks merged."
        ),
    ]


TABLE = experiment(
    title="Tables 5 and 6: unseen tasks",
    sets=first(8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
