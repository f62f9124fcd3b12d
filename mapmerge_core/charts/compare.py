"""Every method and baseline together: one line each over many tasks, one bar each for a preference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import plotly.graph_objects as go

from mapmerge_core.charts.palette import Palette, draw, translucent
from mapmerge_core.charts.units import axis_title, shared_title, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mapmerge_core.tasks.metric import Metric

Kind = Literal["run", "baseline", "single", "pretrained"]

# Circles are runs', squares the pre-trained model's and diamonds the single-task models' in every figure.
_SYMBOLS = (
    "triangle-up",
    "x",
    "star",
    "triangle-down",
    "cross",
    "hexagon",
    "star-triangle-up",
    "bowtie",
    "pentagon",
    "hourglass",
    "triangle-left",
    "triangle-right",
)
MARGIN = {"l": 16, "r": 16, "t": 12, "b": 16}
"""Around figures whose legend stands beside or below them."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One row of the comparison.

    Attributes:
        key: What tells it from all others.
        name: What the legend calls it.
        kind: What it is.
        values: Its metrics (K,) on the test split, NaN where not measured.
        front: Measured metrics (``m x K``) of the models that it offers for different preferences, NaN where
            not measured; no rows where it is one model.
    """

    key: str
    name: str
    kind: Kind
    values: NDArray[np.float64]
    front: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CompareInfo:
    """What the figures of all rows show.

    Attributes:
        tasks: K names.
        titles: K axis titles with their units.
        shared: The title of an axis that all tasks share.
        unit: "%" or nothing, the unit of all values.
        entries: The rows that have a value, as shown: in percent, or in the metric's own unit.
        own: Each task's metric under its own model (K,), as shown; NaN where not measured.
        chosen: Key of the row that stands out, if any.
    """

    tasks: tuple[str, ...]
    titles: tuple[str, ...]
    shared: str
    unit: str
    entries: tuple[Entry, ...]
    own: NDArray[np.float64]
    chosen: str | None = None


def compare_info(
    tasks: Sequence[str],
    metrics: Sequence[Metric],
    entries: Sequence[Entry],
    single: NDArray[np.float64],
    *,
    normalise: bool,
    chosen: str | None = None,
) -> CompareInfo:
    """Gather the rows that were measured, as they are shown.

    Args:
        tasks: K names.
        metrics: K metrics.
        entries: Rows with metrics as fractions.
        single: Each task's metric under its own single-task model (K,).
        normalise: Whether metrics are shown as percent of the single-task models'.
        chosen: Key of the row that stands out.
    """

    def convert(values: NDArray[np.float64]) -> NDArray[np.float64]:
        if normalise:
            return np.asarray(100.0 * values / single)
        return np.stack([shown(values[..., k], metric) for k, metric in enumerate(metrics)], axis=-1)

    drawn = []
    for entry in entries:
        front = entry.front[~np.isnan(entry.front).any(axis=1)]
        if not np.isnan(entry.values).all() or len(front):
            drawn.append(Entry(entry.key, entry.name, entry.kind, convert(entry.values), convert(front)))
    return CompareInfo(
        tasks=tuple(tasks),
        titles=tuple(
            f"{task}, % of its own model" if normalise else axis_title(task, metric)
            for task, metric in zip(tasks, metrics, strict=True)
        ),
        shared="% of each task's own model" if normalise else shared_title(metrics[0]),
        unit="%" if normalise or metrics[0].is_share else "",
        entries=tuple(drawn),
        own=convert(single),
        chosen=chosen,
    )


def looks(entries: Sequence[Entry], palette: Palette) -> dict[str, tuple[str, str]]:
    """Each row's colour and symbol, by its key.

    Baselines differ in symbol and colour, so that nobody has to go by colour alone; orange is the pick's.
    """
    colours = [colour for colour in palette.categorical if colour not in (palette.front, palette.pick)]
    runs = baselines = 0
    found = {}
    for entry in entries:
        if entry.kind == "run":
            # The first run is what everything else is held against.
            found[entry.key] = ([palette.front, *colours[2:]][runs % (len(colours) - 1)], "circle")
            runs += 1
        elif entry.kind == "baseline":
            found[entry.key] = (colours[baselines % len(colours)], _SYMBOLS[baselines % len(_SYMBOLS)])
            baselines += 1
        elif entry.kind == "single":
            found[entry.key] = (palette.single, "diamond")
        else:
            found[entry.key] = (palette.pretrained, "square")
    return found


def legend_height(info: CompareInfo) -> int:
    """Pixels that a figure needs for a legend of all rows beside it."""
    shown_ = sum(entry.kind != "single" for entry in info.entries)
    return max(440, 60 + 20 * (shown_ + 2))


def parallel(info: CompareInfo, palette: Palette) -> go.Figure:
    """One line a row over all tasks; single-task models are diamonds, each over its own task."""
    look = looks(info.entries, palette)
    traces: list[go.Scatter] = []
    positions = list(range(len(info.tasks)))
    for entry in info.entries:
        if entry.kind == "single":
            continue
        colour, symbol = look[entry.key]
        strong = entry.key == info.chosen
        run = entry.kind == "run"
        traces.append(
            go.Scatter(
                x=positions,
                y=entry.values,
                mode="lines+markers",
                line={
                    "color": palette.pick if strong else translucent(colour, 1.0 if run else 0.45),
                    "width": 4 if strong else 3 if run else 1.3,
                    "dash": "dot" if entry.kind == "pretrained" else "solid",
                },
                marker={"size": 9, "symbol": symbol, "color": palette.pick if strong else colour},
                name=entry.name,
                # It lies so far below all others that these would be hard to tell apart.
                visible=True if strong or entry.kind != "pretrained" else "legendonly",
                zorder=2 if strong else 1 if run else 0,
                hovertemplate=f"<b>{entry.name}</b>  %{{y:.1f}}{info.unit}<extra></extra>",
            )
        )
    if not np.isnan(info.own).all():
        traces.append(
            go.Scatter(
                x=positions,
                y=info.own,
                mode="markers",
                marker={"symbol": "diamond", "size": 11, "color": palette.single},
                name="Own models",
                text=[f"{task}, its own model" for task in info.tasks],
                hovertemplate=f"<b>%{{text}}</b>  %{{y:.1f}}{info.unit}<extra></extra>",
            )
        )
    return draw(
        traces,
        palette,
        height=legend_height(info),
        legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"},
        margin=MARGIN,
        xaxis={
            "tickvals": positions,
            "ticktext": list(info.tasks),
            "range": [-0.3, len(info.tasks) - 0.7],
            "tickfont": {"color": palette.text, "size": 13},
        },
        yaxis_title_text=info.shared,
    )


@dataclass(frozen=True)
class Bar:
    """A row's preference-weighted sum, as a fraction, with the ends of its 90% interval, NaN if unknown."""

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
        unit: "%" or nothing.
        title: The axis's title.
        chosen: Key of the row that stands out, if any.
    """

    bars: tuple[Bar, ...]
    level: float
    unit: str
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

    Args:
        bars: Rows with their sums as fractions, the higher the better; NaN where not all tasks were measured.
        metrics: The tasks' metrics.
        level: The same sum over each task's own single-task model.
        normalise: Whether the sums are over shares of the single-task models' metrics.
        chosen: Key of the row that stands out.
    """
    percent = normalise or all(metric.is_share for metric in metrics)
    factor = 100.0 if percent else 1.0
    kept = [
        Bar(bar.key, bar.name, bar.kind, factor * bar.value, factor * bar.lower, factor * bar.upper)
        for bar in bars
        if not np.isnan(bar.value)
    ]
    what = "share of own models" if normalise else metrics[0].name
    return BarsInfo(
        bars=tuple(sorted(kept, key=lambda bar: bar.value, reverse=True)),
        level=factor * level,
        unit="%" if percent else "",
        title=f"Weighted {what}" + (" (%)" if percent else ""),
        chosen=chosen,
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
            text=[f"{bar.value:.1f}" for bar in bars],
            textposition="inside",
            insidetextanchor="start",
            textfont={"color": [_on(bar, info, palette) for bar in bars], "size": 12},
            customdata=[_interval(bar, info.unit) for bar in bars],
            hovertemplate=f"<b>%{{y}}</b>  %{{x:.1f}}{info.unit}%{{customdata}}<extra></extra>",
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


def _interval(bar: Bar, unit: str) -> str:
    """What a bar's label says of its interval, if that is known."""
    return "" if np.isnan(bar.lower) else f"<br>90% interval {bar.lower:.1f}–{bar.upper:.1f}{unit}"


def _on(bar: Bar, info: BarsInfo, palette: Palette) -> str:
    """The colour of a text on a bar."""
    return palette.background if bar.key == info.chosen or bar.kind == "run" else palette.text


def _bar_range(info: BarsInfo) -> list[float] | None:
    """From zero to a little beyond the farthest end on either side; None leaves it to Plotly."""
    ends = [info.level, *(end for bar in info.bars for end in (bar.lower, bar.value, bar.upper))]
    ends = [end for end in ends if not np.isnan(end)]
    return [1.03 * min(0.0, *ends), 1.03 * max(0.0, *ends)] if ends else None
