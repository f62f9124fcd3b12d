"""Evaluations as they come in, and how well a surrogate explains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from mapmerge_core.charts.palette import Palette, draw, translucent
from mapmerge_core.charts.units import (
    axis_title,
    hover_texts,
    share_a_unit,
    shared_axis,
    shown,
    value_texts,
)
from mapmerge_core.search.fronts import non_dominated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mapmerge_core.tasks.metric import Metric


@dataclass(frozen=True)
class EvaluationsInfo:
    """Evaluated points in the order in which they were measured.

    Attributes:
        tasks: K names.
        metrics: K metrics.
        C: n x N coefficients.
        Y: n x K metrics.
        best: (n,) whether no other measured point dominates it.
    """

    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    C: NDArray[np.float64]
    Y: NDArray[np.float64]
    best: NDArray[np.bool_]


def evaluations_info(
    tasks: Sequence[str], metrics: Sequence[Metric], C: NDArray[np.float64], Y: NDArray[np.float64]
) -> EvaluationsInfo:
    """Gather the rows that were measured on every task.

    Args:
        tasks: K names.
        metrics: K metrics.
        C: n x N coefficients, oldest first.
        Y: n x K metrics, NaN where not measured (yet).
    """
    whole = ~np.isnan(Y).any(axis=1)
    C, Y = C[whole], Y[whole]
    best = non_dominated(Y, [metric.maximize for metric in metrics]) if len(Y) else np.zeros(0, bool)
    return EvaluationsInfo(tuple(tasks), tuple(metrics), C, Y, best)


def evaluations_scatter(info: EvaluationsInfo, palette: Palette, *, height: int = 400) -> go.Figure:
    """The points measured so far: two tasks against each other, or one column of dots a task for more."""
    if len(info.tasks) == 2:
        return _plane(info, palette, height)
    return _columns(info, palette, height)


def _plane(info: EvaluationsInfo, palette: Palette, height: int) -> go.Figure:
    traces: list[go.Scatter] = []
    hovers = np.array(hover_texts(info.C, info.Y, info.tasks, info.metrics), dtype=object)
    groups = (
        ("Dominated", ~info.best, {"size": 8, "color": translucent(palette.measured, 0.75)}),
        ("Not dominated so far", info.best, {"size": 10, "color": palette.front}),
    )
    for name, members, marker in groups:
        traces.append(
            go.Scatter(
                x=shown(info.Y[members, 0], info.metrics[0]),
                y=shown(info.Y[members, 1], info.metrics[1]),
                mode="markers",
                marker=marker,
                name=name,
                text=hovers[members],
                hovertemplate="%{text}<extra>Measured</extra>",
            )
        )
    if len(info.Y):
        traces.append(
            go.Scatter(
                x=shown(info.Y[-1:, 0], info.metrics[0]),
                y=shown(info.Y[-1:, 1], info.metrics[1]),
                mode="markers",
                marker={"size": 17, "symbol": "circle-open", "color": palette.pick, "line": {"width": 2}},
                name="Newest",
                hoverinfo="skip",
            )
        )
    return draw(
        traces,
        palette,
        height=height,
        live=True,
        xaxis_title_text=axis_title(info.tasks[0], info.metrics[0]),
        yaxis_title_text=axis_title(info.tasks[1], info.metrics[1]),
    )


def _columns(info: EvaluationsInfo, palette: Palette, height: int) -> go.Figure:
    count = len(info.Y)
    title, heights = _heights(info)
    # A low-discrepancy sequence spreads the dots of a column without randomness.
    spread = (np.arange(count) * 0.618034 % 1.0 - 0.5) * 0.5
    hovers = hover_texts(info.C, info.Y, info.tasks, info.metrics)
    traces = [
        go.Scatter(
            x=k + spread,
            y=heights[:, k],
            mode="markers",
            marker={"size": 6, "color": translucent(palette.front, 0.55)},
            text=hovers,
            hovertemplate="%{text}<extra>Measured</extra>",
            name="Measured",
            legendgroup="measured",
            showlegend=k == 0,
        )
        for k in range(len(info.tasks))
    ]
    if count:
        traces.append(
            go.Scatter(
                x=np.arange(len(info.tasks)) + spread[-1],
                y=heights[-1],
                mode="markers",
                marker={"size": 11, "symbol": "circle-open", "color": palette.pick, "line": {"width": 2}},
                name="Newest",
                hoverinfo="skip",
            )
        )
    return draw(
        traces,
        palette,
        height=height,
        live=True,
        xaxis={
            "tickvals": list(range(len(info.tasks))),
            "ticktext": list(info.tasks),
            "range": [-0.6, len(info.tasks) - 0.4],
            "showgrid": False,
            "tickfont": {"color": palette.text, "size": 13},
        },
        yaxis_title_text=title,
    )


def _heights(info: EvaluationsInfo) -> tuple[str, NDArray[np.float64]]:
    """A title for the axis of all tasks, and where their metrics stand on it (n x K).

    Metrics without a common unit stand between their task's worst (0) and best (100) so far.
    """
    if share_a_unit(info.metrics) or not len(info.Y):
        axis = shared_axis(info.metrics, np.full(len(info.metrics), np.nan))
        return axis.title, info.Y * axis.scale
    upward = np.where([metric.maximize for metric in info.metrics], info.Y, -info.Y)
    low, high = upward.min(axis=0), upward.max(axis=0)
    return "% of the way from worst to best so far", 100.0 * _between(upward, low, high)


def _between(
    values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where values lie from ``low`` (0) to ``high`` (1)."""
    return (values - low) / np.where(high > low, high - low, 1.0)


@dataclass(frozen=True)
class FitInfo:
    """How well surrogates predict points that they did not see.

    Attributes:
        tasks: K names.
        metrics: K metrics.
        measured: For each task its measured values (n_k,).
        left_out: For each task the prediction of each by a surrogate that did not see it (n_k,).
    """

    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    measured: tuple[NDArray[np.float64], ...]
    left_out: tuple[NDArray[np.float64], ...]


def fit_info(
    tasks: Sequence[str],
    metrics: Sequence[Metric],
    Y: NDArray[np.float64],
    inside: NDArray[np.bool_],
    left_out: Sequence[NDArray[np.float64]],
) -> FitInfo:
    """Pair measured values with left-out predictions.

    Args:
        tasks: K names.
        metrics: K metrics.
        Y: n x K metrics, NaN where not measured.
        inside: (n,) rows that surrogates were fitted to, where measured.
        left_out: For each task the predictions of its fitted rows, in their order.
    """
    measured = tuple(column[inside & ~np.isnan(column)] for column in Y.T)
    return FitInfo(tuple(tasks), tuple(metrics), measured, tuple(left_out))


def fit_scatter(info: FitInfo, palette: Palette, *, height: int = 400) -> go.Figure:
    """Measured metrics against left-out predictions, one colour a task; the diagonal is a perfect fit.

    Metrics without a common unit are drawn in percent of the way from their least to their greatest measured
    value.
    """
    traces: list[go.Scatter] = []
    alike = share_a_unit(info.metrics)
    everything: list[float] = []
    for k, (task, metric) in enumerate(zip(info.tasks, info.metrics, strict=True)):
        measured, left_out = info.measured[k], info.left_out[k]
        if alike or not len(measured):
            x, y = shown(measured, metric), shown(left_out, metric)
        else:
            x, y = (100.0 * _between(some, measured.min(), measured.max()) for some in (measured, left_out))
        everything += [*x.tolist(), *y.tolist()]
        traces.append(
            go.Scatter(
                x=x,
                y=y,
                mode="markers",
                name=task,
                marker={
                    "size": 7,
                    "color": palette.categorical[k % len(palette.categorical)],
                    "opacity": 0.8,
                },
                text=value_texts(measured, [metric] * len(measured)),
                customdata=value_texts(left_out, [metric] * len(left_out)),
                hovertemplate=f"<b>{task}</b><br>measured %{{text}}"
                "<br>predicted %{customdata}<extra></extra>",
            )
        )
    if everything:
        ends = [min(everything), max(everything)]
        traces.append(
            go.Scatter(
                x=ends,
                y=ends,
                mode="lines",
                line={"color": palette.muted, "width": 1, "dash": "dot"},
                showlegend=False,
                hoverinfo="skip",
            )
        )
    sign = " (%)" if info.metrics[0].is_share else ""
    if not alike:
        sign = ", % of each task's range"
    return draw(
        traces,
        palette,
        height=height,
        live=True,
        xaxis_title_text=f"Measured{sign}",
        yaxis_title_text=f"Predicted, left out{sign}",
    )
