"""How fits, fronts and picks are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.cli.output import metric_text, number, print_table, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.studies.analysis.analysis import Analysis
    from mapmerge_core.studies.inputs.checking import SpecCheck
    from mapmerge_core.tasks.metric import Metric

SHOWN_ROWS = 20


def by_task(analysis: Analysis, values: np.ndarray) -> dict[str, float]:
    """A value for each task by its name."""
    return dict(zip(analysis.tasks, values.tolist(), strict=True))


def front_values(analysis: Analysis) -> dict[str, Any]:
    """The study's front for JSON."""
    found = analysis.fitted_front
    return {"size": len(found), "c": found.c, "predicted": found.predicted}


def say_check(check: SpecCheck) -> None:
    """What was guessed of a new study's models and datasets, for a person to check, on standard error."""
    for model in check.models:
        if model.warning:
            sys.stderr.write(f"{model.warning}\n")
        if model.data is None:
            continue
        notes = list(model.data.notes)
        if model.data.columns:
            columns = ", ".join(f"'{column}' as the {what}" for what, column in model.data.columns.items())
            notes.insert(0, f"The columns are {columns}.")
        if model.data.corrupt:
            notes.append(f"Images left out as unreadable: {len(model.data.corrupt)}.")
        for note in notes:
            sys.stderr.write(f"{model.task}: {note}\n")


def say_fit(analysis: Analysis) -> None:
    """How well the surrogates fit, and the models that merging starts from."""
    print_table(
        ("task", "R²", "pre-trained", "single-task"),
        [
            (task, number(r2), metric_text(pretrained, metric), metric_text(single, metric))
            for task, metric, r2, pretrained, single in zip(
                analysis.tasks,
                analysis.metrics,
                analysis.r2,
                analysis.pretrained,
                analysis.single,
                strict=True,
            )
        ],
    )


def say_analysis(analysis: Analysis) -> None:
    """The fit and the front."""
    found = analysis.fitted_front
    say_fit(analysis)
    if found.is_single_point:
        say("\nOne model is best at everything: there is no trade-off to choose from.")
    else:
        listed = "" if len(found) <= SHOWN_ROWS else f", {SHOWN_ROWS} of them here and all with --json"
        say(f"\nThe front has {len(found)} models{listed} (coefficients, then predicted metrics):")
    say_models(analysis.tasks, analysis.metrics, found.c, found.predicted)


def say_models(
    tasks: Sequence[str],
    metrics: Sequence[Metric],
    C: np.ndarray,
    values: np.ndarray,
    *,
    symbol: str = "c",
    most: int = SHOWN_ROWS,
) -> None:
    """Models (``m x N``) with their metrics (``m x K``), at most ``most`` of them."""
    rows = np.unique(np.linspace(0, len(C) - 1, most).round().astype(int))
    print_table(
        (*(f"{symbol} {task}" for task in tasks), *tasks),
        [
            (*map(number, c), *map(metric_text, row, metrics))
            for c, row in zip(C[rows], values[rows], strict=True)
        ],
    )


def say_chosen(
    tasks: Sequence[str],
    metrics: Sequence[Metric],
    point: np.ndarray,
    predictions: tuple[np.ndarray, np.ndarray, np.ndarray],
    measured: Mapping[str, float],
    symbol: str,
) -> None:
    """One model, task by task: its coefficients or preference, predicted metrics and the measured ones."""
    predicted, lower, upper = predictions
    print_table(
        ("task", symbol, "predicted", "90% interval", "measured"),
        [
            (
                task,
                number(point[k]),
                metric_text(predicted[k], metric),
                f"{metric_text(lower[k], metric)} to {metric_text(upper[k], metric)}",
                metric_text(measured.get(task), metric),
            )
            for k, (task, metric) in enumerate(zip(tasks, metrics, strict=True))
        ],
    )


def say_pick(analysis: Analysis, c: np.ndarray, measured: Mapping[str, float]) -> None:
    """One model by its coefficients, task by task."""
    say_chosen(analysis.tasks, analysis.metrics, c, analysis.predict(c), measured, "coefficient")
