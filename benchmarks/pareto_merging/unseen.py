"""Tasks that no model was fine-tuned for: the surest of 30 sampled models (Tables 5 and 6)."""

from __future__ import annotations

from functools import partial
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
    Experiment,
    adamergings,
    first,
    split_by,
)
from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.unlabelled import entropies
from mapmerge_core.merges._one_shot import ties
from mapmerge_core.weights.vectors.streamed import in_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

    from benchmarks.pareto_merging.lab import Lab
    from mapmerge_core.search.links import Array
    from mapmerge_core.weights.vectors.layout import StateDict

N_SAMPLED = 30
TIES, FRONT = "TIES", "MAP's front"
PAPER = (
    {
        ARITHMETIC: 61.7,
        TIES: 59.6,
        ADAMERGING: 70.0,
        f"{ADAMERGING}++": 68.7,
        PARETO: 72.5,
        f"{PARETO}++": 74.3,
    },
    {
        ARITHMETIC: 51.1,
        TIES: 53.9,
        ADAMERGING: 55.5,
        f"{ADAMERGING}++": 58.5,
        PARETO: 57.7,
        f"{PARETO}++": 58.9,
    },
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


def n_evaluations(lab: Lab, n_tasks: int) -> int:
    """For each split the trainings, MAP's points, and the models that are measured on the tasks held out."""
    n_held = 2 if n_tasks > 3 else 1
    n_merged = n_tasks - n_held
    measured = n_held * (3 * N_SAMPLED + 7)
    return 2 * (lab.worth(n_merged, 6) + n_merged * lab.bench.budget(n_merged) + measured)


def rows(lab: Lab, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Every method's accuracy on the tasks that are held out, of the test split."""
    found = []
    for number, held in enumerate(splits(names)):
        merged = tuple(name for name in names if name not in held)
        for method, values, chosen in _measured(lab, names, merged, held, seed):
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
    lab: Lab, names: tuple[str, ...], merged: tuple[str, ...], held: tuple[str, ...], seed: int
) -> list[tuple[str, Array, list[int]]]:
    """Methods with the accuracies of their models (m x the tasks held out) and the model chosen for each."""
    everything = lab.study(names)
    only = [0] * len(held)
    # Task vectors of the tasks held out have the coefficient 0.
    padding = np.eye(len(names))[[name in merged for name in names]]
    plain = np.vstack([np.zeros(len(merged)), np.full(len(merged), LAMBDA)]) @ padding
    values = lab.bench.measure(everything, plain, "test", held)
    found = [(PRETRAINED, values[:1], only), (ARITHMETIC, values[1:], only)]
    weights = ties(in_memory(lab.bench.evaluator(lab.study(merged)).exported_vectors))
    outcomes = dict(lab.bench.evaluator(everything).outcomes_of(weights, held, "test"))
    lab.bench.counter.advance(len(held))
    found.append((TIES, np.array([[outcomes[task].value for task in held]]), only))
    for trimmed, suffix in ((False, ""), (True, "++")):
        for method, learned in adamergings(lab, merged, seed, trimmed=trimmed).items():
            gammas = np.array([learned.recipe.gamma])
            values = lab.measure(learned, gammas, held, among=names)
            found.append((method.replace(ADAMERGING, ADAMERGING + suffix), values, only))
        learned = lab.pareto(merged, seed, trimmed=trimmed)
        gammas = np.random.default_rng(seed).dirichlet(np.ones(len(merged)), N_SAMPLED)
        make = lab.pareto_set(learned).merge
        chosen = _surest(lab, names, held, [partial(make, gamma) for gamma in gammas])
        found.append((PARETO + suffix, lab.measure(learned, gammas, held, among=names), chosen))
    study = lab.study(merged)
    C = lab.bench.design(len(merged), lab.bench.budget(len(merged)), seed)
    Y = lab.bench.measure(study, C)
    front = lab.bench.front(study, C, lab.bench.fit(study, C, Y), seed).c
    sampled = front[np.sort(np.random.default_rng(seed).permutation(len(front))[:N_SAMPLED])] @ padding
    chosen = _surest(lab, names, held, list(sampled))
    found.append((FRONT, lab.bench.measure(everything, sampled, "test", held), chosen))
    return found


def _surest(
    lab: Lab,
    names: Sequence[str],
    held: Sequence[str],
    models: Sequence[Array | Callable[[], StateDict]],
) -> list[int]:
    """For each task held out the model whose predictions for its validation images have the least entropy."""
    study = lab.study(names)
    evaluator = lab.bench.evaluator(study)
    sources = {task.name: task.data for task in study.spec.tasks}
    found = []
    for name in held:
        source = sources[name]
        if source is None:
            raise MapMergeError(f"'{name}' has no images of its own: choose other tasks.")
        found.append(int(entropies(evaluator, source, models)[0].argmin()))
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
            f"Table {5 + number}: merged of {', '.join(merged)}; test accuracies in percent of the tasks "
            "held out."
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


def notes(lab: Lab) -> list[str]:
    """How models were chosen."""
    return [
        (
            f"{PARETO} and {PARETO}++: of {N_SAMPLED} models for preferences drawn uniformly from the "
            "simplex the one with the least mean entropy on the task's validation images, without labels. "
            f"MAP's front likewise, {N_SAMPLED} of its rows at random; MAP had "
            + (f"{lab.bench.map_points} points." if lab.bench.map_points else "its paper's points.")
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


EXPERIMENT = Experiment(
    title="Tables 5 and 6: unseen tasks",
    sets=first(8),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
