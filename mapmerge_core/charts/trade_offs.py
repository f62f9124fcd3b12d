"""The front and what stands beside it: a scatter for two or three tasks, parallel coordinates for more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from mapmerge_core.charts.palette import Palette, assembled, draw, parts, translucent
from mapmerge_core.charts.units import Made, axis_title, hover_texts, shared_axis, shown, value_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mapmerge_core.tasks.metric import Metric

MOST_LINES = 120
"""Lines that parallel coordinates draw at most: more is slower and shows less."""


@dataclass(frozen=True)
class Spot:
    """One model drawn by itself: a single-task model, the pre-trained one, the pick, a measured one.

    Attributes:
        kind: "pretrained", "single", "shortlist", "pick" or "measured".
        label: What the hover and the legend call it.
        c: Its coefficients (N,), or its preference (K,).
        values: Its metrics (K,), as fractions.
        lower: Lower ends of the prediction intervals (K,), if predicted.
        upper: Upper ends.
        made_by: Which of the two ``c`` is.
    """

    kind: str
    label: str
    c: NDArray[np.float64]
    values: NDArray[np.float64]
    lower: NDArray[np.float64] | None = None
    upper: NDArray[np.float64] | None = None
    made_by: Made = "coefficients"


@dataclass(frozen=True)
class FrontInfo:
    """What the trade-off figures show.

    Attributes:
        tasks: K names.
        metrics: K metrics.
        rows: (m,) row numbers in the whole front of the rows drawn.
        c: Coefficients of the rows drawn (m x N), or of a learned set their preferences (m x K).
        predicted: Their predicted metrics (m x K); of a learned set measured ones.
        spots: Models drawn by themselves.
        made_by: Which of the two ``c`` holds.
    """

    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: NDArray[np.int64]
    c: NDArray[np.float64]
    predicted: NDArray[np.float64]
    spots: tuple[Spot, ...]
    made_by: Made = "coefficients"


def front_info(
    tasks: Sequence[str],
    metrics: Sequence[Metric],
    c: NDArray[np.float64],
    predicted: NDArray[np.float64],
    *,
    spots: Sequence[Spot] = (),
    most: int | None = None,
    made_by: Made = "coefficients",
) -> FrontInfo:
    """Gather a front for drawing, thinned evenly to ``most`` rows if it has more.

    Args:
        tasks: K names.
        metrics: K metrics.
        c: The front's coefficients (m x N), or a learned set's preferences (m x K).
        predicted: Their metrics, m x K.
        spots: Models drawn by themselves.
        most: The number of rows to keep at most; all if None.
        made_by: Which of the two ``c`` holds.
    """
    rows = np.arange(len(c))
    if most is not None and len(rows) > most:
        rows = np.unique(np.linspace(0, len(c) - 1, most).round().astype(int))
    return FrontInfo(
        tuple(tasks),
        tuple(metrics),
        rows,
        c[rows],
        predicted[rows],
        tuple(spots),
        made_by,
    )


def _symbol(spot: Spot, palette: Palette) -> dict[str, object]:
    if spot.kind == "pick":
        return {
            "symbol": "circle",
            "size": 17,
            "color": palette.pick,
            "line": {"width": 3, "color": palette.background},
        }
    if spot.kind == "measured":
        return {"symbol": "x-thin", "size": 12, "line": {"width": 3, "color": palette.text}}
    if spot.kind == "shortlist":
        return {
            "symbol": "circle-open",
            "size": 13,
            "color": palette.pick,
            "line": {"width": 2, "color": palette.pick},
        }
    if spot.kind == "single":
        return {"symbol": "diamond", "size": 11, "color": palette.single}
    return {"symbol": "square", "size": 10, "color": palette.pretrained}


LEGEND_NAMES = {
    "pick": "Pick, with 90% interval",
    "measured": "Pick, measured",
    "shortlist": "Shortlist",
    "single": "Single-task models",
    "pretrained": "Pre-trained",
}
FRONT_NAMES: dict[Made, tuple[str, str]] = {
    "coefficients": ("Front", "Front, predicted"),
    "preference": ("Measured preferences", "Measured on validation"),
}
"""What the legend and the hover call a front's rows, and those of a learned set."""


def _legend_name(spot: Spot) -> str:
    if spot.kind == "pick" and spot.lower is None:
        return "Pick"
    return LEGEND_NAMES[spot.kind]


def _error(spot: Spot, task: int, info: FrontInfo, palette: Palette) -> dict[str, object] | None:
    if spot.lower is None or spot.upper is None:
        return None
    value, low, high = (
        float(shown(array[task], info.metrics[task])) for array in (spot.values, spot.lower, spot.upper)
    )
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value],
        "arrayminus": [value - low],
        "color": palette.pick,
        "thickness": 1.5,
        "width": 4,
    }


@dataclass(frozen=True, eq=False)
class Backdrop:
    """A finished figure, to which models drawn by themselves are added without making all else anew.

    Attributes:
        traces: Its traces as plain values.
        layout: Its layout, too.
        place: How many of ``traces`` lie under the models that are added.
        kinds: The kinds of spots that it shows, which have their entry in the legend.
        trace: Draws a spot; gets whether it has an entry in the legend.
    """

    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    place: int
    kinds: frozenset[str]
    trace: Callable[[Spot, bool], go.Scatter]

    @classmethod
    def of(
        cls,
        figure: go.Figure,
        above: Sequence[go.Scatter],
        trace: Callable[[Spot, bool], go.Scatter],
        spots: Sequence[Spot],
    ) -> Backdrop:
        """What a figure shows, with spots over it and ``above`` over these."""
        traces, layout = parts(figure)
        empty = cls(traces, layout, len(traces), frozenset(), trace)
        traces, layout = parts(empty.with_spots(spots))
        over = [each.to_plotly_json() for each in above]
        return cls([*traces, *over], layout, len(traces), frozenset(spot.kind for spot in spots), trace)

    def packed(self) -> Backdrop:
        """The same with its arrays in the form in which they are sent, so that this is done only once."""
        return replace(self, traces=self.with_spots(()).to_dict()["data"])

    def with_spots(self, spots: Sequence[Spot]) -> go.Figure:
        """The figure with these models, in this order."""
        named = set(self.kinds)
        added = []
        for spot in spots:
            added.append(self.trace(spot, spot.kind not in named))
            named.add(spot.kind)
        return assembled([*self.traces[: self.place], *added, *self.traces[self.place :]], self.layout)


def front_scatter(
    info: FrontInfo,
    palette: Palette,
    *,
    x: int = 0,
    y: int = 1,
    colour: int | None = None,
    height: int = 520,
) -> go.Figure:
    """The front as points, task ``x`` against task ``y``, coloured by task ``colour`` if given.

    The first trace is the front; its ``customdata`` holds the row numbers of the whole front, so that a
    click says which row was meant. With two tasks a line joins the points.
    """
    return scatter_backdrop(info, palette, x=x, y=y, colour=colour, height=height).with_spots(())


def scatter_backdrop(
    info: FrontInfo,
    palette: Palette,
    *,
    x: int = 0,
    y: int = 1,
    colour: int | None = None,
    height: int = 520,
) -> Backdrop:
    """`front_scatter`, to which further spots can be added."""
    name, hover = FRONT_NAMES[info.made_by]
    marker: dict[str, object] = {"size": 7, "color": palette.front, "line": {"width": 0}}
    if colour is not None:
        marker |= {
            "color": shown(info.predicted[:, colour], info.metrics[colour]),
            "coloraxis": "coloraxis",
            "size": 9,
        }
    front = go.Scatter(
        x=shown(info.predicted[:, x], info.metrics[x]),
        y=shown(info.predicted[:, y], info.metrics[y]),
        mode="markers" if len(info.tasks) > 2 else "lines+markers",
        line={"color": translucent(palette.front, 0.35), "width": 2},
        marker=marker,
        customdata=info.rows,
        text=np.array(hover_texts(info.c, info.predicted, info.tasks, info.metrics, info.made_by)),
        hovertemplate=f"%{{text}}<extra>{hover}</extra>",
        name=name,
        showlegend=colour is None,
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )
    middle = info.predicted[:, x].mean()

    def trace(spot: Spot, showlegend: bool) -> go.Scatter:
        return go.Scatter(
            x=[float(shown(spot.values[x], info.metrics[x]))],
            y=[float(shown(spot.values[y], info.metrics[y]))],
            error_x=_error(spot, x, info, palette),
            error_y=_error(spot, y, info, palette),
            mode="markers+text" if spot.kind == "single" else "markers",
            text=[spot.label] if spot.kind == "single" else None,
            textposition="bottom left" if spot.values[x] > middle else "bottom right",
            textfont={"color": palette.single, "size": 12},
            marker=_symbol(spot, palette),
            name=_legend_name(spot),
            legendgroup=spot.kind,
            showlegend=showlegend,
            customdata=hover_texts(spot.c[None], spot.values[None], info.tasks, info.metrics, spot.made_by),
            hovertemplate=f"<b>{spot.label}</b><br>%{{customdata}}<extra></extra>",
        )

    bar = "" if colour is None else axis_title(info.tasks[colour], info.metrics[colour])
    figure = draw(
        [front],
        palette,
        height=height,
        xaxis_title_text=axis_title(info.tasks[x], info.metrics[x]),
        yaxis_title_text=axis_title(info.tasks[y], info.metrics[y]),
        coloraxis_colorbar_title_text=bar,
    )
    return Backdrop.of(figure, (), trace, info.spots)


def _polyline(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows (r x K) as one broken line: x is the task's position, NaN ends a row."""
    ends = np.full((len(values), 1), np.nan)
    places = np.broadcast_to(np.arange(values.shape[1], dtype=np.float64), values.shape)
    return np.hstack([places, ends]).ravel(), np.hstack([values, ends]).ravel()


def colour_bins(values: NDArray[np.float64], n_bins: int) -> NDArray[np.int64]:
    """The bin in [0, n_bins) of each of ``values`` (m,); bins are equally wide from the least to the most."""
    spread = float(np.ptp(values))
    if spread == 0.0:
        return np.full(len(values), n_bins - 1)
    edges = values.min() + spread * np.arange(1, n_bins) / n_bins
    bins: NDArray[np.int64] = np.searchsorted(edges, values, side="right").astype(np.int64)
    return bins


def front_parallel(info: FrontInfo, palette: Palette, *, colour: int = 0, height: int = 520) -> go.Figure:
    """The front as one line a model over all tasks, coloured by task ``colour``.

    ``customdata`` of every vertex holds the row number in the whole front, so that a click says which model
    was meant. Drawn as SVG scatter lines: ``go.Parcoords`` can't be clicked and needs WebGL. Metrics without
    a common unit are drawn as percent of the single-task models', see `units.shared_axis`.
    """
    return parallel_backdrop(info, palette, colour=colour, height=height).with_spots(())


def parallel_backdrop(info: FrontInfo, palette: Palette, *, colour: int = 0, height: int = 520) -> Backdrop:
    """`front_parallel`, to which further spots can be added; those of all single-task models aren't."""
    own = own_metrics(info)
    axis = shared_axis(info.metrics, np.full(len(info.tasks), np.nan) if own is None else own)
    positions = list(range(len(info.tasks)))

    def trace(spot: Spot, _is_first: bool) -> go.Scatter:
        strong = spot.kind == "pick"
        error = None
        if strong and spot.lower is not None and spot.upper is not None:
            error = {
                "type": "data",
                "symmetric": False,
                "array": (spot.upper - spot.values) * axis.scale,
                "arrayminus": (spot.values - spot.lower) * axis.scale,
                "color": palette.pick,
                "thickness": 1.5,
                "width": 4,
            }
        return go.Scatter(
            x=positions,
            y=spot.values * axis.scale,
            error_y=error,
            mode="markers" if spot.kind == "measured" else "lines+markers",
            line={
                "color": {"pick": palette.pick, "shortlist": palette.pick}.get(spot.kind, palette.pretrained),
                "width": 3.5 if strong else 2,
                "dash": "solid" if strong else "dot",
            },
            marker={**_symbol(spot, palette), **({"size": 10} if strong else {})},
            name=_legend_name(spot),
            legendgroup=spot.kind,
            text=value_texts(spot.values, info.metrics),
            hovertemplate=f"<b>{spot.label}</b>  %{{text}}<extra></extra>",
        )

    above = []
    if own is not None:
        above.append(
            go.Scatter(
                x=positions,
                y=own * axis.scale,
                mode="markers",
                marker={"symbol": "diamond", "size": 11, "color": palette.single},
                name="Each task's own model",
                text=value_texts(own, info.metrics),
                customdata=info.tasks,
                hovertemplate="<b>%{customdata}, its own model</b>  %{text}<extra></extra>",
            )
        )
    figure = draw(
        _lines(info, axis.scale, palette, colour),
        palette,
        height=height,
        xaxis={
            "tickvals": positions,
            "ticktext": list(info.tasks),
            "range": [-0.3, len(info.tasks) - 0.7],
            "tickfont": {"color": palette.text, "size": 13},
        },
        yaxis_title_text=axis.title,
    )
    return Backdrop.of(figure, above, trace, [spot for spot in info.spots if spot.kind != "single"])


def _lines(info: FrontInfo, scale: NDArray[np.float64], palette: Palette, colour: int) -> list[go.Scatter]:
    """The front's models, one trace for each shade of task ``colour``."""
    heights = info.predicted * scale
    texts = np.array([[*value_texts(row, info.metrics), ""] for row in info.predicted])
    bins = colour_bins(info.predicted[:, colour], len(palette.sequential) - 2)
    traces = []
    for number in np.unique(bins):
        members = bins == number
        xs, ys = _polyline(heights[members])
        shade = palette.sequential[int(number) + 2]
        traces.append(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines+markers",
                line={"color": translucent(shade, 0.55), "width": 1.2},
                marker={"size": 5, "color": translucent(shade, 0.8)},
                customdata=np.repeat(info.rows[members], len(info.tasks) + 1),
                text=texts[members].ravel(),
                hovertemplate=f"%{{text}}<extra>{FRONT_NAMES[info.made_by][1]}</extra>",
                showlegend=False,
                selected={"marker": {"opacity": 1}},
                unselected={"marker": {"opacity": 1}},
            )
        )
    return traces


def own_metrics(info: FrontInfo) -> NDArray[np.float64] | None:
    """Each task's metric under its own single-task model (K,); None unless every task has one."""
    singles = {int(np.argmax(spot.c)): spot for spot in info.spots if spot.kind == "single"}
    if len(singles) < len(info.tasks):
        return None
    return np.array([singles[k].values[k] for k in range(len(info.tasks))])
