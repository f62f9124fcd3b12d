"""Table 5: nested against direct merging of four models under rules (MAP, Appendix C.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.paper.bench import Bench, maximize
from benchmarks.paper.rule_rows import measured_shares, quoted, single_values
from benchmarks.paper.table import COLOURS, Table, Tables, first_sets, mean_std
from mapmerge_core.methods.nested import PAPER_POINTS, NestedMAP
from mapmerge_core.search.rules import apply_rule, parse_rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mapmerge_core.search.fronts import Front
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.surrogates.spaces import SpaceSurrogates
    from mapmerge_core.studies.store import Study

PAIRS, FINAL = 0.70, 0.65
"""Shares of the single-task models that all tasks must keep in the pairs, and in the end."""
NESTED, DIRECT = "Nested merging", "All at once"


def n_evaluations(bench: Bench, n_tasks: int) -> int:
    """For nested MAP, for MAP on all tasks, and both methods' models for every task."""
    return n_tasks * (2 * PAPER_POINTS + bench.budget(n_tasks)) + 2 * n_tasks**2


def rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """For each task the model that maximises it under the rule, by both methods, on the test split."""
    study, n = bench.study(names), len(names)
    pairs, final = bench.thresholds or (PAIRS, FINAL)
    nested, n_asked = _nested(bench, study, pairs, seed)
    single = single_values(bench, study)
    tree = nested.tree
    ends = np.vstack([tree.left.c, tree.right.c])
    points, nested_meets = _choose(study, final, tree.front, tree.surrogates, single)
    C = bench.design(study, bench.budget(n), seed)
    Y = bench.measure(study, C)
    surrogates = bench.fit(study, C, Y)
    front = bench.front(study, C, surrogates, seed)
    models, direct_meets = _choose(study, final, front, surrogates, single)
    found = []
    for method, chosen, meets, evaluations in (
        (NESTED, points @ ends, nested_meets, n_asked),
        (DIRECT, models, direct_meets, Y.size),
    ):
        values, least = measured_shares(bench, study, chosen)
        found += [
            {
                "N": n,
                "tasks": " + ".join(names),
                "seed": seed,
                "method": method,
                "evaluations": evaluations,
                "threshold": final,
                "task": task,
                "predicted to meet": meets[k],
                "metric": values[k, k],
                "least share": least[k],
            }
            for k, task in enumerate(names)
        ]
    return found


def _nested(bench: Bench, study: Study, threshold: float, seed: int) -> tuple[NestedMAP, int]:
    """Nested MAP, told everything, pairing neighbours; and how many (model, task) pairs it asked for."""
    names = [task.name for task in study.config.tasks]
    objective = " + ".join(map(quoted, names[::2]))
    rule = f"all >= {100 * threshold:g}% of single, maximize {objective}"
    run = bench.run(len(names), "nested", points=PAPER_POINTS, seed=seed, rule=rule, order=names)
    method = run.make_method(study.config)
    assert isinstance(method, NestedMAP)
    asked = 0
    while (batch := method.ask()) is not None:
        values = bench.measure(study, batch.X, tasks=[names[k] for k in batch.objectives])
        method.tell(batch, values)
        asked += values.size
    return method, asked


def _choose(
    study: Study, threshold: float, front: Front, surrogates: SpaceSurrogates, single: Array
) -> tuple[Array, list[bool]]:
    """For each task what its rule leads to (coefficients in rows), and whether that meets it as predicted."""
    names = [task.name for task in study.config.tasks]
    chosen, meets = [], []
    for name in names:
        rule = parse_rule(f"all >= {100 * threshold:g}% of single, maximize {quoted(name)}", names)
        result = apply_rule(rule, front, surrogates, single=single, maximize=maximize(study))
        chosen.append(result.x)
        meets.append(result.feasible)
    return np.array(chosen), meets


def summary(frame: pd.DataFrame) -> Tables:
    """A line for each method, a column for each task."""
    tables = []
    for tasks, part in frame.groupby("tasks", sort=False):
        lines = []
        for method, own in part.groupby("method", sort=False):
            cells = {task: mean_std(rows["metric"], 100) for task, rows in own.groupby("task", sort=False)}
            least = own.groupby("seed")["least share"].min()
            lines.append(
                {"method": method, "evaluations": own["evaluations"].iloc[0], "seeds": own["seed"].nunique()}
                | cells
                | {
                    "least share of single %": mean_std(least, 100),
                    "predicted to meet": f"{own['predicted to meet'].sum()} of {len(own)}",
                }
            )
        caption = (
            f"{tasks}: highest test accuracy of each task in percent while all keep "
            f"{100 * part['threshold'].iloc[0]:g} % of their single-task models; mean ± standard deviation "
            "over seeds."
        )
        tables.append((caption, pd.DataFrame(lines)))
    return tables


def draw(frame: pd.DataFrame, figure: Figure) -> None:
    """Bars, two for each task."""
    axes = figure.subplots()
    tasks = list(frame["task"].unique())
    for index, (method, part) in enumerate(frame.groupby("method", sort=False)):
        groups = part.groupby("task")["metric"]
        mean, error = groups.mean()[tasks] * 100, groups.std().fillna(0)[tasks] * 100
        places = np.arange(len(tasks)) + 0.4 * index - 0.2
        axes.bar(places, mean, 0.38, yerr=error, color=COLOURS[index], capsize=3, label=method)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set(ylabel="test accuracy, %")
    figure.legend(frameon=False, loc="outside upper center", ncols=2)


def notes(bench: Bench) -> list[str]:
    """What the rules were."""
    pairs, final = bench.thresholds or (PAIRS, FINAL)
    return [
        (
            f"Nested: {PAPER_POINTS} points a pair; the first two tasks and the next two are merged under "
            f"'all >= {100 * pairs:g}% of single', each pair maximising its first task; then the front of "
            f"the two is searched under 'all >= {100 * final:g}% of single'."
        ),
        "All at once: MAP on all tasks with the paper's points, searched under the same final rule.",
        (
            "'Predicted to meet' counts models that meet the rule as the surrogates see it, the others are "
            "the nearest; 'least share' is the lowest share of its single-task model that any task of any "
            "chosen model kept on the test split, where a rule can be missed by a little."
        ),
    ]


TABLE = Table(
    title="Table 5: nested against direct merging under rules (Appendix C.3)",
    sets=first_sets(4, 4),
    n_evaluations=n_evaluations,
    rows=rows,
    summary=summary,
    draw=draw,
    notes=notes,
)
