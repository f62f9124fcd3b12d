"""How metrics and points of a merge's space are written on axes and in hovers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics import Metric


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
        """Return a value as shown, as people read it: "93.4%" or "2.713"; a dash where there is none."""
        return "–" if np.isnan(shown_value) else f"{shown_value:.{self.decimals}f}{self.unit}"

    def hover(self, variable: str) -> str:
        """Return one of a trace's variables in a hover template: ``%{y:.1f}%``."""
        return f"%{{{variable}:.{self.decimals}f}}{self.unit}"


PERCENT = Notation(100.0, 1, "%")
PLAIN = Notation(1.0, 3, "")
_COORDINATES = 8
"""Coordinates that a hover shows at most."""


def notation(*metrics: Metric) -> Notation:
    """Return how a metric is written, or a mean or sum of several: in percent where all are shares."""
    return PERCENT if all(metric.is_share for metric in metrics) else PLAIN


def shown(values: ArrayLike, metric: Metric) -> NDArray[np.float64]:
    """Return ``values`` of ``metric`` in the unit in which people see them (percent for shares)."""
    return np.asarray(values, dtype=np.float64) * notation(metric).factor


def value_text(value: float, metric: Metric) -> str:
    """Return one value as people read it: "93.4%" or "2.713"."""
    return notation(metric).text(float(shown(value, metric)))


def value_texts(values: NDArray[np.float64], metrics: Sequence[Metric]) -> list[str]:
    """Return one text for each objective's value (K,), a dash where there is none."""
    return [value_text(value, metric) for value, metric in zip(values, metrics, strict=True)]


def names(metrics: Sequence[Metric], between: str = " and ") -> str:
    """Return each metric's name once: "accuracy and loss"."""
    return between.join(dict.fromkeys(metric.name for metric in metrics))


def axis_title(objective: str, metric: Metric) -> str:
    """Return an axis title with its unit: "Accuracy on MNIST (%)", "MNIST loss" where the name says it."""
    title = objective if objective.endswith(metric.name) else f"{metric.title} on {objective}"
    return f"{title} (%)" if metric.is_share else title


def relative_title(metrics: Sequence[Metric]) -> str:
    """Return the title of an axis in percent of the single models' metrics."""
    title = "% of the single models"
    down = [metric for metric in metrics if not metric.maximize]
    if not down:
        return title
    return f"{title}<br>lower = better" + ("" if len(down) == len(metrics) else f" for {names(down)}")


def share_a_unit(metrics: Sequence[Metric]) -> bool:
    """Return whether the metrics can stand on one axis: they are one and the same, or all are shares."""
    return len(set(metrics)) == 1 or all(metric.is_share for metric in metrics)


@dataclass(frozen=True, eq=False)
class SharedAxis:
    """An axis on which several objectives stand.

    Attributes:
        title: Its title.
        scale: What each objective's value is multiplied by (K,).
    """

    title: str
    scale: NDArray[np.float64]


def shared_axis(metrics: Sequence[Metric], single: NDArray[np.float64] | None = None) -> SharedAxis:
    """Return one axis for several objectives.

    Metrics that have no unit in common are drawn as percent of the single models'; each in its own unit while
    these aren't known.

    Args:
        metrics: K metrics.
        single: Each objective's value under its task's own model, or the best single model (K,); NaN where
            unknown.
    """
    scale = np.array([notation(metric).factor for metric in metrics])
    if share_a_unit(metrics):
        title = " / ".join(dict.fromkeys(metric.title for metric in metrics))
        return SharedAxis(f"{title} (%)" if metrics[0].is_share else title, scale)
    if single is not None and np.isfinite(single).all() and (single > 0).all():
        return SharedAxis(relative_title(metrics), 100.0 / single)
    return SharedAxis("Metric, each in its own unit", scale)


def between(
    values: NDArray[np.float64], low: NDArray[np.float64] | float, high: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Return where values lie between ``low`` (0) and ``high`` (100), in percent."""
    spread = np.asarray(high) - low
    return np.asarray(100.0 * (values - low) / np.where(spread > 0, spread, 1.0))


def point_text(names: Sequence[str], x: NDArray[np.float64]) -> str:
    """Return a point of a space as people read it: "MNIST 0.300, Emoji 0.250"; "" for a single point."""
    shown_ = [f"{name} {value:.3f}" for name, value in zip(names[:_COORDINATES], x, strict=False)]
    more = len(x) - len(shown_)
    return ", ".join([*shown_, f"and {more} more"] if more > 0 else shown_)


def hover_texts(
    values: NDArray[np.float64], objectives: Sequence[str], metrics: Sequence[Metric], points: Sequence[str] = ()
) -> list[str]:
    """Return one hover for each of m rows: its objectives line by line, then where its point is.

    Args:
        values: Metrics, ``m x K``; NaN where there is none.
        objectives: K names.
        metrics: K metrics.
        points: m texts, see `point_text`; none are shown where there are none.
    """
    texts = []
    for number, row in enumerate(values):
        lines = [f"<b>{name}</b>  {text}" for name, text in zip(objectives, value_texts(row, metrics), strict=True)]
        if number < len(points) and points[number]:
            lines.append(points[number])
        texts.append("<br>".join(lines))
    return texts
