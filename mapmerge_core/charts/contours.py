"""A metric over the points of a merge's space: measured beside fitted, with the front drawn among them.

Two coordinates of a space span a plane. Where they are weights of a simplex, the other weights share what
they leave, as in the point that the plane passes through. A space of one free dimension is a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError

from mapmerge_core.charts.palette import Palette, draw, template
from mapmerge_core.charts.units import axis_title, notation, shown
from mapmerge_core.search.spaces import Product, Simplex, Space

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics import Metric

    Array = NDArray[np.float64]

GRID = 33
"""Fitted values along each side of a plane, and along a line."""
CROWD = 200
"""Points of a front beyond which they are drawn so that the contours can be seen through them."""
NEAR = 0.12
"""How far, as a share of an axis, a point's other coordinates may lie from the plane."""


@dataclass(frozen=True, eq=False)
class PlaneInfo:
    """One objective on a plane of a space, or along a line.

    Attributes:
        objective: Its name.
        metric: Its metric.
        names: The coordinates along x and y; of a line the one along x.
        x: Values along x (g,).
        y: Values along y (g,); of a line its only one.
        fitted: Predicted metrics, rows are y (``g x g`` or ``1 x g``), NaN outside the space; None without a
            surrogate.
        measured: Values interpolated between measured points, likewise; None of a line, and with too few
            points.
        points: Measured points on or near the plane (``p x 3``): x, y and metric.
        front: The front's coordinates along x and y (``f x 2``).
        pick: The pick's coordinates along x and y (2,), if any.
        through: The coordinates that are held, or share what the others leave, by name.
        caption: What is shown, one sentence; "" where it is the whole space.
    """

    objective: str
    metric: Metric
    names: tuple[str, ...]
    x: Array
    y: Array
    fitted: Array | None
    measured: Array | None
    points: Array
    front: Array
    pick: Array | None
    through: dict[str, float]
    caption: str

    @property
    def is_line(self) -> bool:
        """Whether there is only one dimension to draw."""
        return len(self.names) == 1


def usable_axes(space: Space) -> tuple[int, ...]:
    """Return the coordinates of which any two can vary on a plane; one or none where there is no plane."""
    return tuple(
        start + number
        for start, part in _parts(space)
        for number in range(1 if isinstance(part, Simplex) and part.n == 2 else part.n)
    )


def plane_points(space: Space, through: Array, axes: tuple[int, ...], values: Array) -> Array:
    """Return the points of a plane that have the given coordinates.

    Args:
        space: The space.
        through: A point (D,) that the plane passes through.
        axes: The coordinates that vary.
        values: Their values (``m x len(axes)``).

    Returns:
        Points (``m x D``), all NaN where no point of the space has these coordinates.
    """
    points = np.repeat(np.asarray(through, dtype=np.float64)[None], len(values), axis=0)
    points[:, axes] = values
    for start, part in _parts(space):
        columns = np.arange(start, start + part.n)
        others = np.setdiff1d(columns, axes)
        if not isinstance(part, Simplex) or len(others) == part.n:
            continue
        left = 1.0 - points[:, np.intersect1d(columns, axes)].sum(axis=1)
        total = float(np.asarray(through)[others].sum())
        shares = np.asarray(through)[others] / total if total > 0 else np.full(len(others), 1 / len(others))
        points[:, others] = np.maximum(left, 0.0)[:, None] * shares
        points[left < -1e-9] = np.nan
    return points


def plane_grid(space: Space, through: Array, axes: tuple[int, ...], size: int) -> Array:
    """Return an even grid of the plane's points that lie in the space, ``m x D`` with m at most size²."""
    sides = [np.linspace(*_ends(space, axis), size) for axis in axes]
    values = np.stack([side.ravel() for side in np.meshgrid(*sides)], axis=1)
    points = plane_points(space, through, axes, values)
    return points[np.isfinite(points).all(axis=1)]


def plane_info(
    objective: str,
    metric: Metric,
    space: Space,
    predict: Callable[[Array], Array] | None,
    X: Array,
    y: Array,
    *,
    through: Array,
    axes: tuple[int, ...] = (0, 1),
    front: Array | None = None,
    pick: Array | None = None,
) -> PlaneInfo:
    """Gather one objective's measured and fitted values on a plane.

    Args:
        objective: Its name.
        metric: Its metric.
        space: Where the surrogate holds.
        predict: Predicts the objective (m,) at points (``m x D``); None while there is no surrogate.
        X: Measured points (``n x D``).
        y: Their values (n,), NaN where the objective wasn't measured.
        through: A point (D,) that the plane passes through.
        axes: The coordinates along x and y, or that along a line, among the `usable_axes`.
        front: The front's points (``f x D``).
        pick: The pick's point (D,).
    """
    sides = [np.linspace(*_ends(space, axis), GRID) for axis in axes]
    values = np.stack([side.ravel() for side in np.meshgrid(*sides)], axis=1)
    grid = plane_points(space, through, axes, values)
    inside = np.isfinite(grid).all(axis=1)
    shape = (-1, GRID)
    fitted = None
    if predict is not None:
        predicted = np.full(len(grid), np.nan)
        predicted[inside] = predict(grid[inside])
        fitted = predicted.reshape(shape)
    near = ~np.isnan(y) & space.contains(X) & near_plane(space, X, through, axes)
    flat = X[near][:, axes]
    measured = None
    if len(axes) == 2 and (between := _interpolated(flat, y[near], values)) is not None:
        measured = np.where(inside, between, np.nan).reshape(shape)
    held = {name: float(through[k]) for k, name in enumerate(space.names) if k not in axes}
    if len(axes) == space.n_free:
        held = {}
    return PlaneInfo(
        objective=objective,
        metric=metric,
        names=tuple(space.names[axis] for axis in axes),
        x=sides[0],
        y=sides[-1] if len(axes) == 2 else np.zeros(1),
        fitted=fitted,
        measured=measured,
        points=np.column_stack([_two(flat), y[near]]),
        front=_two(np.empty((0, space.n)) if front is None else front, axes),
        pick=None if pick is None else _two(np.asarray(pick)[None], axes)[0],
        through=held,
        caption=_caption(space, axes, held),
    )


def near_plane(space: Space, X: Array, through: Array, axes: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which rows of ``X`` (``n x D``) lie within `NEAR` of the plane."""
    if not len(X):
        return np.zeros(0, dtype=bool)
    ends = np.array([_ends(space, axis) for axis in range(space.n)])
    far = np.abs(X - plane_points(space, through, axes, X[:, axes])) / (ends[:, 1] - ends[:, 0])
    return np.asarray((np.nan_to_num(far, nan=np.inf) <= NEAR).all(axis=1))


def _parts(space: Space) -> Iterator[tuple[int, Space]]:
    """Yield a space's parts, each with the number of its first coordinate."""
    start = 0
    for part in space.parts if isinstance(space, Product) else (space,):
        yield start, part
        start += part.n


def _ends(space: Space, axis: int) -> tuple[float, float]:
    for start, part in _parts(space):
        if start <= axis < start + part.n:
            low, high = getattr(part, "low", None), getattr(part, "high", None)
            return (0.0, 1.0) if low is None or high is None else (low[axis - start], high[axis - start])
    raise IndexError(axis)


def _two(rows: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Return two columns of rows, the second one zero where only one coordinate is drawn."""
    rows = rows if axes is None else rows[:, axes]
    return rows if rows.shape[1] == 2 else np.column_stack([rows[:, :1], np.zeros(len(rows))])


def _caption(space: Space, axes: tuple[int, ...], held: dict[str, float]) -> str:
    if not held:
        rest = [name for k, name in enumerate(space.names) if k not in axes]
        return f"The whole space: {rest[0]} has the rest of the weight." if rest else ""
    values = ", ".join(f"{name} {value:.2f}" for name, value in held.items())
    shares = any(
        isinstance(part, Simplex) and any(start <= axis < start + part.n for axis in axes)
        for start, part in _parts(space)
    )
    how = "; weights that don't vary share the rest in these proportions" if shares else ""
    return f"A plane through {values}{how}."


def _interpolated(points: Array, values: Array, grid: Array) -> Array | None:
    """Interpolate scattered values on the grid, NaN outside; None where no triangle exists."""
    if len(points) < 4:
        return None
    try:
        return np.asarray(LinearNDInterpolator(points, values)(grid), dtype=np.float64)
    except QhullError:
        return None


def contours(info: PlaneInfo, palette: Palette, *, height: int = 440) -> go.Figure:
    """Draw measured (left) and fitted (right) contours on one colour scale, the front and the pick on both.

    A space of one dimension is one panel: the fitted line, and the measured points on it.
    """
    return _line(info, palette, height) if info.is_line else _planes(info, palette, height)


def _line(info: PlaneInfo, palette: Palette, height: int) -> go.Figure:
    how, name = notation(info.metric), info.names[0]
    hover = f"{name} %{{x:.3f}}<br>{info.objective} {how.hover('y')}"
    traces = []
    if info.fitted is not None:
        traces.append(
            go.Scatter(
                x=info.x,
                y=shown(info.fitted[0], info.metric),
                mode="lines",
                line={"color": palette.front, "width": 2.5},
                name="Fitted surrogate",
                hovertemplate=f"{hover}<extra>Fitted</extra>",
            )
        )
    traces.append(
        go.Scatter(
            x=info.points[:, 0],
            y=shown(info.points[:, 2], info.metric),
            mode="markers",
            marker={"size": 9, "color": palette.measured, "line": {"width": 1.2, "color": palette.text}},
            name="Measured",
            hovertemplate=f"{hover}<extra>Measured</extra>",
        )
    )
    if info.pick is not None and info.fitted is not None:
        traces.append(
            go.Scatter(
                x=info.pick[:1],
                y=np.interp(info.pick[:1], info.x, shown(info.fitted[0], info.metric)),
                mode="markers",
                marker=_pick(palette),
                name="Pick",
                hovertemplate=f"{hover}<extra>Pick</extra>",
            )
        )
    return draw(
        traces,
        palette,
        height=height,
        live=True,
        xaxis_title_text=name,
        yaxis_title_text=axis_title(info.objective, info.metric),
    )


def _pick(palette: Palette) -> dict[str, object]:
    return {"size": 15, "color": palette.pick, "line": {"width": 2.5, "color": palette.background}}


def _planes(info: PlaneInfo, palette: Palette, height: int) -> go.Figure:
    count = len(info.points)
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=(f"Measured, {count} point{'' if count == 1 else 's'}", "Fitted surrogate"),
    )
    how = notation(info.metric)
    x_name, y_name = info.names
    place = f"{x_name} %{{x:.3f}}, {y_name} %{{y:.3f}}"
    look = {
        "x": info.x,
        "y": info.y,
        "coloraxis": "coloraxis",
        "line": {"width": 0.6, "color": palette.background},
        "hovertemplate": f"{place}<br>{info.objective} {how.hover('z')}<extra></extra>",
        "contours": {"coloring": "heatmap"},
        "ncontours": 12,
        "showlegend": False,
    }
    if info.measured is not None:
        figure.add_contour(z=shown(info.measured, info.metric), connectgaps=False, **look, row=1, col=1)
    if info.fitted is not None:
        figure.add_contour(z=shown(info.fitted, info.metric), connectgaps=False, **look, row=1, col=2)
    values = shown(info.points[:, 2], info.metric)
    figure.add_scatter(
        x=info.points[:, 0],
        y=info.points[:, 1],
        mode="markers",
        marker={"color": values, "coloraxis": "coloraxis", "size": 9, "line": {"width": 1.2, "color": palette.text}},
        customdata=values,
        hovertemplate=f"{place}<br>{info.objective} {how.hover('customdata')}<extra>Measured</extra>",
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
    # Where more coordinates than two vary, the front is only projected onto the plane.
    dots = (
        {"size": 4, "color": palette.pick, "opacity": 0.35}
        if info.through or len(info.front) > CROWD
        else {"size": 5, "color": palette.pick, "line": {"width": 0.5, "color": palette.background}}
    )
    over = [("front", "Front, projected" if info.through else "Front", info.front, dots)]
    if info.pick is not None:
        over.append(("pick", "Pick", info.pick[None], _pick(palette)))
    for column in (1, 2):
        for group, name, rows, marker in over:
            if len(rows):
                figure.add_scatter(
                    x=rows[:, 0],
                    y=rows[:, 1],
                    mode="markers",
                    marker=marker,
                    name=name,
                    legendgroup=group,
                    showlegend=column == 2,
                    hovertemplate=f"{place}<extra>{name.partition(',')[0]}</extra>",
                    row=1,
                    col=column,
                )
    figure.update_xaxes(range=_limits(info.x), title_text=x_name, showgrid=False)
    figure.update_yaxes(range=_limits(info.y), showgrid=False)
    figure.update_yaxes(title_text=y_name, row=1, col=1)
    figure.update_annotations(font={"color": palette.text, "size": 13})
    figure.update_layout(
        template=template(palette),
        height=height,
        uirevision="live",
        margin={"t": 36, "b": 70},
        legend={"y": -0.2, "yanchor": "top", "x": 0.5, "xanchor": "center", "itemsizing": "trace"},
        coloraxis_colorbar_title_text=axis_title(info.objective, info.metric),
    )
    return figure


def _limits(values: Array) -> list[float]:
    beyond = 0.03 * float(values[-1] - values[0])
    return [float(values[0]) - beyond, float(values[-1]) + beyond]
