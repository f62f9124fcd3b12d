"""How metrics and coefficients are written on axes and in hovers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from mapmerge_core.tasks.metric import Metric


def shown(values: ArrayLike, metric: Metric) -> NDArray[np.float64]:
    """``values`` of ``metric`` in the unit in which people see them (percent for shares)."""
    array = np.asarray(values, dtype=np.float64)
    return array * 100.0 if metric.is_share else array


def unit(metric: Metric) -> str:
    """The unit's sign: "%" for shares, nothing otherwise."""
    return "%" if metric.is_share else ""


def value_text(value: float, metric: Metric, digits: int = 1) -> str:
    """One value as people read it: "93.4%" or "2.713"."""
    if metric.is_share:
        return f"{100.0 * value:.{digits}f}%"
    return f"{value:.{digits + 2}f}"


def axis_title(task: str, metric: Metric) -> str:
    """An axis title with its unit: "Accuracy on MNIST (%)"."""
    name = metric.name[:1].upper() + metric.name[1:]
    return f"{name} on {task} (%)" if metric.is_share else f"{name} on {task}"


def shared_title(metric: Metric) -> str:
    """The title of an axis that several tasks share: "Accuracy (%)"."""
    name = metric.name[:1].upper() + metric.name[1:]
    return f"{name} (%)" if metric.is_share else name


def hover_texts(
    C: NDArray[np.float64], values: NDArray[np.float64], tasks: Sequence[str], metrics: Sequence[Metric]
) -> list[str]:
    """One hover per row: each task's metric with its coefficient.

    Args:
        C: Coefficients, n x N, in the tasks' order.
        values: Metrics, n x N; NaN where there is none.
        tasks: N names.
        metrics: N metrics.
    """
    texts = []
    for c, row in zip(C, values, strict=True):
        lines = [
            f"<b>{task}</b>  {'–' if np.isnan(value) else value_text(value, metric)}  (c = {coefficient:.3f})"
            for task, value, metric, coefficient in zip(tasks, row, metrics, c, strict=True)
        ]
        texts.append("<br>".join(lines))
    return texts
