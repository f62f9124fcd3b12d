"""The front of all merges, and models beside it: a scatter for a few objectives, parallel lines for more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mapmerge_core.charts.palette import Palette, assembled, draw, interval, parts, translucent
from mapmerge_core.charts.units import axis_title, hover_texts, notation, shared_axis, shown, value_texts

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics import Metric

MOST_LINES = 120
"""Lines that parallel coordinates draw at most: more is slower and shows less."""
SpotKind = Literal["pretrained", "single", "shortlist", "pick", "measured"]
LEGEND_NAMES: dict[SpotKind, str] = {
    "pick": "Pick, with 90% interval",
    "measured": "Pick, measured",
    "shortlist": "Shortlist",
    "single": "Single models",
    "pretrained": "Pre-trained",
}


@dataclass(frozen=True)
class Spot:
    """One model drawn by itself: a fine-tuned model, the pre-trained one, the pick, a measured one.

    Attributes:
        kind: What it is.
        label: What the hover and the legend call it.
        values: Its metrics (K,), as fractions.
        point: Where it lies, see `point_text`.
        lower: Lower ends of the prediction intervals (K,), if predicted.
        upper: Upper ends.
    """

    kind: SpotKind
    label: str
    values: NDArray[np.float64]
    point: str = ""
    lower: NDArray[np.float64] | None = None
    upper: NDArray[np.float64] | None = None

    @property
    def legend_name(self) -> str:
        """What the legend calls it."""
        return "Pick" if self.kind == "pick" and self.lower is None else LEGEND_NAMES[self.kind]

    def look(self, palette: Palette) -> dict[str, object]:
        """Return its marker."""
        pick, background = palette.pick, palette.background
        looks: dict[SpotKind, dict[str, object]] = {
            "pick": {"symbol": "circle", "size": 17, "color": pick, "line": {"width": 3, "color": background}},
            "measured": {"symbol": "x-thin", "size": 12, "line": {"width": 3, "color": palette.text}},
            "shortlist": {"symbol": "circle-open", "size": 13, "color": pick, "line": {"width": 2, "color": pick}},
            "single": {"symbol": "diamond", "size": 11, "color": palette.single},
            "pretrained": {"symbol": "square", "size": 10, "color": palette.pretrained},
        }
        return looks[self.kind]

    def interval(
        self, scale: NDArray[np.float64], palette: Palette, only: int | None = None
    ) -> dict[str, object] | None:
        """Return its prediction intervals as Plotly's error bars, of all objectives or ``only`` one."""
        if self.lower is None or self.upper is None:
            return None
        columns = slice(None) if only is None else slice(only, only + 1)
        values, lower, upper = ((ends * scale)[columns] for ends in (self.values, self.lower, self.upper))
        return interval(values, lower, upper, palette.pick)


@dataclass(frozen=True)
class FrontInfo:
    """What the figures of a front show.

    Attributes:
        objectives: K names.
        metrics: K metrics.
        merges: The titles of the merges whose front it is.
        rows: Row numbers in the whole front of the rows drawn (m,).
        members: For each of these the number of its merge (m,).
        predicted: Their predicted metrics (``m x K``).
        points: Where each lies (m), see `point_text`.
        single: Each objective's value under its task's own model, or the best single one (K,); NaN where
            unknown.
        spots: Models drawn by themselves.
    """

    objectives: tuple[str, ...]
    metrics: tuple[Metric, ...]
    merges: tuple[str, ...]
    rows: NDArray[np.int64]
    members: NDArray[np.int64]
    predicted: NDArray[np.float64]
    points: tuple[str, ...]
    single: NDArray[np.float64]
    spots: tuple[Spot, ...]

    @property
    def by_merge(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Each merge that has rows, with these rows' numbers among the rows drawn."""
        return [(int(number), np.flatnonzero(self.members == number)) for number in np.unique(self.members)]


def front_info(
    objectives: Sequence[str],
    metrics: Sequence[Metric],
    predicted: NDArray[np.float64],
    *,
    points: Sequence[str] = (),
    merges: Sequence[str] = ("",),
    members: NDArray[np.int64] | None = None,
    single: NDArray[np.float64] | None = None,
    spots: Sequence[Spot] = (),
    most: int | None = None,
) -> FrontInfo:
    """Gather a front for drawing, thinned evenly to ``most`` rows if it has more.

    Args are as in `FrontInfo`, for all rows; all are of the first merge unless ``members`` says otherwise.
    """
    rows = np.arange(len(predicted))
    if most is not None and len(rows) > most:
        rows = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))
    if members is None:
        members = np.zeros(len(predicted), dtype=np.int64)
    return FrontInfo(
        objectives=tuple(objectives),
        metrics=tuple(metrics),
        merges=tuple(merges),
        rows=rows,
        members=np.asarray(members)[rows],
        predicted=predicted[rows],
        points=tuple(points[row] for row in rows.tolist()) if points else ("",) * len(rows),
        single=np.full(len(metrics), np.nan) if single is None else single,
        spots=tuple(spots),
    )


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
        """Return what a figure shows, with spots over it and ``above`` over these."""
        traces, layout = parts(figure)
        empty = cls(traces, layout, len(traces), frozenset(), trace)
        traces, layout = parts(empty.with_spots(spots))
        over = [each.to_plotly_json() for each in above]
        return cls([*traces, *over], layout, len(traces), frozenset(spot.kind for spot in spots), trace)

    def packed(self) -> Backdrop:
        """Return the same with its arrays in the form in which they are sent, so that this is done once."""
        return replace(self, traces=self.with_spots(()).to_dict()["data"])

    def with_spots(self, spots: Sequence[Spot]) -> go.Figure:
        """Return the figure with these models, in this order."""
        named = set(self.kinds)
        added = []
        for spot in spots:
            added.append(self.trace(spot, spot.kind not in named))
            named.add(spot.kind)
        return assembled([*self.traces[: self.place], *added, *self.traces[self.place :]], self.layout)


def front_scatter(
    info: FrontInfo, palette: Palette, *, x: int = 0, y: int = 1, colour: int | None = None, height: int = 520
) -> go.Figure:
    """Draw the front as points, objective ``x`` against ``y``, coloured by objective ``colour`` or by merge.

    There is a trace for each merge, whose ``customdata`` holds the row numbers in the whole front, so that a
    click says which row was meant. A line joins the points of two objectives and one merge.
    """
    return scatter_backdrop(info, palette, x=x, y=y, colour=colour, height=height).with_spots(())


def scatter_backdrop(
    info: FrontInfo, palette: Palette, *, x: int = 0, y: int = 1, colour: int | None = None, height: int = 520
) -> Backdrop:
    """Draw `front_scatter` for further spots to be added."""
    across, along = (shown(info.predicted[:, k], info.metrics[k]) for k in (x, y))
    hovers = np.array(hover_texts(info.predicted, info.objectives, info.metrics, info.points), dtype=object)
    is_one = len(info.by_merge) == 1
    front = []
    for number, rows in info.by_merge:
        if len(info.objectives) == 2:
            rows = rows[np.argsort(across[rows], kind="stable")]  # noqa: PLW2901 - the line's order
        own = palette.of_merge(number)
        marker: dict[str, object] = {"size": 7, "color": own, "line": {"width": 0}}
        if colour is not None:
            shades = shown(info.predicted[rows, colour], info.metrics[colour])
            marker |= {"color": shades, "coloraxis": "coloraxis", "size": 9}
        title = info.merges[number]
        front.append(
            go.Scatter(
                x=across[rows],
                y=along[rows],
                mode="lines+markers" if len(info.objectives) == 2 and is_one else "markers",
                line={"color": translucent(own, 0.35), "width": 2},
                marker=marker,
                customdata=info.rows[rows],
                text=hovers[rows],
                hovertemplate="%{text}<extra>Front, predicted" + (f"<br>{title}" if title else "") + "</extra>",
                name="Front" if is_one else title,
                showlegend=colour is None,
                selected={"marker": {"opacity": 1}},
                unselected={"marker": {"opacity": 1}},
            )
        )
    middle = info.predicted[:, x].mean()

    def trace(spot: Spot, showlegend: bool) -> go.Scatter:
        is_single = spot.kind == "single"
        point = [spot.point] if spot.point else []
        scales = [notation(info.metrics[k]).factor * np.ones(len(info.metrics)) for k in (x, y)]
        return go.Scatter(
            x=[float(shown(spot.values[x], info.metrics[x]))],
            y=[float(shown(spot.values[y], info.metrics[y]))],
            error_x=spot.interval(scales[0], palette, x),
            error_y=spot.interval(scales[1], palette, y),
            mode="markers+text" if is_single else "markers",
            text=[spot.label] if is_single else None,
            textposition="bottom left" if spot.values[x] > middle else "bottom right",
            textfont={"color": palette.single, "size": 12},
            marker=spot.look(palette),
            name=spot.legend_name,
            legendgroup=spot.kind,
            showlegend=showlegend,
            customdata=hover_texts(spot.values[None], info.objectives, info.metrics, point),
            hovertemplate=f"<b>{spot.label}</b><br>%{{customdata}}<extra></extra>",
        )

    titles = [axis_title(name, metric) for name, metric in zip(info.objectives, info.metrics, strict=True)]
    figure = draw(
        front,
        palette,
        height=height,
        xaxis_title_text=titles[x],
        yaxis_title_text=titles[y],
        coloraxis_colorbar_title_text="" if colour is None else titles[colour],
    )
    return Backdrop.of(figure, (), trace, info.spots)


def front_parallel(info: FrontInfo, palette: Palette, *, colour: int | None = None, height: int = 520) -> go.Figure:
    """Draw the front as one line a model over all objectives, coloured by objective ``colour`` or by merge.

    ``customdata`` of every vertex holds the row number in the whole front, so that a click says which model
    was meant. Drawn as SVG scatter lines: ``go.Parcoords`` can't be clicked and needs WebGL. Metrics without
    a common unit are drawn as percent of the single models', see `shared_axis`.
    """
    return parallel_backdrop(info, palette, colour=colour, height=height).with_spots(())


def parallel_backdrop(info: FrontInfo, palette: Palette, *, colour: int | None = None, height: int = 520) -> Backdrop:
    """Draw `front_parallel` for further spots to be added; the single models are one trace of diamonds."""
    axis = shared_axis(info.metrics, info.single)
    positions = list(range(len(info.objectives)))

    def trace(spot: Spot, _is_first: bool) -> go.Scatter:
        is_pick = spot.kind == "pick"
        return go.Scatter(
            x=positions,
            y=spot.values * axis.scale,
            error_y=spot.interval(axis.scale, palette) if is_pick else None,
            mode="markers" if spot.kind == "measured" else "lines+markers",
            line={
                "color": palette.pick if spot.kind in ("pick", "shortlist") else palette.pretrained,
                "width": 3.5 if is_pick else 2,
                "dash": "solid" if is_pick else "dot",
            },
            marker={**spot.look(palette), **({"size": 10} if is_pick else {})},
            name=spot.legend_name,
            legendgroup=spot.kind,
            text=value_texts(spot.values, info.metrics),
            hovertemplate=f"<b>{spot.label}</b>  %{{text}}<extra></extra>",
        )

    above = []
    if np.isfinite(info.single).any():
        texts = value_texts(info.single, info.metrics)
        above.append(single_diamonds(info.objectives, info.single * axis.scale, texts, palette))
    layout = parallel_axis(info.objectives, palette)
    lines = _lines(info, axis.scale, palette, colour)
    figure = draw(lines, palette, height=height, xaxis=layout, yaxis_title_text=axis.title)
    return Backdrop.of(figure, above, trace, [spot for spot in info.spots if spot.kind != "single"])


def parallel_axis(objectives: Sequence[str], palette: Palette) -> dict[str, object]:
    """Return an x axis with a tick for each objective."""
    return {
        "tickvals": list(range(len(objectives))),
        "ticktext": list(objectives),
        "range": [-0.3, len(objectives) - 0.7],
        "tickfont": {"color": palette.text, "size": 13},
    }


def single_diamonds(
    objectives: Sequence[str], heights: NDArray[np.float64], texts: Sequence[str], palette: Palette
) -> go.Scatter:
    """Return a diamond for each objective's value under its task's own model, or the best single one.

    Args:
        objectives: K names.
        heights: Where the values stand on the axis (K,).
        texts: How they are written (K).
        palette: Colours.
    """
    return go.Scatter(
        x=list(range(len(objectives))),
        y=heights,
        mode="markers",
        marker={"symbol": "diamond", "size": 11, "color": palette.single},
        name="Single models",
        text=list(texts),
        customdata=list(objectives),
        hovertemplate="<b>%{customdata}, single model</b>  %{text}<extra></extra>",
    )


def _polyline(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rows (``r x K``) as one broken line: x is the objective's position, NaN ends a row."""
    ends = np.full((len(values), 1), np.nan)
    places = np.broadcast_to(np.arange(values.shape[1], dtype=np.float64), values.shape)
    return np.hstack([places, ends]).ravel(), np.hstack([values, ends]).ravel()


def colour_bins(values: NDArray[np.float64], n_bins: int) -> NDArray[np.int64]:
    """Return the bin in [0, n_bins) of each of ``values`` (m,); equally wide from the least to the most."""
    spread = float(np.ptp(values))
    if spread == 0.0:
        return np.full(len(values), n_bins - 1)
    edges = values.min() + spread * np.arange(1, n_bins) / n_bins
    bins: NDArray[np.int64] = np.searchsorted(edges, values, side="right").astype(np.int64)
    return bins


def _lines(info: FrontInfo, scale: NDArray[np.float64], palette: Palette, colour: int | None) -> list[go.Scatter]:
    """Return the front's models, one trace for each merge or each shade of objective ``colour``."""
    heights = info.predicted * scale
    texts = np.array([[*value_texts(row, info.metrics), ""] for row in info.predicted])
    if colour is None:
        groups = [(palette.of_merge(n), info.merges[n], rows) for n, rows in info.by_merge]
    else:
        bins = colour_bins(info.predicted[:, colour], len(palette.sequential) - 2)
        groups = [
            (palette.sequential[int(number) + 2], "", np.flatnonzero(bins == number)) for number in np.unique(bins)
        ]
    traces, is_one = [], len(info.by_merge) == 1
    for shade, title, members in groups:
        xs, ys = _polyline(heights[members])
        titles = np.array([info.merges[number] for number in info.members[members]], dtype=object)
        traces.append(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines+markers",
                line={"color": translucent(shade, 0.55), "width": 1.2},
                marker={"size": 5, "color": translucent(shade, 0.8)},
                customdata=np.repeat(info.rows[members], len(info.objectives) + 1),
                text=texts[members].ravel(),
                hovertext=None if is_one else np.repeat(titles, len(info.objectives) + 1),
                hovertemplate="%{text}<extra>Front, predicted" + ("" if is_one else "<br>%{hovertext}") + "</extra>",
                name=title or "Front",
                showlegend=bool(title) and colour is None and len(groups) > 1,
                selected={"marker": {"opacity": 1}},
                unselected={"marker": {"opacity": 1}},
            )
        )
    return traces
