"""How well every method and baseline serves a preference: one bar each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from mapmerge_core.charts.compare import MARGIN, Kind
from mapmerge_core.charts.palette import Palette, draw
from mapmerge_core.charts.units import PERCENT, Notation, names, notation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mapmerge_core.tasks.metric import Metric


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
class BarsInfo:
    """Preference-weighted sums, best first.

    Attributes:
        bars: One for each row that has one, with values as shown.
        level: That of the single-task models, each on its own task (a model that doesn't exist); NaN where
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


def bars_info(
    bars: Sequence[Bar],
    metrics: Sequence[Metric],
    level: float,
    *,
    normalise: bool,
    chosen: str | None = None,
) -> BarsInfo:
    """Gather the rows that have a sum, the best first.

    Where all metrics go down, so do the sums that are shown; where only some do, these count negatively.

    Args:
        bars: Rows with their sums as fractions, in which metrics that go down count negatively: the higher
            the better; NaN where not all tasks were measured.
        metrics: Those of the tasks that have a weight.
        level: The same sum over each task's own single-task model.
        normalise: Whether the sums are over shares of the single-task models' metrics.
        chosen: Key of the row that stands out.
    """
    how = PERCENT if normalise else notation(*metrics)
    down = [metric for metric in metrics if not metric.maximize]
    falls = len(down) == len(metrics)
    factor = -how.factor if falls else how.factor
    kept = sorted((bar for bar in bars if not np.isnan(bar.value)), key=lambda bar: bar.value, reverse=True)
    return BarsInfo(
        bars=tuple(_shown(bar, factor) for bar in kept),
        level=factor * level,
        notation=how,
        title=_title(metrics, down, how, normalise=normalise),
        chosen=chosen,
    )


def _shown(bar: Bar, factor: float) -> Bar:
    """The bar times ``factor``, whose sign may turn its interval round."""
    lower, upper = sorted((factor * bar.lower, factor * bar.upper))
    return replace(bar, value=factor * bar.value, lower=lower, upper=upper)


def _title(metrics: Sequence[Metric], down: Sequence[Metric], how: Notation, *, normalise: bool) -> str:
    title = f"Weighted {'share of own models' if normalise else names(metrics)}"
    title += f" ({how.unit})" if how.unit else ""
    if not down:
        return title
    return (
        f"{title}, lower = better"
        if len(down) == len(metrics)
        else f"{title}, {names(down)} counted negatively"
    )


def weighted_bars(info: BarsInfo, palette: Palette, *, height: int | None = None) -> go.Figure:
    """One bar a row with its 90% interval, the best on top; a dotted line for the single-task models."""
    # Plotly draws the first bar at the bottom.
    bars = info.bars[::-1]
    traces = [
        go.Bar(
            x=[bar.value for bar in bars],
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
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [bar.upper - bar.value for bar in bars],
                "arrayminus": [bar.value - bar.lower for bar in bars],
                "color": palette.text,
                "thickness": 1.2,
                "width": 3,
            },
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
        yaxis={"showgrid": False, "tickfont": {"color": palette.text, "size": 12}},
        margin=MARGIN,
    )


def _interval(bar: Bar, how: Notation) -> str:
    """What a bar's label says of its interval, if that is known."""
    return (
        "" if np.isnan(bar.lower) else f"<br>90% interval {bar.lower:.{how.decimals}f}–{how.text(bar.upper)}"
    )


def _on(bar: Bar, info: BarsInfo, palette: Palette) -> str:
    """The colour of a text on a bar."""
    return palette.background if bar.key == info.chosen or bar.kind == "run" else palette.text


def _bar_range(info: BarsInfo) -> list[float] | None:
    """From zero to a little beyond the farthest end on either side; None leaves it to Plotly."""
    ends = [info.level, *(end for bar in info.bars for end in (bar.lower, bar.value, bar.upper))]
    ends = [end for end in ends if not np.isnan(end)]
    return [1.03 * min(0.0, *ends), 1.03 * max(0.0, *ends)] if ends else None
