"""Metrics over coefficients: measured and fitted contours side by side, with the front drawn among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from plotly.subplots import make_subplots
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError

from mapmerge_core.charts.palette import Palette, template
from mapmerge_core.charts.units import axis_title, notation, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from mapmerge_core.tasks.metric import Metric

GRID = 33
"""Fitted values along each side of a contour."""

NEAR = 0.12
"""How far, as a share of the box's side, a point's other coefficients may lie from the plane."""


class Predicts(Protocol):
    """Anything that predicts a metric (n,) from coefficients (n x N)."""

    def predict(self, C: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Predicted metrics (n,) of the rows of ``C``."""


@dataclass(frozen=True)
class PlaneInfo:
    """One task's metric on a plane of coefficients.

    Attributes:
        task: The task's name.
        metric: Its metric.
        x_name: The task vector whose coefficient runs along x.
        y_name: The one along y.
        axis: (g,) coefficients along both sides.
        fitted: g x g predicted metrics, rows are y.
        measured: g x g values interpolated between measured points, NaN outside their hull; None with
            too few points.
        points: p x 3, measured points in or near the plane: x, y, metric.
        front: f x 2, the front's coefficients along x and y.
        pick: (2,) the pick's coefficients, if any.
        through: Fixed coefficients {name: value} of the plane; empty for two task vectors.
    """

    task: str
    metric: Metric
    x_name: str
    y_name: str
    axis: NDArray[np.float64]
    fitted: NDArray[np.float64] | None
    measured: NDArray[np.float64] | None
    points: NDArray[np.float64]
    front: NDArray[np.float64]
    pick: NDArray[np.float64] | None
    through: dict[str, float]


def plane_points(
    c: NDArray[np.float64], axes: tuple[int, int], low: float, high: float, size: int
) -> NDArray[np.float64]:
    """A square grid in the plane through ``c`` that two coefficients span.

    Args:
        c: Coefficients (N,) that the plane passes through.
        axes: The two coefficients that vary (x, y).
        low: The box's lower bound.
        high: Its upper bound.
        size: Points along each side.

    Returns:
        (size² x N) coefficients; y varies slowest.
    """
    side = np.linspace(low, high, size)
    points = np.repeat(np.asarray(c, dtype=np.float64)[None], size * size, axis=0)
    points[:, axes[0]] = np.tile(side, size)
    points[:, axes[1]] = np.repeat(side, size)
    return points


def near_plane(
    C: NDArray[np.float64], c: NDArray[np.float64], axes: tuple[int, int], reach: float
) -> NDArray[np.bool_]:
    """Which rows of ``C`` (n x N) have all other coefficients within ``reach`` of those of ``c`` (N,)."""
    others = np.delete(np.arange(C.shape[1]), axes)
    return np.asarray((np.abs(C[:, others] - c[others]) <= reach).all(axis=1))


def plane_info(
    task: int,
    tasks: Sequence[str],
    metric: Metric,
    surrogate: Predicts | None,
    C: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    through: NDArray[np.float64],
    axes: tuple[int, int] = (0, 1),
    low: float,
    high: float,
    front: NDArray[np.float64] | None = None,
    pick: NDArray[np.float64] | None = None,
) -> PlaneInfo:
    """Gather one task's measured and fitted values on a plane.

    Args:
        task: Which of ``tasks`` is shown.
        tasks: N names.
        metric: The task's metric.
        surrogate: The task's fitted surrogate; None while there are too few points for one.
        C: Measured coefficients, n x N.
        y: Their metrics (n,); NaN where the task wasn't measured.
        through: Coefficients (N,) that the plane passes through.
        axes: The two coefficients that vary.
        low: The box's lower bound.
        high: Its upper bound.
        front: The front's coefficients, m x N.
        pick: The pick's coefficients (N,).
    """
    side = np.linspace(low, high, GRID)
    grid = plane_points(through, axes, low, high, GRID)
    fitted = surrogate.predict(grid).reshape(GRID, GRID) if surrogate is not None else None
    reach = NEAR * (high - low)
    chosen = ~np.isnan(y) & near_plane(C, through, axes, reach)
    chosen &= ((low - 1e-9 <= C) & (high + 1e-9 >= C)).all(axis=1)
    flat = C[chosen][:, axes]
    points = np.column_stack([flat, y[chosen]])
    if front is None:
        front = np.empty((0, C.shape[1]))
    return PlaneInfo(
        task=tasks[task],
        metric=metric,
        x_name=tasks[axes[0]],
        y_name=tasks[axes[1]],
        axis=side,
        fitted=fitted,
        measured=_between(flat, y[chosen], grid[:, axes]),
        points=points,
        front=front[:, axes],
        pick=None if pick is None else np.asarray(pick)[list(axes)],
        through={name: float(through[k]) for k, name in enumerate(tasks) if k not in axes},
    )


def _between(
    points: NDArray[np.float64], values: NDArray[np.float64], grid: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Linear interpolation of scattered values on the grid, NaN outside; None where no triangle exists."""
    if len(points) < 4:
        return None
    try:
        surface = LinearNDInterpolator(points, values)(grid)
    except QhullError:
        return None
    return np.asarray(surface, dtype=np.float64).reshape(GRID, GRID)


def contours(info: PlaneInfo, palette: Palette, *, height: int = 440) -> go.Figure:
    """Measured (left) and fitted (right) contours on one colour scale, the front and the pick on both."""
    count = len(info.points)
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=(f"Measured, {count} point{'' if count == 1 else 's'}", "Fitted surrogate"),
    )
    how = notation(info.metric)
    look = {
        "x": info.axis,
        "y": info.axis,
        "coloraxis": "coloraxis",
        "line": {"width": 0.6, "color": palette.background},
        "hovertemplate": f"{info.x_name} %{{x:.2f}}, {info.y_name} %{{y:.2f}}"
        f"<br>{info.task} {how.hover('z')}<extra></extra>",
        "contours": {"coloring": "heatmap"},
        "ncontours": 12,
        "showlegend": False,
    }
    if info.measured is not None:
        figure.add_contour(z=shown(info.measured, info.metric), connectgaps=False, **look, row=1, col=1)
    if info.fitted is not None:
        figure.add_contour(z=shown(info.fitted, info.metric), **look, row=1, col=2)
    figure.add_scatter(
        x=info.points[:, 0],
        y=info.points[:, 1],
        mode="markers",
        marker={
            "color": shown(info.points[:, 2], info.metric),
            "coloraxis": "coloraxis",
            "size": 9,
            "line": {"width": 1.2, "color": palette.text},
        },
        customdata=shown(info.points[:, 2], info.metric),
        hovertemplate=f"{info.x_name} %{{x:.3f}}, {info.y_name} %{{y:.3f}}"
        f"<br>{info.task} {how.hover('customdata')}<extra>Measured</extra>",
        name="Measured",
        showlegend=False,
        row=1,
        col=1,
    )
    if info.measured is None:
        figure.add_annotation(
            text="Too few points near this plane<br>to draw contours",
            xref="x domain",
            yref="y domain",
            x=0.5,
            y=0.5,
            showarrow=False,
            bgcolor=palette.background,
        )
    # Of more than two coefficients the plane shows two: the front is then only projected onto it.
    dots = (
        {"size": 4, "color": palette.pick, "opacity": 0.35}
        if info.through
        else {"size": 5, "color": palette.pick, "line": {"width": 0.5, "color": palette.background}}
    )
    for column in (1, 2):
        if len(info.front):
            figure.add_scatter(
                x=info.front[:, 0],
                y=info.front[:, 1],
                mode="markers",
                marker=dots,
                name="Front, projected" if info.through else "Front",
                legendgroup="front",
                showlegend=column == 2,
                hovertemplate=f"{info.x_name} %{{x:.3f}}, {info.y_name} %{{y:.3f}}<extra>Front</extra>",
                row=1,
                col=column,
            )
        if info.pick is not None:
            figure.add_scatter(
                x=[info.pick[0]],
                y=[info.pick[1]],
                mode="markers",
                marker={
                    "size": 15,
                    "color": palette.pick,
                    "line": {"width": 2.5, "color": palette.background},
                },
                name="Pick",
                legendgroup="pick",
                showlegend=column == 2,
                hovertemplate=f"{info.x_name} %{{x:.3f}}, {info.y_name} %{{y:.3f}}<extra>Pick</extra>",
                row=1,
                col=column,
            )
    span = float(info.axis[-1] - info.axis[0])
    limits = [info.axis[0] - 0.03 * span, info.axis[-1] + 0.03 * span]
    figure.update_xaxes(range=limits, title_text=f"Coefficient of {info.x_name}", showgrid=False)
    figure.update_yaxes(range=limits, showgrid=False)
    figure.update_yaxes(title_text=f"Coefficient of {info.y_name}", row=1, col=1)
    figure.update_annotations(font={"color": palette.text, "size": 13})
    figure.update_layout(
        template=template(palette),
        height=height,
        uirevision="live",
        margin={"t": 36, "b": 70},
        legend={"y": -0.2, "yanchor": "top", "x": 0.5, "xanchor": "center", "itemsizing": "trace"},
        coloraxis_colorbar_title_text=axis_title(info.task, info.metric),
    )
    return figure
