"""How metrics and coefficients are written on axes and in hovers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from mapmerge_core.tasks.metric import Metric


@dataclass(frozen=True)
class Notation:
    """How a number is written.

    Attributes:
        factor: What a metric's value is multiplied by before it is shown.
        decimals: Digits after the point.
        unit: The sign after the number, if any.
    """

    factor: float
    decimals: int
    unit: str

    def text(self, shown_value: float) -> str:
        """A value as shown, as people read it: "93.4%" or "2.713"; a dash where there is none."""
        return "–" if np.isnan(shown_value) else f"{shown_value:.{self.decimals}f}{self.unit}"

    def hover(self, variable: str) -> str:
        """One of a trace's variables in a hover template: ``%{y:.1f}%``."""
        return f"%{{{variable}:.{self.decimals}f}}{self.unit}"


Made = Literal["coefficients", "preference"]
"""What a model is made by: coefficients, or the preference that a learned set has it for."""

PERCENT = Notation(100.0, 1, "%")
PLAIN = Notation(1.0, 3, "")


def notation(*metrics: Metric) -> Notation:
    """How a metric is written, or a mean or sum of several: in percent where all are shares."""
    return PERCENT if all(metric.is_share for metric in metrics) else PLAIN


def shown(values: ArrayLike, metric: Metric) -> NDArray[np.float64]:
    """``values`` of ``metric`` in the unit in which people see them (percent for shares)."""
    return np.asarray(values, dtype=np.float64) * notation(metric).factor


def value_text(value: float, metric: Metric) -> str:
    """One value as people read it: "93.4%" or "2.713"."""
    return notation(metric).text(float(shown(value, metric)))


def value_texts(values: NDArray[np.float64], metrics: Sequence[Metric]) -> list[str]:
    """One text for each task's value (K,), a dash where there is none."""
    return [value_text(value, metric) for value, metric in zip(values, metrics, strict=True)]


def names(metrics: Sequence[Metric], between: str = " and ") -> str:
    """Each metric's name once: "accuracy and loss"."""
    return between.join(dict.fromkeys(metric.name for metric in metrics))


def axis_title(task: str, metric: Metric) -> str:
    """An axis title with its unit: "Accuracy on MNIST (%)"."""
    title = f"{_capital(metric.name)} on {task}"
    return f"{title} (%)" if metric.is_share else title


def shared_title(metric: Metric) -> str:
    """The title of an axis that several tasks share: "Accuracy (%)"."""
    return _capital(metric.name) + (" (%)" if metric.is_share else "")


def relative_title(metrics: Sequence[Metric]) -> str:
    """The title of an axis in percent of the single-task models' metrics."""
    title = "% of each task's own model"
    down = [metric for metric in metrics if not metric.maximize]
    if not down:
        return title
    return f"{title}<br>lower = better" + ("" if len(down) == len(metrics) else f" for {names(down)}")


def share_a_unit(metrics: Sequence[Metric]) -> bool:
    """Whether the metrics can stand on one axis: they are one and the same, or all are shares."""
    return len(set(metrics)) == 1 or all(metric.is_share for metric in metrics)


@dataclass(frozen=True, eq=False)
class SharedAxis:
    """An axis on which several tasks' metrics stand.

    Attributes:
        title: Its title.
        scale: What each task's metric is multiplied by (K,).
    """

    title: str
    scale: NDArray[np.float64]


def shared_axis(metrics: Sequence[Metric], own: NDArray[np.float64]) -> SharedAxis:
    """One axis for several tasks' metrics.

    Metrics that have no unit in common are drawn as percent of the single-task models'; each in its own unit
    while these aren't known.

    Args:
        metrics: K metrics.
        own: Each task's metric under its own single-task model (K,), NaN where unknown.
    """
    scale = np.array([notation(metric).factor for metric in metrics])
    if share_a_unit(metrics):
        title = _capital(names(metrics, " / "))
        return SharedAxis(f"{title} (%)" if metrics[0].is_share else title, scale)
    if np.isfinite(own).all() and (own > 0).all():
        return SharedAxis(relative_title(metrics), 100.0 / own)
    return SharedAxis("Metric, each in its own unit", scale)


def entry_text(entry: float, made_by: Made) -> str:
    """One task's entry of coefficients or of a preference: "c = 0.300" or "preference 12.5%"."""
    return f"c = {entry:.3f}" if made_by == "coefficients" else f"preference {100 * entry:.3g}%"


def hover_texts(
    C: NDArray[np.float64],
    values: NDArray[np.float64],
    tasks: Sequence[str],
    metrics: Sequence[Metric],
    made_by: Made = "coefficients",
) -> list[str]:
    """One hover per row: each task's metric with its coefficient, or its share of the preference.

    Args:
        C: Coefficients or preferences, n x N, in the tasks' order.
        values: Metrics, n x N; NaN where there is none.
        tasks: N names.
        metrics: N metrics.
        made_by: Which of the two ``C`` holds.
    """
    texts = []
    for c, row in zip(C, values, strict=True):
        lines = [
            f"<b>{task}</b>  {text}  ({entry_text(entry, made_by)})"
            for task, text, entry in zip(tasks, value_texts(row, metrics), c, strict=True)
        ]
        texts.append("<br>".join(lines))
    return texts


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
