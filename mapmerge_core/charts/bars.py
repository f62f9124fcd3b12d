"""Bars: a pick beside the models it came from, weighted sums of many models, entropies of unlabelled data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mapmerge_core.charts.compare import MARGIN, Kind
from mapmerge_core.charts.palette import Palette, assembled, draw, interval, parts, translucent
from mapmerge_core.charts.units import PERCENT, Notation, names, notation, shared_axis, value_texts

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics import Metric


@dataclass(frozen=True)
class PickInfo:
    """A pick beside what it is held against, one group of bars an objective.

    Attributes:
        objectives: K names.
        metrics: K metrics.
        pretrained: The pre-trained model's values (K,), NaN where unknown.
        single: Those of each task's own model, or of the best single one (K,), NaN where unknown.
        predicted: The pick's (K,).
        lower: Lower ends of its prediction intervals (K,).
        upper: Upper ends (K,).
        measured: The pick's on the test split (K,); None before that.
    """

    objectives: tuple[str, ...]
    metrics: tuple[Metric, ...]
    pretrained: NDArray[np.float64]
    single: NDArray[np.float64]
    predicted: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    measured: NDArray[np.float64] | None = None

    def share_of_single(self) -> NDArray[np.float64]:
        """Return the pick's predicted values as fractions of the single models' (K,)."""
        return np.asarray(self.predicted / self.single)


def pick_bars(info: PickInfo, palette: Palette, *, height: int = 320) -> go.Figure:
    """Draw bars of the pre-trained model, the pick (with interval and any measurement) and the single model.

    Metrics without a common unit are drawn as percent of the single models', see `shared_axis`.
    """
    traces: list[go.Bar] = []
    axis = shared_axis(info.metrics, info.single)
    predicted, lower, upper = (ends * axis.scale for ends in (info.predicted, info.lower, info.upper))
    error = interval(predicted, lower, upper, palette.text)
    series: list[tuple[str, NDArray[np.float64], str, dict[str, object] | None]] = [
        ("Pre-trained", info.pretrained, translucent(palette.pretrained, 0.55), None),
        ("Pick, predicted", info.predicted, palette.pick, error if (info.upper > info.lower).any() else None),
    ]
    if info.measured is not None:
        series.append(("Pick, measured on test", info.measured, translucent(palette.pick, 0.55), None))
    series.append(("Single model", info.single, palette.single, None))
    for name, values, colour, bounds in series:
        traces.append(
            go.Bar(
                x=list(info.objectives),
                y=values * axis.scale,
                name=name,
                marker={"color": colour, "cornerradius": 3, "line": {"width": 0}},
                error_y=bounds,
                customdata=value_texts(values, info.metrics),
                hovertemplate=f"<b>%{{x}}</b><br>{name} %{{customdata}}<extra></extra>",
            )
        )
    return assembled(traces, _bars_layout(palette, height, axis.title))


@lru_cache
def _bars_layout(palette: Palette, height: int, title: str) -> dict[str, Any]:
    """Return the layout of `pick_bars`, which stays while the bars change."""
    figure = draw(
        [],
        palette,
        height=height,
        barmode="group",
        bargap=0.28,
        bargroupgap=0.06,
        xaxis={"showgrid": False, "tickfont": {"color": palette.text, "size": 13}},
        yaxis_title_text=title,
    )
    return parts(figure)[1]


@dataclass(frozen=True)
class Bar:
    """A row's preference-weighted sum with the ends of its 90% interval, NaN if unknown."""

    key: str
    name: str
    kind: Kind
    value: float
    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class WeightedInfo:
    """Preference-weighted sums, best first.

    Attributes:
        bars: One for each row that has one, with values as shown.
        level: That of the single models, each on its own objective (a model that doesn't exist); NaN where
            unknown.
        notation: How the sums are written.
        title: The axis's title, which also says where less is better.
        chosen: Key of the row that stands out, if any.
    """

    bars: tuple[Bar, ...]
    level: float
    notation: Notation
    title: str
    chosen: str | None = None


def weighted_info(
    bars: Sequence[Bar], metrics: Sequence[Metric], level: float, *, normalise: bool, chosen: str | None = None
) -> WeightedInfo:
    """Gather the rows that have a sum, the best first.

    Where all metrics go down, so do the sums that are shown; where only some do, these count negatively.

    Args:
        bars: Rows with their sums as fractions, in which metrics that go down count negatively: the higher
            the better; NaN where not all objectives were measured.
        metrics: Those of the objectives that have a weight.
        level: The same sum over the single models.
        normalise: Whether the sums are over shares of the single models' metrics.
        chosen: Key of the row that stands out.
    """
    how = PERCENT if normalise else notation(*metrics)
    down = [metric for metric in metrics if not metric.maximize]
    falls = len(down) == len(metrics)
    factor = -how.factor if falls else how.factor
    kept = sorted((bar for bar in bars if not np.isnan(bar.value)), key=lambda bar: bar.value, reverse=True)
    return WeightedInfo(
        bars=tuple(_as_shown(bar, factor) for bar in kept),
        level=factor * level,
        notation=how,
        title=_weighted_title(metrics, down, how, normalise=normalise),
        chosen=chosen,
    )


def _as_shown(bar: Bar, factor: float) -> Bar:
    """Return the bar times ``factor``, whose sign may turn its interval round."""
    lower, upper = sorted((factor * bar.lower, factor * bar.upper))
    return replace(bar, value=factor * bar.value, lower=lower, upper=upper)


def _weighted_title(metrics: Sequence[Metric], down: Sequence[Metric], how: Notation, *, normalise: bool) -> str:
    title = f"Weighted {'share of single models' if normalise else names(metrics)}"
    title += f" ({how.unit})" if how.unit else ""
    if not down:
        return title
    return f"{title}, lower = better" if len(down) == len(metrics) else f"{title}, {names(down)} counted negatively"


def weighted_bars(info: WeightedInfo, palette: Palette, *, height: int | None = None) -> go.Figure:
    """Draw one bar a row with its 90% interval, the best on top; a dotted line for the single models."""
    # Plotly draws the first bar at the bottom.
    bars = info.bars[::-1]
    values, lower, upper = (np.array([getattr(bar, end) for bar in bars]) for end in ("value", "lower", "upper"))
    traces = [
        go.Bar(
            x=values,
            y=[bar.name for bar in bars],
            orientation="h",
            marker={
                "color": [
                    palette.pick
                    if bar.key == info.chosen
                    else (palette.front if bar.kind == "run" else palette.measured)
                    for bar in bars
                ],
                "cornerradius": 3,
                "line": {"width": 0},
            },
            error_x=interval(values, lower, upper, palette.text),
            text=[f"{bar.value:.{info.notation.decimals}f}" for bar in bars],
            textposition="inside",
            insidetextanchor="start",
            textfont={"color": [_on(bar, info, palette) for bar in bars], "size": 12},
            customdata=[_interval(bar, info.notation) for bar in bars],
            hovertemplate=f"<b>%{{y}}</b>  {info.notation.hover('x')}%{{customdata}}<extra></extra>",
            showlegend=False,
        )
    ]
    shapes = []
    if bars and not np.isnan(info.level):
        line = {"color": palette.single, "width": 1.5, "dash": "dot"}
        shapes = [{"type": "line", "x0": info.level, "x1": info.level, "y0": 0, "y1": 1, "yref": "paper"}]
        shapes[0]["line"] = line
    return draw(
        traces,
        palette,
        height=height or 90 + 26 * max(3, len(bars)),
        bargap=0.3,
        shapes=shapes,
        xaxis={"title_text": info.title, "range": _bar_range(info)},
        yaxis={"showgrid": False, "tickfont": {"color": palette.text, "size": 12}, "ticklabelstandoff": 4},
        margin=MARGIN,
    )


def _interval(bar: Bar, how: Notation) -> str:
    """Return what a bar's label says of its interval, if that is known."""
    return "" if np.isnan(bar.lower) else f"<br>90% interval {bar.lower:.{how.decimals}f}–{how.text(bar.upper)}"


def _on(bar: Bar, info: WeightedInfo, palette: Palette) -> str:
    """Return the colour of a text on a bar."""
    return palette.background if bar.key == info.chosen or bar.kind == "run" else palette.text


def _bar_range(info: WeightedInfo) -> list[float] | None:
    """Return from zero to a little beyond the farthest end on either side; None leaves it to Plotly."""
    ends = [info.level, *(end for bar in info.bars for end in (bar.lower, bar.value, bar.upper))]
    ends = [end for end in ends if not np.isnan(end)]
    return [1.03 * min(0.0, *ends), 1.03 * max(0.0, *ends)] if ends else None


@dataclass(frozen=True, eq=False)
class EntropiesInfo:
    """How sure several models are of unlabelled data.

    Attributes:
        entropies: The models' mean entropies in nats (n,), ascending.
        models: What each is (n), in the same order.
    """

    entropies: NDArray[np.float64]
    models: tuple[str, ...]


def entropies_info(entropies: NDArray[np.float64], models: Sequence[str]) -> EntropiesInfo:
    """Sort n models by how sure they are; a model is told by its merge and its `point_text`, say."""
    order = np.argsort(entropies, kind="stable")
    return EntropiesInfo(entropies[order], tuple(models[row] for row in order))


def entropy_bars(info: EntropiesInfo, palette: Palette, *, height: int = 190) -> go.Figure:
    """Draw one bar a model, ascending; the chosen one, which is the first, in the pick's colour."""
    colours = [palette.pick, *[translucent(palette.front, 0.55)] * (len(info.entropies) - 1)]
    bars = go.Bar(
        x=np.arange(1, len(info.entropies) + 1),
        y=info.entropies,
        marker={"color": colours, "cornerradius": 2, "line": {"width": 0}},
        customdata=list(info.models),
        hovertemplate="<b>%{y:.3f} nats</b><br>%{customdata}<extra></extra>",
    )
    return draw(
        [bars],
        palette,
        height=height,
        bargap=0.25,
        margin={"l": 16, "r": 8, "t": 8, "b": 16},
        xaxis={"showgrid": False, "showticklabels": False, "title": {"text": "Models, the surest first"}},
        yaxis={"title": {"text": "Entropy (nats)"}, "nticks": 4},
    )
