"""Evaluations as they come in, and how well surrogates explain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mapmerge_core.charts.palette import Palette, draw, translucent
from mapmerge_core.charts.units import axis_title, between, hover_texts, share_a_unit, shared_axis, shown, value_texts
from mapmerge_core.search.fronts import non_dominated

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics import Metric


@dataclass(frozen=True)
class EvaluationsInfo:
    """Evaluated points of one or several merges, each merge's in the order in which they were measured.

    Attributes:
        objectives: K names.
        metrics: K metrics.
        merges: The merges' titles.
        members: For each point the number of its merge (n,).
        Y: Metrics (``n x K``).
        points: Where each lies (n), see `point_text`.
        best: Whether no other measured point dominates it (n,).
    """

    objectives: tuple[str, ...]
    metrics: tuple[Metric, ...]
    merges: tuple[str, ...]
    members: NDArray[np.int64]
    Y: NDArray[np.float64]
    points: tuple[str, ...]
    best: NDArray[np.bool_]


def evaluations_info(
    objectives: Sequence[str],
    metrics: Sequence[Metric],
    tables: Sequence[tuple[str, NDArray[np.float64], Sequence[str]]],
) -> EvaluationsInfo:
    """Gather the points that were measured on every objective.

    Args:
        objectives: K names.
        metrics: K metrics.
        tables: For each merge its title, its metrics (``n x K``, oldest first, NaN where not measured yet)
            and where its points lie (n), see `point_text`.
    """
    whole = [~np.isnan(Y).any(axis=1) for _, Y, _ in tables]
    Y = np.vstack([np.empty((0, len(metrics))), *(table[1][rows] for table, rows in zip(tables, whole, strict=True))])
    points = [table[2][row] for table, rows in zip(tables, whole, strict=True) for row in np.flatnonzero(rows).tolist()]
    return EvaluationsInfo(
        objectives=tuple(objectives),
        metrics=tuple(metrics),
        merges=tuple(title for title, _, _ in tables),
        members=np.repeat(np.arange(len(tables)), [int(rows.sum()) for rows in whole]),
        Y=Y,
        points=tuple(points),
        best=non_dominated(Y, [metric.maximize for metric in metrics]) if len(Y) else np.zeros(0, bool),
    )


def evaluations_scatter(info: EvaluationsInfo, palette: Palette, *, height: int = 400) -> go.Figure:
    """Draw the points measured so far: two objectives against each other, else a column of dots for each.

    Points of several merges have a colour each; of one, those that nothing beats stand out.
    """
    is_plane = len(info.objectives) == 2
    hovers = np.array(hover_texts(info.Y, info.objectives, info.metrics, info.points), dtype=object)
    if is_plane:
        title, heights = "", np.column_stack([shown(info.Y[:, k], info.metrics[k]) for k in range(2)])
    else:
        title, heights = _heights(info)
    # A low-discrepancy sequence spreads the dots of a column without randomness.
    spread = (np.arange(len(info.Y)) * 0.618034 % 1.0 - 0.5) * 0.5
    traces: list[go.Scatter] = []
    for name, rows, marker in _groups(info, palette, is_plane=is_plane):
        if is_plane:
            places = [(heights[rows, 0], heights[rows, 1])]
        else:
            places = [(k + spread[rows], heights[rows, k]) for k in range(len(info.objectives))]
        for number, (x, y) in enumerate(places):
            traces.append(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="markers",
                    marker=marker,
                    text=hovers[rows],
                    hovertemplate=f"%{{text}}<extra>{name}</extra>",
                    name=name,
                    legendgroup=name,
                    showlegend=number == 0,
                )
            )
    # Which one is the newest is known only of one merge.
    if len(info.Y) and len(info.merges) == 1:
        last = heights[-1:]
        traces.append(
            go.Scatter(
                x=last[:, 0] if is_plane else np.arange(len(info.objectives)) + spread[-1],
                y=last[:, 1] if is_plane else last[0],
                mode="markers",
                marker={
                    "size": 17 if is_plane else 11,
                    "symbol": "circle-open",
                    "color": palette.pick,
                    "line": {"width": 2},
                },
                name="Newest",
                hoverinfo="skip",
            )
        )
    if is_plane:
        across, along = (axis_title(info.objectives[k], info.metrics[k]) for k in range(2))
        return draw(traces, palette, height=height, live=True, xaxis_title_text=across, yaxis_title_text=along)
    axis = {
        "tickvals": list(range(len(info.objectives))),
        "ticktext": list(info.objectives),
        "range": [-0.6, len(info.objectives) - 0.4],
        "showgrid": False,
        "tickfont": {"color": palette.text, "size": 13},
    }
    return draw(traces, palette, height=height, live=True, xaxis=axis, yaxis_title_text=title)


def _groups(
    info: EvaluationsInfo, palette: Palette, *, is_plane: bool
) -> list[tuple[str, NDArray[np.int64], dict[str, object]]]:
    """Return the names, the rows and the markers of points that look alike."""
    if len(info.merges) > 1:
        return [
            (title, np.flatnonzero(info.members == n), {"size": 8 if is_plane else 6, "color": palette.of_merge(n)})
            for n, title in enumerate(info.merges)
        ]
    if not is_plane:
        marker = {"size": 6, "color": translucent(palette.front, 0.55)}
        return [("Measured", np.arange(len(info.Y)), marker)]
    dominated = {"size": 8, "color": translucent(palette.measured, 0.75)}
    return [
        ("Dominated", np.flatnonzero(~info.best), dominated),
        ("Not dominated so far", np.flatnonzero(info.best), {"size": 10, "color": palette.front}),
    ]


def _heights(info: EvaluationsInfo) -> tuple[str, NDArray[np.float64]]:
    """Return a title for the axis of all objectives, and where their metrics stand on it (``n x K``).

    Metrics without a common unit stand between their objective's worst (0) and best (100) so far.
    """
    if share_a_unit(info.metrics) or not len(info.Y):
        axis = shared_axis(info.metrics)
        return axis.title, info.Y * axis.scale
    upward = np.where([metric.maximize for metric in info.metrics], info.Y, -info.Y)
    return "% of the way from worst to best so far", between(upward, upward.min(axis=0), upward.max(axis=0))


@dataclass(frozen=True)
class FitInfo:
    """How well surrogates predict points that they did not see.

    Attributes:
        objectives: K names.
        metrics: K metrics.
        measured: For each objective its measured values (n_k,).
        left_out: For each objective the prediction of each by a surrogate that did not see it (n_k,).
    """

    objectives: tuple[str, ...]
    metrics: tuple[Metric, ...]
    measured: tuple[NDArray[np.float64], ...]
    left_out: tuple[NDArray[np.float64], ...]


def fit_info(
    objectives: Sequence[str],
    metrics: Sequence[Metric],
    Y: NDArray[np.float64],
    inside: NDArray[np.bool_],
    left_out: Sequence[NDArray[np.float64]],
) -> FitInfo:
    """Pair measured values with left-out predictions.

    Args:
        objectives: K names.
        metrics: K metrics.
        Y: Metrics (``n x K``), NaN where not measured.
        inside: Which rows surrogates were fitted to, where measured (n,).
        left_out: As in `FitInfo`.
    """
    measured = tuple(column[inside & ~np.isnan(column)] for column in Y.T)
    return FitInfo(tuple(objectives), tuple(metrics), measured, tuple(left_out))


def fit_scatter(info: FitInfo, palette: Palette, *, height: int = 400) -> go.Figure:
    """Draw measured metrics against left-out predictions, a colour an objective; the diagonal is a perfect fit.

    Metrics without a common unit are drawn in percent of the way from their least to their greatest measured
    value.
    """
    traces: list[go.Scatter] = []
    has_unit = share_a_unit(info.metrics)
    everything: list[float] = []
    for k, (name, metric) in enumerate(zip(info.objectives, info.metrics, strict=True)):
        measured, left_out = info.measured[k], info.left_out[k]
        if has_unit or not len(measured):
            x, y = shown(measured, metric), shown(left_out, metric)
        else:
            x, y = (between(values, measured.min(), measured.max()) for values in (measured, left_out))
        everything += [*x.tolist(), *y.tolist()]
        traces.append(
            go.Scatter(
                x=x,
                y=y,
                mode="markers",
                name=name,
                marker={"size": 7, "color": palette.categorical[k % len(palette.categorical)], "opacity": 0.8},
                text=value_texts(measured, [metric] * len(measured)),
                customdata=value_texts(left_out, [metric] * len(left_out)),
                hovertemplate=f"<b>{name}</b><br>measured %{{text}}<br>predicted %{{customdata}}<extra></extra>",
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
    if not has_unit:
        sign = ", % of each objective's range"
    return draw(
        traces,
        palette,
        height=height,
        live=True,
        xaxis_title_text=f"Measured{sign}",
        yaxis_title_text=f"Predicted, left out{sign}",
    )
