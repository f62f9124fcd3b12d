"""What an experiment is, and what most of them share: rows of measured models, and what is said of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.machine import described
from benchmarks.paper.table import COLOURS, Table, mean_std
from benchmarks.pareto_merging.preferences import priority
from mapmerge_core.errors import MapMergeError
from mapmerge_core.search.indicators import hypervolume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.paper.bench import Bench, Learned
    from benchmarks.paper.models import Models
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.studies.store import Study

PARETO, ADAMERGING, BALANCED = "Pareto Merging", "AdaMerging", "AdaMerging, balanced"
ARITHMETIC, PRETRAINED, INDIVIDUAL = "Task arithmetic, 0.3", "Pre-trained", "Individual models"
EQUAL = "Pareto Merging, equal preference"
ADA_PREFERENCE, TA_PREFERENCE = "AdaMerging + preference", "Task arithmetic + preference"
FRONTS = (PARETO, ADA_PREFERENCE, TA_PREFERENCE)
STYLES = dict(
    zip(
        (TA_PREFERENCE, ADA_PREFERENCE, PARETO, ADAMERGING, BALANCED, ARITHMETIC, INDIVIDUAL, EQUAL),
        zip((*COLOURS[2::-1], *COLOURS[3:]), "s^oXPDp*", strict=True),
        strict=True,
    )
)
"""Colours and markers of figures, in the order in which they are drawn."""
LAMBDA = 0.3
"""What every λ starts from, and task arithmetic's coefficient."""


def experiment(*, notes: Callable[[Bench], list[str]], **fields: Any) -> Table:  # noqa: ANN401 - `Table`'s own
    """Return one of the paper's tables or figures, whose notes say how everything was trained."""
    return Table(notes=lambda bench: [*notes(bench), *_how(bench)], seeds=(0,), store="pareto", **fields)


def first(n_tasks: int) -> Callable[[Models], list[tuple[str, ...]]]:
    """An experiment's usual set: the first n tasks, or all where there are fewer."""
    return lambda models: [models.first(min(n_tasks, len(models.names)))]


def check_number(names: Sequence[str], n_tasks: int, what: str) -> None:
    """Refuses sets of tasks that an experiment isn't about.

    Raises:
        MapMergeError: There are more or fewer than ``n_tasks``.
    """
    if len(names) != n_tasks:
        raise MapMergeError(f"{what} merges {n_tasks} models, not {len(names)}: choose them with --tasks.")


def equal(n_tasks: int) -> Array:
    """The equal preference, ``1 x K``."""
    return np.full((1, n_tasks), 1 / n_tasks)


def priorities(n_tasks: int) -> Array:
    """For each task the preference with half of the weight on it, the rest shared (``K x K``)."""
    return np.array([priority(n_tasks, k) for k in range(n_tasks)])


def model_rows(
    names: Sequence[str],
    seed: int,
    method: str,
    values: Array,
    gammas: Array | None = None,
    learned: Sequence[Learned] = (),
    tasks: Sequence[str] | None = None,
    **more: Any,  # noqa: ANN401 - further columns
) -> list[dict[str, Any]]:
    """A row for each model and task.

    Args:
        names: The tasks that were merged.
        seed: The seed.
        method: What made the models.
        values: Their metrics, ``m x T``.
        gammas: The preference of each (``m x K``); none where no preference was asked.
        learned: The trainings that they took.
        tasks: What they were measured on, where that isn't ``names``.
        more: Further columns.
    """
    cost = {
        "runs": len(learned),
        "seconds": sum(each.seconds for each in learned),
        "extra": learned[0].n_extra if learned else 0,
    }
    rows = []
    for number, measured in enumerate(values):
        for k, task in enumerate(tasks or names):
            rows.append(
                {"N": len(names), "tasks": " + ".join(names), "seed": seed, "method": method}
                | more
                | {
                    "model": number,
                    "task": task,
                    "weight": np.nan if gammas is None else gammas[number, k],
                    "metric": measured[k],
                }
                | cost
            )
    return rows


def single_rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """The models without a preference that figures show as points, measured on the test split.

    Individual models are measured on all tasks where these are two or three, otherwise on their own.
    """
    n = len(names)
    study = bench.study(names)
    if n <= 3:
        rows = model_rows(names, seed, INDIVIDUAL, bench.measure(study, np.eye(n), "test"), np.eye(n))
    else:
        rows = individual_rows(bench, names, seed)
    values = bench.measure(study, np.vstack([np.zeros(n), np.full(n, LAMBDA)]), "test")
    for number, method in enumerate((PRETRAINED, ARITHMETIC)):
        rows += model_rows(names, seed, method, values[[number]])
    for method, learned in adamergings(bench, study, seed).items():
        rows += model_rows(names, seed, method, bench.values(learned, learned.default), learned=[learned])
    return rows


def individual_rows(bench: Bench, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Each task's own fine-tuned model on that task."""
    n, study = len(names), bench.study(names)
    own = [bench.measure(study, np.eye(n)[[k]], "test", [name]) for k, name in enumerate(names)]
    return model_rows(names, seed, INDIVIDUAL, np.hstack(own), np.ones((1, n)))


def steered_rows(
    bench: Bench, names: tuple[str, ...], seed: int, method: str, learned: Learned
) -> list[dict[str, Any]]:
    """A learned set's model for equal preference, and those for a priority on each task."""
    n = len(names)
    found = []
    for preference, gammas in (("equal", equal(n)), ("priority", priorities(n))):
        values = bench.values(learned, gammas)
        found += model_rows(names, seed, method, values, gammas, [learned], preference=preference)
    return found


def steered_lines(part: pd.DataFrame) -> dict[str, dict[str, str]]:
    """For equal preference and for priority (each task by the model that has it) the metrics and averages.

    Args:
        part: The rows of `steered_rows`.
    """
    equal_rows, priority_rows = (part[part["preference"] == each] for each in ("equal", "priority"))
    names = list(dict.fromkeys(part["task"]))
    own = priority_rows["task"] == priority_rows["model"].map(dict(enumerate(names)))
    return {
        "equal": metrics_text(equal_rows) | {"weighted": mean_std(weighted(equal_rows), 100)},
        "priority": metrics_text(priority_rows[own]) | {"weighted": mean_std(weighted(priority_rows), 100)},
    }


def n_single(bench: Bench, n_tasks: int) -> int:
    """What `single_rows` takes."""
    return n_tasks * (min(n_tasks, 3) + 2) + 2 * (bench.worth(n_tasks) + n_tasks)


def adamergings(bench: Bench, study: Study, seed: int, *, trimmed: bool = False) -> dict[str, Learned]:
    """AdaMerging as it is, and with the balance of our trainings where they have one."""
    found = {ADAMERGING: bench.adamerging(study, seed, trimmed=trimmed, balance=0.0)}
    if bench.training(len(study.config.models)).balance:
        found[BALANCED] = bench.adamerging(study, seed, trimmed=trimmed)
    return found


def own_value(bench: Bench, learned: Learned) -> Array:
    """The metrics (K,) of an AdaMerging's one model."""
    return np.asarray(bench.values(learned, learned.default)[0])


def by_model(frame: pd.DataFrame) -> pd.DataFrame:
    """A line for each method, seed and model, the metrics of the tasks in columns in their order."""
    table = frame.pivot_table(index=["method", "seed", "model"], columns="task", values="metric", sort=False)
    return table[list(dict.fromkeys(frame["task"]))]


def weighted(part: pd.DataFrame) -> pd.Series[float]:
    """The preference-weighted sum of one method's metrics, mean over its models: a value for each seed."""
    products = part.assign(product=part["metric"] * part["weight"])
    return products.groupby(["seed", "model"])["product"].sum().groupby("seed").mean()


def front_line(part: pd.DataFrame, pretrained: pd.DataFrame) -> dict[str, str]:
    """What is said of one method's models for a grid of preferences; means ± deviations over seeds.

    Args:
        part: The method's rows.
        pretrained: Those of the pre-trained model, beyond which the hypervolume is measured.
    """
    corners = by_model(pretrained).droplevel(["method", "model"])
    volumes = [
        hypervolume(table.to_numpy(), corners.loc[seed].to_numpy(), [True] * table.shape[1])
        for seed, table in by_model(part).groupby(level="seed")
    ]
    line = {"weighted": mean_std(weighted(part), 100), "hypervolume": mean_std(pd.Series(volumes), 100)}
    for task, rows in part[part["weight"] == 1].groupby("task", sort=False):
        line[f"{task} alone"] = mean_std(rows["metric"], 100)
    return line


def cost_line(part: pd.DataFrame) -> dict[str, str]:
    """What one method's trainings took, mean over seeds, and the parameters that they add."""
    costs = part.groupby("seed")[["runs", "seconds", "extra"]].first().mean()
    runs = int(costs["runs"])
    return {
        "runs": str(runs),
        "training time": seconds_text(costs["seconds"]) if runs else "none",
        "extra parameters": f"{int(costs['extra']):,}",
    }


STEERED = (
    "Priority: for each task the model with half of the weight on it and the rest shared, and that task's "
    "accuracy by it; 'weighted' is the preference-weighted accuracy over all tasks, mean over the models."
)
FRONT = (
    "'weighted' is the preference-weighted accuracy, mean over the preferences; 'hypervolume' what the "
    "models span beyond the pre-trained one's accuracies, in hundredths; 'alone' the accuracy with all of "
    "the weight on one task."
)


def metrics_text(part: pd.DataFrame) -> dict[str, str]:
    """For each task the mean ± deviation over seeds of a single model's metric, and their average."""
    cells = {str(task): mean_std(rows["metric"], 100) for task, rows in part.groupby("task", sort=False)}
    return cells | {"average": mean_std(part.groupby("seed")["metric"].mean(), 100)}


def single_lines(by_method: Mapping[str, pd.DataFrame], methods: Sequence[str]) -> list[dict[str, str]]:
    """A line with `metrics_text` for each method that there is; individual models with their own tasks."""
    parts = {method: by_method[method] for method in methods if method in by_method}
    if INDIVIDUAL in parts:
        parts[INDIVIDUAL] = parts[INDIVIDUAL][parts[INDIVIDUAL]["weight"] == 1]
    return [{"method": method} | metrics_text(part) for method, part in parts.items()]


def split_by(frame: pd.DataFrame, column: str = "method") -> dict[str, pd.DataFrame]:
    """A table's parts by what a column says, in its order."""
    return {str(name): part for name, part in frame.groupby(column, sort=False)}


def seconds_text(seconds: float) -> str:
    """Such as "34 s" or "5.2 min"."""
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def scatter(axes: Axes, table: pd.DataFrame, pair: Sequence[str], methods: Sequence[str]) -> None:
    """Models in the plane of two tasks, of the first seed.

    Args:
        axes: Where.
        table: As `by_model` gives it.
        pair: The two tasks.
        methods: What to draw, of `STYLES`; those that there aren't are left out.
    """
    table = table.xs(table.index.get_level_values("seed")[0], level="seed")
    for method in methods:
        if method in table.index.get_level_values("method"):
            part = 100 * table.loc[[method]]
            colour, marker = STYLES[method]
            size = 26 if method in FRONTS else 70
            axes.scatter(part[pair[0]], part[pair[1]], size, color=colour, marker=marker, label=method)
    axes.set(xlabel=f"{pair[0]}, %", ylabel=f"{pair[1]}, %")
    axes.grid(alpha=0.3)


def _how(bench: Bench) -> list[str]:
    """How everything was trained and measured, and on what."""
    training = bench.training(2)
    return [
        (
            f"{training.steps:,} steps of {training.batch_size} unlabelled images of each task's validation "
            f"split, Adam's rate {training.lr:g}, rank {training.rank}, μ = {training.mu:g}, β_cos = "
            f"{training.beta_cos:g}, balance {training.balance:g}; β_norm "
            + ", ".join(f"{bench.training(n).beta_norm:g} for {n} tasks" for n in (2, 3, 8))
            + ". Accuracies are of the test split, in float32; ± is the standard deviation over seeds."
        ),
        f"Trained and measured on {described(bench.device)}.",
    ]
