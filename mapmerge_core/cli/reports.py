"""How fits, fronts and models are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.cli.output import metric_text, number, print_table, say

if TYPE_CHECKING:
    from mapmerge_core.search.fronts import JointFront
    from mapmerge_core.studies.analysis.analysis import StudyAnalysis

SHOWN_ROWS = 20


def by_name(analysis: StudyAnalysis, values: np.ndarray) -> dict[str, float]:
    """Return a value for each objective by its name."""
    return dict(zip(analysis.names, np.asarray(values).tolist(), strict=True))


def front_values(front: JointFront) -> dict[str, Any]:
    """Return a front for JSON: each row's merge and point, and its predicted objectives."""
    return {"size": len(front), "merge": front.keys, "x": front.x, "predicted": front.predicted}


def say_fit(analysis: StudyAnalysis) -> None:
    """Print how well each merge's surrogates fit, and the models that merging starts from."""
    fitted = [merge for merge in analysis.merges if merge.surrogates is not None]
    headers = ("objective", *(f"R² {merge.title}" for merge in fitted), "pre-trained", "own model")
    rows = []
    for k, objective in enumerate(analysis.objectives):
        metric = objective.metric
        rows.append(
            (
                objective.name,
                *(number(merge.r2[k]) for merge in fitted),
                metric_text(analysis.pretrained[k], metric),
                metric_text(analysis.single[k], metric),
            )
        )
    print_table(headers, rows)


def say_analysis(analysis: StudyAnalysis) -> None:
    """Print the fit and the front."""
    front = analysis.fitted_front
    say_fit(analysis)
    if front.is_single_point:
        say("\nOne model is best at everything: there is no trade-off to choose from.")
    else:
        listed = "" if len(front) <= SHOWN_ROWS else f", {SHOWN_ROWS} of them here and all with --json"
        say(f"\nThe front has {len(front)} models{listed} (merge and point, then predicted objectives):")
    say_models(analysis, front.keys, front.x, front.predicted)


def say_models(
    analysis: StudyAnalysis, merge_ids: Sequence[object], points: Sequence[np.ndarray], values: np.ndarray
) -> None:
    """Print models, at most `SHOWN_ROWS` of them, with their objectives."""
    titles = {merge.merge.id: merge.title for merge in analysis.merges}
    shown = np.unique(np.linspace(0, len(points) - 1, SHOWN_ROWS).round().astype(int))
    metrics = [objective.metric for objective in analysis.objectives]
    print_table(
        ("merge", "point", *analysis.names),
        [(titles[merge_ids[i]], point_text(points[i]), *map(metric_text, values[i], metrics)) for i in shown],
        left=2,
    )


def point_text(x: np.ndarray) -> str:
    """Write a point's coordinates."""
    return " ".join(f"{value:.3f}" for value in x) or "-"


def say_model(analysis: StudyAnalysis, merge_id: int, x: np.ndarray, measured: Mapping[str, float]) -> None:
    """Print one model: its point, then its objectives as predicted and as measured."""
    merge = analysis.merge(merge_id)
    say(f"{merge.title} at {point_values(merge.merge.space.names, x) or 'its one point'}")
    predicted, lower, upper = analysis.predict(merge_id, x)
    print_table(
        ("objective", "predicted", "90% interval", "measured"),
        [
            (
                objective.name,
                metric_text(predicted[k], objective.metric),
                f"{metric_text(lower[k], objective.metric)} to {metric_text(upper[k], objective.metric)}",
                metric_text(measured.get(objective.name), objective.metric),
            )
            for k, objective in enumerate(analysis.objectives)
        ],
    )


def point_values(names: Sequence[str], x: np.ndarray) -> str:
    """Write a point with its coordinates' names."""
    return ", ".join(f"{name} {value:.3f}" for name, value in zip(names, x, strict=True))
